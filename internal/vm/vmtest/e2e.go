package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pinnacehq/pinnace/internal/kernel"
)

// DefaultKernels is where guest kernels are looked for unless PINNACE_KERNELS names another directory.
const DefaultKernels = "/var/lib/pinnace/kernels"

// NeedGuests skips the test unless real guests are wanted (PINNACE_E2E=1) and can be had here, and returns
// the guest kernel to boot.
func NeedGuests(t testing.TB) kernel.Source {
	t.Helper()
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("boots real guests, which takes long: set PINNACE_E2E=1")
	}
	NeedQEMU(t)
	return NeedKernel(t)
}

// NeedQEMU skips the test unless QEMU is installed.
func NeedQEMU(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs QEMU: apt-get install qemu-system-x86")
	}
}

// NeedKernel skips the test unless there is a kernel to boot guests with, and returns it.
func NeedKernel(t testing.TB) kernel.Source {
	t.Helper()
	dir := os.Getenv("PINNACE_KERNELS")
	if dir == "" {
		dir = DefaultKernels
	}
	source, err := kernel.Find(dir)
	if err != nil {
		t.Skipf("needs a guest kernel in %s (PINNACE_KERNELS): %v", dir, err)
	}
	return source
}

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and other users' processes")
	}
}

// Build compiles a static program from the package at path, as "go build" names it, and returns the file.
func Build(t testing.TB, path string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, path)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", path, err, b)
	}
	return out
}

// Prepare makes what boots init, a program file made by Build, as PID 1.
func Prepare(t testing.TB, source kernel.Source, init string) *kernel.Kernel {
	t.Helper()
	b, err := os.ReadFile(init)
	if err != nil {
		t.Fatal(err)
	}
	k, err := source.Prepare(Dir(t), b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// GuestInit is the package of the conformance suite's PID 1, to give to Build.
const GuestInit = "github.com/pinnacehq/pinnace/internal/vm/vmtest/testdata/init"

// Dir makes a directory that other users can enter, with a short name, and removes it after the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmtest-") //nolint:usetesting // other users can't enter what t.TempDir makes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // monitors of other users read what tests put here
		t.Fatal(err)
	}
	return dir
}
