package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAgentLeavesNoCore has an agent crash where everything asks for a core dump: there is none, as secrets of workloads
// would be in it. A registry, which holds none, shows that the kernel would write one.
func TestAgentLeavesNoCore(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil || strings.ContainsAny(string(pattern), "|/") {
		t.Skipf("core dumps do not go to the directory of who crashes: core_pattern is %q", pattern)
	}
	a := newApart(t)
	a.kill()
	if !a.crashes(t, "the registry is up", "registry", "--data-dir", filepath.Join(a.l.dir, "other"), "--listen", freeAddr(t)) {
		t.Skip("nothing leaves a core here")
	}
	if a.crashes(t, "joined the server", a.args...) {
		t.Error("the agent has left a core")
	}
	a.start()
}

// crashes runs a role, has it crash, and tells whether it left a core.
func (a *apart) crashes(t *testing.T, ready string, args ...string) bool {
	t.Helper()
	out := &lockedBuffer{}
	cmd := exec.Command("sh", append([]string{"-c", `ulimit -c unlimited; exec "$@"`, "sh", binary}, args...)...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(a.l.env, "GOTRACEBACK=crash")
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, out, 5*time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a.l.eventually(time.Minute, args[0]+" is ready", func() error {
		if strings.Contains(out.String(), ready) {
			return nil
		}
		return os.ErrNotExist
	})
	if err := cmd.Process.Signal(syscall.SIGABRT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it does not end well
	return count(t, filepath.Join(cmd.Dir, "core*")) > 0
}
