// Package e2e tests the released binary as a user has it: it starts pinnace dev, pushes images to its
// registry with another client, deploys them into real microVMs, and looks at what answers.
//
// The tests need root, QEMU and a guest kernel, and run when PINNACE_E2E=1; "make test" sees to all of it.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/firecracker/firecrackertest"
)

// Set by TestMain.
var (
	binary   string // pinnace
	kernels  string // directory of guest kernels
	workload []byte // the program of ./workload, static
	skip     string // why nothing can be tested here
)

// TestMain is also the stand-in for Firecracker and its jailer, when it is started by their names.
func TestMain(m *testing.M) {
	if code, ok := firecrackertest.Main(firecrackerGuests); ok {
		os.Exit(code)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	skip = unfit()
	if skip == "" {
		dir, err := os.MkdirTemp("", "pinnace-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if err := prepare(dir); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the end-to-end tests:", err)
			return 1
		}
	}
	return m.Run()
}

func unfit() string {
	switch {
	case os.Getenv("PINNACE_E2E") != "1":
		return "needs PINNACE_E2E=1: run make test"
	case os.Geteuid() != 0:
		return "needs root: makes network namespaces and tap devices"
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return "needs QEMU: apt-get install qemu-system-x86"
	}
	kernels = os.Getenv("PINNACE_KERNELS")
	if kernels == "" {
		kernels = "/var/lib/pinnace/kernels"
	}
	if found, err := filepath.Glob(filepath.Join(kernels, "*", "vmlinuz")); err != nil || len(found) == 0 {
		return "needs a guest kernel: make kernel"
	}
	binary = os.Getenv("PINNACE_BIN")
	if _, err := os.Stat(binary); err != nil {
		return "needs the binary: make build, and PINNACE_BIN"
	}
	return ""
}

func prepare(dir string) error {
	out := filepath.Join(dir, "workload")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", out, "./workload")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the workload: %w\n%s", err, text)
	}
	var err error
	workload, err = os.ReadFile(out)
	return err
}
