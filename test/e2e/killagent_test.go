package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// kills is how often TestKillAgent kills; PINNACE_KILLS sets another number.
const kills = 3

// TestKillAgent kills the agent again and again at random, during starts and stops of one app and in the flood of lines
// of another. No workload is restarted by that, no connection is reset, no line is unaccounted for, and nothing is left
// over.
func TestKillAgent(t *testing.T) {
	times := kills
	if text := os.Getenv("PINNACE_KILLS"); text != "" {
		var err error
		if times, err = strconv.Atoi(text); err != nil {
			t.Fatalf("PINNACE_KILLS: %v", err)
		}
	}
	l := newLab(t)
	l.stop() // it has made keys, the environment and the context
	data, run := filepath.Join(l.dir, "data"), filepath.Join(l.dir, "run")
	l.role(t, "the server is up", "server", "--data-dir", data, "--listen", l.api, "--agent-listen", l.agents)
	l.role(t, "the registry is up", "registry", "--data-dir", data, "--listen", l.registry)
	agentArgs := []string{
		"agent", "--data-dir", data, "--run-dir", run, "--kernels", kernels, "--net-prefix", l.prefix, "--host-id", "lab",
		"--uplink", "none", "--agent-server", "http://" + l.agents, "--token-file", filepath.Join(data, "server", "keys", "agent.token"),
	}
	agent := l.role(t, "joined the server", agentArgs...)
	t.Cleanup(func() {
		if agent.ProcessState == nil {
			end(t, agent)
		}
		end(t, l.role(t, "joined the server", append(agentArgs, "--stop-vms")...)) // and the proxy with it
	})

	steadyPort, churnPort := freePort(t), freePort(t)
	l.must("deploy", "-f", l.manifest("steady", web("steady", steadyPort)), "--image",
		l.push("steady", "v1", workloadImage(t, "1", func(c *v1.Config) { c.Env = append(c.Env, "FLOOD=1") })))
	steady := l.connect(t, steadyPort)
	boot := steady.get("/boot")
	asking := ask(steady)
	churn := l.churn(t, churnPort)

	for round := range times {
		after := rand.N(4 * time.Second)
		time.Sleep(after)
		if err := agent.Process.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		_ = agent.Wait()
		away := rand.N(2 * time.Second)
		time.Sleep(away)
		began := time.Now()
		agent = l.role(t, "joined the server", agentArgs...)
		t.Logf("round %d: killed after %s, away for %s, back in %s", round, after.Round(time.Millisecond), away.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}

	if failures := churn(); len(failures) > 0 {
		t.Errorf("deploys of the other app: %v", failures)
	}
	l.eventually(2*time.Minute, "all is ready", func() error {
		for _, i := range l.instances() {
			if i.State != "ready" {
				return fmt.Errorf("%+v", i)
			}
		}
		return nil
	})
	if asked, err := asking(); err != nil {
		t.Errorf("the connection broke after %d requests: %v", asked, err)
	} else {
		t.Logf("%d requests on one connection", asked)
	}
	if got := steady.get("/boot"); got != boot {
		t.Errorf("the workload is of boot %q, want %q", got, boot)
	}
	l.wantNoStrays(t, run)
	var steadyInstance string
	for _, i := range l.instances() {
		if i.App == "steady" {
			steadyInstance = i.ID
			if i.Attempt != 1 {
				t.Errorf("%+v", i)
			}
		}
	}
	l.must("stop", "steady")
	l.wantAllLines(t, filepath.Join(data, "agent", "logs", steadyInstance))
	l.must("stop", "churn")
	l.wantNoStrays(t, run)
}

// ask sends requests on one connection until the function that it returns is called, which tells how many were
// answered and why the connection broke, if it did.
func ask(c *connection) func() (int, error) {
	ctx, stop := context.WithCancel(context.Background())
	var asked int
	var failed error
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil && failed == nil {
			if _, failed = c.fetch("/"); failed == nil {
				asked++
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return func() (int, error) { stop(); running.Wait(); return asked, failed }
}

// churn deploys one version of an app after the other until the function that it returns is called, which tells what
// went wrong.
func (l *lab) churn(t *testing.T, port int) func() []string {
	t.Helper()
	m := l.manifest("churn", web("churn", port))
	refs := []string{l.push("churn", "v1", workloadImage(t, "1", nil)), l.push("churn", "v2", workloadImage(t, "2", nil))}
	ctx, stop := context.WithCancel(context.Background())
	var failures []string
	var running sync.WaitGroup
	running.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			cmd := exec.Command(binary, "deploy", "-f", m, "--image", refs[n%2])
			cmd.Env, cmd.Dir = l.env, l.dir
			if out, err := cmd.CombinedOutput(); err != nil {
				failures = append(failures, fmt.Sprintf("deploy %d: %v: %s", n, err, out))
			}
		}
	})
	return func() []string { stop(); running.Wait(); return failures }
}

