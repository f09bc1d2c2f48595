package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker/firecrackertest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// firecrackerGuests are what the stand-in for Firecracker plays in tests of this package.
var firecrackerGuests = map[string]firecrackertest.Guest{firecrackertest.RealInit: playsInit(guesttest.Workload{})}

// playsInit is a guest of the stand-in that speaks pinnace-init's protocol and runs w.
func playsInit(w guesttest.Workload) firecrackertest.Guest {
	return func(ctx context.Context, m *firecrackertest.Machine) vmtest.End {
		return vmtest.End{Panic: w.Boot(ctx, guesttest.Machine{
			Control: m.Stream(guest.ControlPort), Logs: m.Stream(guest.LogsPort), Console: m.Console, MemoryBytes: m.MemoryBytes,
		})}
	}
}

// standIn are flags for the stand-in, and files that it boots.
func standIn(t *testing.T) (driverFlags, bootFiles) {
	t.Helper()
	dir := vmtest.Dir(t)
	writeFakeKernel(t, filepath.Join(dir, "kernels"), "6.12.1-test", nil)
	source, err := kernel.Choose(filepath.Join(dir, "kernels"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := source.Prepare(filepath.Join(dir, "boot"), []byte("\x7fELF init"))
	if err != nil {
		t.Fatal(err)
	}
	f := driverFlags{name: driverAuto, accel: "auto", qemu: "/nonexistent/qemu", jails: filepath.Join(dir, "jails")}
	f.firecracker, f.jailer = firecrackertest.Install(t)
	return f, bootFiles{
		source: source, kernel: k, dir: filepath.Join(dir, "boot"), cache: filepath.Join(dir, "cache"), log: slog.New(slog.DiscardHandler),
	}
}

// needKVM skips the test where Firecracker's driver would not even try.
func needKVM(t *testing.T) {
	t.Helper()
	vmtest.NeedRoot(t)
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs a /dev/kvm that opens, whether it works or not: ", err)
	}
	f.Close()
}

// TestChooseFirecracker: where Firecracker works it is taken, and a machine lives and ends under it; whoever comes later
// with QEMU adopts the machine and leaves no jail.
func TestChooseFirecracker(t *testing.T) {
	needKVM(t)
	for _, name := range []string{driverAuto, driverFirecracker} {
		t.Run(name, func(t *testing.T) {
			f, b := standIn(t)
			f.name = name
			m, err := f.choose(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if m.can.Driver != driverFirecracker || m.can.Version != firecrackertest.Version || (m.why == "") != (name == driverFirecracker) {
				t.Errorf("got %+v, because %q", m.can, m.why)
			}
			if m.kernel.Path == b.kernel.Path || m.kernel.SHA256 == b.kernel.SHA256 || m.kernel.Initramfs != b.kernel.Initramfs {
				t.Errorf("it boots %+v", m.kernel)
			}
			dir := filepath.Join(vmtest.Dir(t), "m")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			const uid = 870001 // nobody's
			started, err := m.driver.Start(t.Context(), vm.Spec{
				ID: "x.1", Dir: dir, Kernel: m.kernel.Path, Initramfs: m.kernel.Initramfs, VCPUs: 1, MemoryMiB: 128, UID: uid, GID: uid,
			})
			if err != nil {
				t.Fatal(err)
			}
			record := started.Record()
			started.Release()

			f.name = driverQEMU
			first, err := f.qemuDriver(b)
			if err != nil {
				t.Fatal(err)
			}
			later := vm.NewDrivers(first, f.otherFirecracker(b)...)
			adopted, err := later.Adopt(t.Context(), record)
			if err != nil {
				t.Fatal(err)
			}
			if err := adopted.Kill(); err != nil {
				t.Fatal(err)
			}
			if exit, err := adopted.Wait(t.Context()); err != nil || !exit.Killed {
				t.Errorf("got %v, %v", exit, err)
			}
			if n, err := later.Sweep(t.Context(), filepath.Dir(dir)); n != 0 || err != nil {
				t.Errorf("Sweep: got %d, %v", n, err)
			}
			for _, pattern := range []string{filepath.Join(f.jails, "*", "*"), filepath.Join(dir, "*")} {
				if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
			}
		})
	}
}

// TestChooseWithoutFirecracker: auto says why it is not Firecracker, and a driver that was asked for is not replaced.
func TestChooseWithoutFirecracker(t *testing.T) {
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "firecracker-script")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct {
		change func(*driverFlags)
		want   string // of auto, besides what it says of QEMU
	}{
		"not installed": {func(f *driverFlags) { f.firecracker = "firecracker-nonexistent" }, firecracker.InstallHint},
		"no jailer":     {func(f *driverFlags) { f.jailer = "/nonexistent/jailer" }, firecracker.InstallHint},
		"too old":       {func(f *driverFlags) { f.firecracker = script("echo Firecracker v1.14.0") }, "1.15.1 is the oldest"},
		"emulation":     {func(f *driverFlags) { f.accel = "tcg" }, "--accel tcg"},
	} {
		t.Run(name, func(t *testing.T) {
			f, b := standIn(t)
			tt.change(&f)
			_, err := f.choose(t.Context(), b)
			if missing, ok := errors.AsType[*vm.MissingError](err); !ok || missing.Package == "" || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("auto: got %v, want QEMU's package and %q", err, tt.want)
			}
			f.name = driverFirecracker
			if _, err := f.choose(t.Context(), b); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "qemu-system") {
				t.Errorf("firecracker: got %v, want %q", err, tt.want)
			}
			f.name = driverQEMU
			if _, err := f.choose(t.Context(), b); err == nil || strings.Contains(err.Error(), "irecracker") {
				t.Errorf("qemu: got %v", err)
			}
		})
	}
}

func TestChooseQEMU(t *testing.T) {
	vmtest.NeedQEMU(t)
	f, b := standIn(t)
	f.qemu, f.accel = "qemu-system-x86_64", "tcg"
	began := time.Now()
	m, err := f.choose(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if m.can.Driver != driverQEMU || m.can.Accelerator != "tcg" || !strings.Contains(m.why, "no Firecracker") || m.kernel != b.kernel {
		t.Errorf("got %+v, because %q, after %s", m.can, m.why, time.Since(began))
	}
}
