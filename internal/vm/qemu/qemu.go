// Package qemu runs machines with QEMU's "microvm" machine type, under KVM where it works and emulated in
// software (TCG) where it does not.
//
// A monitor has its own uid and no capabilities, runs in the network namespace of its machine and, when the
// caller is root, in a mount namespace that holds QEMU's program files read-only, the kernel and nothing
// else; its seccomp filter denies new processes and privileges. It reaches disks, tap, console and channels
// only through file descriptors that the caller opened.
//
// Monitors outlive the process that started them, in the hands of a holder (package holder), and another process
// adopts them by their record.
//
// The package does not know what runs in the guest, and does not speak QMP: a machine is stopped through
// the guest's own protocol, or killed.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// An Accel says how the guest's instructions are executed.
type Accel string

// The accelerators. Auto is KVM where a probe has shown that it works, else TCG.
const (
	Auto Accel = "auto"
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
)

// Defaults of Options.
const (
	DefaultBinary = "qemu-system-x86_64"
	// DefaultCPU has every feature that the accelerator can give: images built for x86-64-v3 need AVX2. A
	// small model such as Nehalem boots a fifth faster under TCG.
	DefaultCPU = "max"
	// DefaultTranslationCacheMiB bounds TCG's cache of translated code, which QEMU would let grow to an
	// eighth of the guest's memory or a gigabyte.
	DefaultTranslationCacheMiB = 64
	// DefaultProbeUID is Debian's "nobody".
	DefaultProbeUID = 65534
)

const (
	driverName    = "qemu"
	debianPackage = "qemu-system-x86"
	// maxDisks is the number of virtio-mmio slots of the microvm machine, 24, less those of the channels
	// and of the network device.
	maxDisks = 22
	// overheadMiB is what QEMU needs beside the guest's memory and the translation cache.
	overheadMiB = 64
)

// Options configure a driver. The zero value of every field but Kernel, Initramfs and CacheDir, which
// Auto needs for its probe, has a good default.
type Options struct {
	// Binary is QEMU's name in PATH, or a path.
	Binary string
	Accel  Accel
	CPU    string
	// Holder is the program file of package holder, or of a program that begins with holder.Enter. The
	// default is the running program.
	Holder string
	// TranslationCacheMiB is the size of TCG's code cache.
	TranslationCacheMiB int
	// Kernel and Initramfs are what the probe for KVM boots; the first byte that the guest sends on the
	// control channel proves that KVM works.
	Kernel, Initramfs string
	// CacheDir is where the probe's answer is remembered. It is created when missing.
	CacheDir string
	// ProbeUID and ProbeGID are the identity of the probe's monitor, used when the caller is root.
	ProbeUID, ProbeGID uint32
	// Log gets what cannot be reported to a caller. Nil discards.
	Log *slog.Logger
}

// A Driver starts machines with QEMU.
type Driver struct {
	opts Options

	// probing is held during a probe, so that concurrent callers share one.
	probing sync.Mutex
	host    *host // guarded by probing; nil until the first successful probe
}

var _ vm.Driver = (*Driver)(nil)

// host is what the driver found on this host.
type host struct {
	binary    string // resolved
	caps      vm.Capabilities
	hierarchy *cgroup.Hierarchy // nil: memory is not accounted
	tscKHz    int64             // 0: unknown
}

