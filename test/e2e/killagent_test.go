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
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// kills is how often TestKillAgent kills; PINNACE_KILLS sets another number.
const kills = 3

// TestKillAgent kills the agent again and again at random: while it takes over, and otherwise during starts and stops of
// one app, with all the instances of both apps in a flood of lines. No workload is restarted by that, no connection is
// reset, no line of any instance is unaccounted for, and nothing is left over.
func TestKillAgent(t *testing.T) {
	times := kills
	if text := os.Getenv("PINNACE_KILLS"); text != "" {
		var err error
		if times, err = strconv.Atoi(text); err != nil {
			t.Fatalf("PINNACE_KILLS: %v", err)
		}
	}
	a := newApart(t)
	l := a.l
	flood := func(c *v1.Config) { c.Env = append(c.Env, "FLOOD=1") }
	steadyPort, churnPort := freePort(t), freePort(t)
	l.must("deploy", "-f", l.manifest("steady", web("steady", steadyPort)), "--image", l.push("steady", "v1", workloadImage(t, "1", flood)))
	steady := l.connect(t, steadyPort)
	boot := steady.get("/boot")
	asking := ask(steady)
	churn := l.churn(t, churnPort, flood)

	halfway := 0
	for round := range times {
		after := rand.N(4 * time.Second)
		time.Sleep(after)
		a.kill()
		away := rand.N(2 * time.Second)
		time.Sleep(away)
		if rand.N(3) == 0 { // another one does not get as far as having taken over
			half := exec.Command(binary, a.args...)
			half.Env = l.env
			if err := half.Start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(rand.N(1500 * time.Millisecond))
			_ = half.Process.Kill() // it may have ended, which the next one tells
			_ = half.Wait()
			halfway++
		}
		began := time.Now()
		a.start()
		t.Logf("round %d: %s: killed after %s, away for %s, back in %s", round, began.UTC().Format(time.StampMilli), after.Round(time.Millisecond), away.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	}

	deploys, failures := churn()
	if len(failures) > 0 {
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
	asked, err := asking()
	if err != nil {
		t.Errorf("the connection broke after %d requests: %v", asked, err)
	}
	if got := steady.get("/boot"); got != boot {
		t.Errorf("the workload is of boot %q, want %q", got, boot)
	}
	l.wantNoStrays(t)
	l.must("stop", "steady")
	l.must("stop", "churn")
	all := l.instances("--all")
	lines, dropped := uint64(0), uint64(0)
	for _, i := range all {
		if i.Attempt != 1 {
			t.Errorf("it was restarted: %+v", i)
		}
		n, lost := l.wantAllLines(t, filepath.Join(l.dir, "data", "agent", "logs", i.ID))
		lines, dropped = lines+n, dropped+lost
	}
	l.wantNoStrays(t)
	t.Logf("%d kills of an agent and %d of one that was taking over; %d deploys, %d instances, %d requests on one connection, %d lines of output and %d counted as dropped",
		times, halfway, deploys, len(all), asked, lines, dropped)
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
			began := time.Now()
			if _, failed = c.fetch("/"); failed == nil {
				asked++
			} else {
				failed = fmt.Errorf("at %s, %s after it was asked: %w", time.Now().UTC().Format(time.StampMilli), time.Since(began).Round(time.Millisecond), failed)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	return func() (int, error) { stop(); running.Wait(); return asked, failed }
}

// churn deploys one version of an app after the other until the function that it returns is called, which tells how
// often and what went wrong.
func (l *lab) churn(t *testing.T, port int, change func(*v1.Config)) func() (int, []string) {
	t.Helper()
	m := l.manifest("churn", strings.Replace(web("churn", port), `boot_timeout = "60s"`, `boot_timeout = "5m"`, 1))
	refs := []string{l.push("churn", "v1", workloadImage(t, "1", change)), l.push("churn", "v2", workloadImage(t, "2", change))}
	ctx, stop := context.WithCancel(context.Background())
	var failures []string
	deploys := 0
	var running sync.WaitGroup
	running.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			deploys++
			cmd := exec.Command(binary, "deploy", "-f", m, "--image", refs[n%2])
			cmd.Env, cmd.Dir = l.env, l.dir
			if out, err := cmd.CombinedOutput(); err != nil {
				failures = append(failures, fmt.Sprintf("deploy %d: %v: %s", n, err, out))
			}
		}
	})
	return func() (int, []string) { stop(); running.Wait(); return deploys, failures }
}

// wantAllLines reads the stored output of an instance: the numbers of its lines have no gap, what the workload has
// numbered has none either but for what markers count, and nothing is there twice. It returns how many lines of the
// workload there are, and how many are counted as dropped.
func (l *lab) wantAllLines(t *testing.T, dir string) (lines, dropped uint64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no logs in %s: %v", dir, err)
	}
	sort.Strings(files)
	var seq, flood uint64
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
	return lines, dropped
}

// wantNoStrays compares what there is of machines with the instances that there are.
func (l *lab) wantNoStrays(t *testing.T) {
	t.Helper()
	run := filepath.Join(l.dir, "run")
	l.eventually(30*time.Second, "there is nothing but what runs", func() error {
		want := len(l.instances())
		for what, n := range map[string]int{
			"monitors": len(l.processes("qemu-system")), "holders": len(l.processes("pinnace-holder")),
			"directories": count(t, filepath.Join(run, "agent", "vm", "*")),
			"scratches":   count(t, filepath.Join(l.dir, "data", "agent", "disks", "*")),
			"records":     count(t, filepath.Join(run, "agent", "vm", "*", vm.RecordName)),
			"cgroups":     l.cgroups(t), "taps": l.taps(t),
			"pairs of channels": l.sockets(filepath.Join(run, "agent", "vm")) / 2,
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

// cgroupsOf counts all of the lab's, whichever instance they are of.
func (l *lab) cgroupsOf(t *testing.T) int {
	t.Helper()
	h, err := cgroup.Find()
	if err != nil {
		return 0
	}
	n := 0
	for _, i := range l.instances("--all") {
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
