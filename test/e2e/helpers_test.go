package e2e

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// imageConfigOfTest is an image config that says something about everything that counts.
func imageConfigOfTest(c *v1.Config) {
	c.Cmd = []string{"--from", "image"}
	c.Env = append(c.Env, "FROM_IMAGE=kept")
	c.WorkingDir = "/from/image"
	c.User = "65532:65533"
}

// elfInterpreter is the dynamic loader that a program needs, or nothing for a static one.
func elfInterpreter(t *testing.T, path string) string {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "a dynamic loader"
		}
	}
	return ""
}

// asNobody runs a command without root.
func asNobody(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	// The binary may lie where others cannot go; a copy is where everybody can.
	dir, err := os.MkdirTemp("/tmp", "pinnace-nobody-") //nolint:usetesting // The test's own directory is root's.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "pinnace")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, program, 0o755)); err != nil {
		t.Fatal(err)
	}
	return func(cmd *exec.Cmd) {
		cmd.Path, cmd.Dir = path, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
}
