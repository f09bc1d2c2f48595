package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// testMonitorOOM: a monitor that takes more than its cgroup may have is killed by the host's kernel, and that is told
// from every other kill.
func (s Suite) testMonitorOOM(t *testing.T) {
	spec := s.Spec(t)
	if spec.Cgroup == "" {
		t.Skip("needs machines in cgroups of their own, which take root")
	}
	h, err := cgroup.Find()
	if err != nil {
		t.Skipf("needs a cgroup hierarchy: %v", err)
	}
	m := s.start(t, spec)
	g := s.meet(t, m)
	squeeze(t, h, spec.Cgroup)
	g.tell("eat")
	exit := s.wait(t, m)
	if !exit.OOM || exit.Killed || exit.Signal != syscall.SIGKILL {
		t.Errorf("got %v (%+v), want an end by the host's OOM killer", exit, exit)
	}
	wantEmpty(t, spec.Dir)
	if _, err := h.Open(spec.Cgroup); err == nil {
		t.Error("the machine's cgroup is left")
	}
}

// squeeze leaves a machine's cgroup little more memory than it uses already.
func squeeze(t *testing.T, h cgroup.Hierarchy, name string) {
	t.Helper()
	usage, limit := "memory.current", "memory.max"
	if h.Version == 1 {
		usage, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
	}
	dir := filepath.Join(h.Mount, name)
	b, err := os.ReadFile(filepath.Join(dir, usage))
	if err != nil {
		t.Fatal(err)
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, limit), fmt.Append(nil, used+(8<<20)), 0); err != nil {
		t.Fatal(err)
	}
}