// wantAllLines reads the stored output of an instance: the numbers of its lines have no gap, what the workload has
// numbered has none either but for what markers count, and nothing is there twice.
func (l *lab) wantAllLines(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no logs in %s: %v", dir, err)
	}
	sort.Strings(files)
	var seq, flood, dropped, lines uint64
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewScanner(f)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			var r struct {
				Seq     uint64 `json:"seq"`
				Data    []byte `json:"data"`
				Dropped uint64 `json:"dropped"`
			}
			if json.Unmarshal(in.Bytes(), &r) != nil {
				continue // what a kill has cut is written again
			}
			if seq != 0 && r.Seq != seq+1 {
				t.Fatalf("line %d after line %d", r.Seq, seq)
			}
			seq = r.Seq
			dropped += r.Dropped
			words := strings.Fields(string(r.Data))
			if len(words) != 3 || words[0] != "flood" {
				continue
			}
			lines++
			n, err := strconv.ParseUint(words[2], 10, 64)
			if err != nil {
				t.Fatalf("line %d: %q", r.Seq, r.Data)
			}
			if flood != 0 && n != flood+1 && n > flood+1+dropped {
				t.Fatalf("the workload's line %d after %d, and %d lines are counted as lost", n, flood, dropped)
			}
			if n <= flood {
				t.Fatalf("the workload's line %d after %d", n, flood)
			}
			flood = n
		}
		f.Close()
	}
	if lines+dropped < flood && len(files) == 1 {
		t.Errorf("%d lines and %d counted as lost, of %d", lines, dropped, flood)
	}
	t.Logf("%d lines of output, %d counted as lost", lines, dropped)
}

// wantNoStrays compares what there is of machines with the instances that there are.
func (l *lab) wantNoStrays(t *testing.T, run string) {
	t.Helper()
	l.eventually(30*time.Second, "there is nothing but what runs", func() error {
		want := len(l.instances())
		for what, n := range map[string]int{
			"monitors": len(l.processes("qemu-system")), "holders": len(l.processes("pinnace-holder")),
			"directories": count(t, filepath.Join(run, "agent", "vm", "*")),
			"records":     count(t, filepath.Join(run, "agent", "vm", "*", vm.RecordName)),
			"cgroups":     l.cgroups(t), "taps": l.taps(t),
		} {
			if n != want {
				return fmt.Errorf("%d %s for %d instances", n, what, want)
			}
		}
		var temps []string
		for _, dir := range []string{run, filepath.Join(l.dir, "data")} {
			_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
				if err == nil && strings.HasPrefix(filepath.Base(path), durable.TempPattern) {
					temps = append(temps, path)
				}
				return nil
			})
		}
		if len(temps) > 0 {
			return fmt.Errorf("files that nobody finished: %v", temps)
		}
		return nil
	})
}

func count(t *testing.T, pattern string) int {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

// processes are the lab's processes of a program: they or their parents have something of the lab open.
func (l *lab) processes(program string) []string {
	var found []string
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		args := strings.Split(string(b), "\x00")
		if !strings.HasPrefix(filepath.Base(args[0]), program) {
			continue
		}
		fds, _ := filepath.Glob(filepath.Join(filepath.Dir(p), "fd", "*"))
		for _, fd := range fds {
			if target, _ := os.Readlink(fd); strings.Contains(target, l.dir) || strings.Contains(target, filepath.Base(l.dir)) {
				found = append(found, p)
				break
			}
		}
	}
	return found
}

// cgroups counts those of the lab's machines.
func (l *lab) cgroups(t *testing.T) int {
	t.Helper()
	h, err := cgroup.Find()
	if err != nil {
		return len(l.instances())
	}
	n := 0
	for _, i := range l.instances() {
		n += count(t, filepath.Join(h.Mount, "pinnace", "*", fmt.Sprintf("%s.*", i.ID)))
	}
	return n
}

// taps counts those in the lab's network.
func (l *lab) taps(t *testing.T) int {
	t.Helper()
	out, err := exec.Command("nsenter", "--net="+filepath.Join(l.dir, "run", "network", "netns", "dev"), "ip", "-o", "link", "show", "type", "tun").CombinedOutput()
	if err != nil {
		if len(l.instances()) == 0 {
			return 0 // the network is gone with its last instance
		}
		t.Fatalf("ip link: %v\n%s", err, out)
	}
	return strings.Count(string(out), "\n")
}
