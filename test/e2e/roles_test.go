package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestSeparateRoles runs server, registry and agent as processes of their own, as on a real host: the agent
// comes and goes, the server is away for a while, and what runs goes on running.
func TestSeparateRoles(t *testing.T) {
	l := newLab(t)
	l.stop() // it has made keys, the environment and the context
	data, run := filepath.Join(l.dir, "data"), filepath.Join(l.dir, "run")
	port := freePort(t)

	server := l.role(t, "the server is up", "server", "--data-dir", data, "--listen", l.api, "--agent-listen", l.agents)
	l.role(t, "the registry is up", "registry", "--data-dir", data, "--listen", l.registry)
	agentArgs := []string{
		"agent", "--data-dir", data, "--run-dir", run, "--kernels", kernels, "--net-prefix", l.prefix, "--host-id", "lab",
		"--uplink", "none", "--agent-server", "https://" + l.agents,
	}
	agent := l.role(t, "joined the server", agentArgs...)
	l.must("deploy", "-f", l.manifest("app", web("app", port)), "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("got %q", got)
	}
	t.Logf("resident memory in KiB: server %d, agent %d, proxy %d", rss(t, server.Process.Pid), rss(t, agent.Process.Pid), rss(t, l.proxyPID(t)))

	// Without the server nothing that runs is touched.
	end(t, server)
	time.Sleep(3 * time.Second)
	if got := l.get(port, "/"); got != "version 1" {
		t.Errorf("while the server is away: got %q", got)
	}
	l.refuse(6, []string{"no server listens"}, "status")
	l.role(t, "the server is up", "server", "--data-dir", data, "--listen", l.api, "--agent-listen", l.agents)
	l.eventually(30*time.Second, "the server knows what runs", func() error {
		if list := l.instances(); len(list) != 1 || list[0].State != "ready" || list[0].Attempt != 1 {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})

	// An agent that ends, as for an upgrade, leaves what runs to the next one.
	boot := l.get(port, "/boot")
	end(t, agent)
	if got := l.get(port, "/boot"); got != boot {
		t.Errorf("without an agent: got boot %q, want %q", got, boot)
	}
	l.role(t, "joined the server", append(agentArgs, "--stop-vms")...)
	l.eventually(60*time.Second, "the next agent has the instance", func() error {
		if list := l.instances(); len(list) != 1 || list[0].State != "ready" || list[0].Attempt != 1 {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	if got := l.get(port, "/boot"); got != boot {
		t.Errorf("after the agent's restart: got boot %q, want %q", got, boot)
	}
}

// role starts one role and waits until it says ready. It is ended with the test, the last one first.
func (l *lab) role(t *testing.T, ready string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = l.env
	out := &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			end(t, cmd)
		}
		if t.Failed() {
			t.Logf("pinnace %s said:\n%s", args[0], out)
		}
	})
	l.eventually(60*time.Second, args[0]+" is ready", func() error {
		if !strings.Contains(out.String(), ready) {
			return fmt.Errorf("it said:\n%s", out)
		}
		return nil
	})
	return cmd
}

// end stops a role as an operator does.
func end(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	// The proxy, which has the agent's standard error, may outlive it.
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Errorf("%v ended with %v", cmd.Args[:2], err)
	}
}

// rss is the resident memory of a process in KiB.
func rss(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}

// proxyPID is the process of the lab's proxy.
func (l *lab) proxyPID(t *testing.T) int {
	t.Helper()
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, _ := os.ReadFile(path)
		if args := strings.Split(string(b), "\x00"); len(args) > 1 && args[1] == "proxy" && strings.Contains(string(b), l.dir) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatal("no proxy runs")
	return 0
}
