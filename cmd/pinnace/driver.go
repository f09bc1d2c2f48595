package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
)

// The names of drivers on the command line.
const (
	driverAuto        = "auto"
	driverQEMU        = "qemu"
	driverFirecracker = "firecracker"
)

// driverFlags say what starts microVMs. This is the only place that knows concrete drivers.
type driverFlags struct {
	name                string
	qemu, accel         string
	firecracker, jailer string
	jails               string // empty: the default
}

func (f *driverFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.name, "driver", driverAuto, "what runs microVMs: firecracker, qemu, or auto for Firecracker where it works and QEMU elsewhere")
	flags.StringVar(&f.qemu, "qemu", qemu.DefaultBinary, "the QEMU program")
	flags.StringVar(&f.accel, "accel", "auto", "auto, kvm or tcg (QEMU's emulation in software: for development only)")
	flags.StringVar(&f.firecracker, "firecracker", firecracker.DefaultBinary, "the Firecracker program, 1.15.1 or newer")
	flags.StringVar(&f.jailer, "jailer", firecracker.DefaultJailer, "Firecracker's jailer, of the same release")
	flags.Var((*dirFlag)(&f.jails), "jail-dir", "where Firecracker's jails are made, on the file system of the data directory (default: DATA_DIR/agent/jails)")
	words := func(choices ...cobra.Completion) completion {
		return func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return choices, cobra.ShellCompDirectiveNoFileComp
		}
	}
	// They fail only when there is no such flag, and there is.
	_ = cmd.RegisterFlagCompletionFunc("driver", words(driverAuto, driverFirecracker, driverQEMU))
	_ = cmd.RegisterFlagCompletionFunc("accel", words("auto", "kvm", "tcg"))
}

// check refuses what no host could do.
func (f *driverFlags) check() error {
	switch f.name {
	case driverAuto, driverQEMU, driverFirecracker:
	default:
		return fail(exitInvalid, "", "--driver %q is none of auto, firecracker, qemu", f.name)
	}
	switch {
	case f.accel != "auto" && f.accel != "kvm" && f.accel != "tcg":
		return fail(exitInvalid, "", "--accel %q is none of auto, kvm, tcg", f.accel)
	case f.name == driverFirecracker && f.accel == "tcg":
		return fail(exitInvalid, "use --driver qemu", "Firecracker has no emulation: --accel tcg cannot be had with it")
	}
	return nil
}

// bootFiles are what drivers are made of on one host.
type bootFiles struct {
	source kernel.Source
	kernel *kernel.Kernel
	// dir is where what is made from the kernel is kept, cache where answers of probes are, jails the default of
	// driverFlags.jails.
	dir, cache, jails string
	holder            string // the program that holds monitors; empty for this one
	log               *slog.Logger
}

// machines are what a host starts microVMs with.
type machines struct {
	// driver starts them, and looks after those that another has started.
	driver *vm.Drivers
	can    vm.Capabilities
	kernel *kernel.Kernel // in the form that the driver boots
	// why says why the driver was taken rather than another; empty when somebody asked for it.
	why string
}

// choose finds the driver that works here and was asked for.
func (f *driverFlags) choose(ctx context.Context, b bootFiles) (*machines, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	const hint = "pinnace doctor says what this host can do"
	m := &machines{kernel: b.kernel}
	if f.name != driverQEMU {
		err := f.tryFirecracker(ctx, b, m)
		switch {
		case err == nil:
			return m, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case f.name == driverFirecracker:
			return nil, fail(exitInvalid, hint, "%w", err)
		}
		m.why = "no Firecracker: " + err.Error()
	}
	first, err := f.qemuDriver(b)
	if err == nil {
		m.driver = vm.NewDrivers(first, f.otherFirecracker(b)...)
		m.can, err = first.Probe(ctx)
	}
	if err != nil && m.why != "" {
		err = fmt.Errorf("%w; %s", err, m.why)
	}
	if err != nil {
		return nil, fail(exitInvalid, hint, "%w", err)
	}
	return m, nil
}

// tryFirecracker fills in m when Firecracker works here.
func (f *driverFlags) tryFirecracker(ctx context.Context, b bootFiles, m *machines) error {
	if f.accel == "tcg" {
		return errors.New("it has no emulation, which --accel tcg asks for")
	}
	// Before the kernel is unpacked, which takes a moment.
	for _, program := range []string{f.firecracker, f.jailer} {
		if _, err := exec.LookPath(program); err != nil {
			return &vm.MissingError{Program: program, Hint: firecracker.InstallHint, Err: err}
		}
	}
	vmlinux := *b.kernel
	var err error
	if vmlinux.Path, vmlinux.SHA256, err = b.source.Vmlinux(b.dir); err != nil {
		return err
	}
	first, err := f.firecrackerDriver(b, vmlinux.Path)
	if err != nil {
		return err
	}
	can, err := first.Probe(ctx)
	if err != nil {
		return err
	}
	other, err := f.qemuDriver(b)
	if err != nil {
		return err
	}
	m.driver, m.can, m.kernel = vm.NewDrivers(first, other), can, &vmlinux
	if f.name == driverAuto {
		m.why = "it works here, and is the smaller and stricter of the two"
	}
	return nil
}

func (f *driverFlags) qemuDriver(b bootFiles) (vm.Driver, error) {
	return qemu.New(qemu.Options{
		Holder: b.holder, Binary: f.qemu, Accel: qemu.Accel(f.accel), Kernel: b.kernel.Path, Initramfs: b.kernel.Initramfs,
		CacheDir: b.cache, Log: b.log,
	})
}

func (f *driverFlags) firecrackerDriver(b bootFiles, vmlinux string) (vm.Driver, error) {
	jails := f.jails
	if jails == "" {
		jails = b.jails
	}
	return firecracker.New(firecracker.Options{
		Holder: b.holder, Binary: f.firecracker, Jailer: f.jailer, JailDir: jails, Kernel: vmlinux, Initramfs: b.kernel.Initramfs,
		CacheDir: filepath.Join(b.cache, "firecracker"), Log: b.log,
	})
}

// otherFirecracker looks after Firecracker's machines where it starts none, and so never boots the kernel that it is
// given. Where it cannot run there is nothing of it.
func (f *driverFlags) otherFirecracker(b bootFiles) []vm.Driver {
	d, err := f.firecrackerDriver(b, b.kernel.Path)
	if err != nil {
		return nil
	}
	return []vm.Driver{d}
}
