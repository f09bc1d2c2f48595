package cgroup_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// parent is the group below which the tests make theirs.
const parent = "pinnace-cgroup-test"

func find(t *testing.T) cgroup.Hierarchy {
	t.Helper()
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("changes the host's cgroups: set PINNACE_E2E=1")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	h, err := cgroup.Find()
	if errors.Is(err, cgroup.ErrUnsupported) {
		t.Skipf("needs a cgroup hierarchy: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Remove(parent); err != nil {
			t.Error(err)
		}
	})
	return h
}

func TestLimitKillsAndTells(t *testing.T) {
	h := find(t)
	name := filepath.Join(parent, fmt.Sprint(os.Getpid()))
	g, err := h.Create(name, cgroup.Limits{Memory: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(h.Mount, name)); err == nil {
			t.Error("the group is still there")
		}
	}()
	if killed, err := g.OOMKilled(); killed || err != nil {
		t.Errorf("new group: got %v, %v", killed, err)
	}
	// The child waits for its input to end, so that it is in the group before it eats.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "read x; exec tail /dev/zero")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("a process ate more than its group may have")
	}
	if killed, err := g.OOMKilled(); !killed || err != nil {
		t.Errorf("after the kill: got %v, %v", killed, err)
	}
}

func TestCreateTakesOverLeftovers(t *testing.T) {
	h := find(t)
	name := filepath.Join(parent, "left")
	for range 2 { // the second finds what a crash would leave
		if _, err := h.Create(name, cgroup.Limits{Memory: 1 << 20, PIDs: 10}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := h.Remove(name); err != nil {
			t.Error(err)
		}
	}
}