// New returns a driver. It looks at nothing on the host yet; Probe and Start do.
func New(opts Options) (*Driver, error) {
	opts.Binary = or(opts.Binary, DefaultBinary)
	opts.Accel = or(opts.Accel, Auto)
	opts.CPU = or(opts.CPU, DefaultCPU)
	opts.TranslationCacheMiB = or(opts.TranslationCacheMiB, DefaultTranslationCacheMiB)
	opts.ProbeUID = or(opts.ProbeUID, DefaultProbeUID)
	opts.ProbeGID = or(opts.ProbeGID, DefaultProbeUID)
	if opts.Holder == "" && !holder.Able() {
		return nil, errors.New("no program to hold monitors is named, and this one is none, as it does not call holder.Enter")
	}
	if opts.Holder == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program that is to hold monitors: %w", err)
		}
		opts.Holder = self
	}
	opts.Log = or(opts.Log, slog.New(slog.DiscardHandler))
	switch opts.Accel {
	case KVM, TCG:
	case Auto:
		if opts.Kernel == "" || opts.Initramfs == "" || opts.CacheDir == "" {
			return nil, errors.New("accelerator \"auto\" needs a kernel, an initramfs and a cache directory for its probe")
		}
	default:
		return nil, fmt.Errorf("accelerator %q is none of auto, kvm, tcg", opts.Accel)
	}
	if strings.ContainsAny(opts.CPU, " \t\n") || opts.TranslationCacheMiB < 1 {
		return nil, fmt.Errorf("CPU model %q or translation cache of %d MiB is not valid", opts.CPU, opts.TranslationCacheMiB)
	}
	return &Driver{opts: opts}, nil
}

func or[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Name implements vm.Driver.
func (d *Driver) Name() string { return driverName }

// Start implements vm.Driver.
func (d *Driver) Start(ctx context.Context, spec vm.Spec) (vm.Machine, error) {
	h, err := d.found(ctx)
	if err != nil {
		return nil, err
	}
	m, err := d.start(ctx, h, spec, Accel(h.caps.Accelerator))
	if err != nil {
		return nil, fmt.Errorf("start machine %s: %w", spec.ID, err)
	}
	return m, nil
}

// start runs a machine with the accelerator. It is apart from Start because the probe calls it too.
func (d *Driver) start(ctx context.Context, h *host, spec vm.Spec, accel Accel) (_ *machine, err error) {
	if err := spec.Validate(maxDisks); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := refuseUnprivileged(spec); err != nil {
		return nil, err
	}
	st := &starting{spec: spec, log: d.opts.Log.With("machine", spec.ID), holder: d.opts.Holder}
	defer func() {
		if err != nil {
			st.undo()
		}
	}()
	if err := st.open(); err != nil {
		return nil, vm.JailError(err)
	}
	if spec.Cgroup != "" && h.hierarchy != nil {
		limits, err := spec.Limits(h.caps.OverheadMiB)
		if err != nil {
			return nil, err
		}
		if st.group, err = h.hierarchy.Create(spec.Cgroup, limits); err != nil {
			return nil, vm.JailError(err)
		}
	}
	args := arguments(d.opts, h, spec, accel, st.files)
	return st.spawn(h.binary, args, accel == KVM)
}

// refuseUnprivileged says in words what would otherwise be a bare "operation not permitted".
func refuseUnprivileged(spec vm.Spec) error {
	uid, gid := os.Geteuid(), os.Getegid()
	switch {
	case uid == 0 && spec.UID == 0:
		return &vm.SpecError{Field: "UID", Reason: "is 0: a monitor never runs as root"}
	case uid != 0 && (int(spec.UID) != uid || int(spec.GID) != gid):
		return &vm.SpecError{Field: "UID", Reason: fmt.Sprintf("is %d:%d, but only root can start a monitor that is not %d:%d", spec.UID, spec.GID, uid, gid)}
	case uid != 0 && spec.Netns != "":
		return &vm.SpecError{Field: "Netns", Reason: "can be entered by root only"}
	}
	return nil
}

// findBinary resolves QEMU's program file.
func findBinary(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return "", &vm.MissingError{Program: name, Package: debianPackage, Err: err}
	}
	return path, nil
}

// version asks QEMU for its version.
func version(ctx context.Context, binary string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return "", &vm.MissingError{Program: binary, Package: debianPackage, Err: err}
	}
	line, _, _ := strings.Cut(string(out), "\n")
	v, ok := strings.CutPrefix(line, "QEMU emulator version ")
	if !ok {
		return "", fmt.Errorf("%s does not look like QEMU: --version printed %.80q", binary, line)
	}
	v, _, _ = strings.Cut(v, " ")
	return v, nil
}
