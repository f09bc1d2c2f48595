package firecracker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestConformance runs the suite on the driver with the stand-in.
func TestConformance(t *testing.T) {
	removeCgroupParent(t)
	o := options(t, "suite")
	vmtest.Suite{
		Driver: newDriver(t, o), Spec: func(t *testing.T) vm.Spec { return newSpec(t, o.Kernel, o.Initramfs) },
		Patience: 20 * time.Second, Processes: true, ByOrder: true,
	}.Run(t)
	wantNoJails(t, o.JailDir)
}

// TestRealConformance runs the same suite on Firecracker itself, with real guests.
func TestRealConformance(t *testing.T) {
	driver, spec := realFirecracker(t)
	vmtest.Suite{Driver: driver, Spec: spec, Patience: 30 * time.Second, Processes: true, ByOrder: true}.Run(t)
}

// realFirecracker skips the test unless real machines are wanted and can be had here, and returns what starts them.
func realFirecracker(t *testing.T) (*firecracker.Driver, func(*testing.T) vm.Spec) {
	t.Helper()
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("boots real guests: set PINNACE_E2E=1")
	}
	for _, program := range []string{firecracker.DefaultBinary, firecracker.DefaultJailer} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s in PATH: %v", program, err)
		}
	}
	vmtest.NeedRoot(t)
	source := vmtest.NeedKernel(t)
	dir := vmtest.Dir(t)
	vmlinux, _, err := source.Vmlinux(filepath.Join(dir, "kernel"))
	if err != nil {
		t.Fatal(err)
	}
	k := vmtest.Prepare(t, source, vmtest.Build(t, vmtest.GuestInit))
	d, err := firecracker.New(firecracker.Options{
		JailDir: filepath.Join(dir, "jails"), CacheDir: filepath.Join(dir, "cache"), Kernel: vmlinux, Initramfs: k.Initramfs,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Probe(t.Context()); err != nil {
		t.Skipf("needs a usable Firecracker and KVM: %v", err)
	}
	removeCgroupParent(t)
	return d, func(t *testing.T) vm.Spec { return newSpec(t, vmlinux, k.Initramfs) }
}
