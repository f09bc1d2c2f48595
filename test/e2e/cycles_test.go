package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// TestCycles starts what ends by itself, or is stopped, again and again, and counts everything that could be left on the
// host of it. PINNACE_CYCLES says how often.
func TestCycles(t *testing.T) {
	cycles := 2
	if text := os.Getenv("PINNACE_CYCLES"); text != "" {
		var err error
		if cycles, err = strconv.Atoi(text); err != nil || cycles < 1 {
			t.Fatalf("PINNACE_CYCLES is %q, which is no number from 1", text)
		}
	}
	a := newApart(t)
	l := a.l
	temps := filepath.Join(l.dir, "tmp")
	if err := os.Mkdir(temps, 0o700); err != nil {
		t.Fatal(err)
	}
	l.env = append(l.env, "TMPDIR="+temps)
	a.kill()
	a.start() // with that directory

	// What runs all the time keeps the environment's network, which comes and goes with what is in it.
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	l.must("deploy", "--image", ref, "-f", l.manifest("still", web("still", freePort(t))))
	const atOnce = 2
	var done atomic.Int32
	cycle := func(worker int) error {
		name := fmt.Sprintf("once-%d", worker)
		command := `["exit", "0"]`
		if done.Load()%3 == 2 { // which has to be stopped, and killed
			command = `["ignore"]`
		}
		m := l.manifest(name, fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "96MiB", disk = "64MiB" }
command = %s
restart = "never"
rollout = { hold = "0s", boot_timeout = "5m", deadline = "10m" }
stop = { drain = "0s", timeout = "1s" }
`, name, command))
		if r := l.pinnace("deploy", "-f", m, "--image", ref); r.status != 0 {
			return fmt.Errorf("deploy: %s", r)
		}
		if r := l.pinnace("stop", name); r.status != 0 {
			return fmt.Errorf("stop: %s", r)
		}
		return nil
	}
	run := func(n int) {
		t.Helper()
		target := done.Load() + int32(n)
		var started atomic.Int32
		started.Store(done.Load())
		var workers sync.WaitGroup
		for w := range atOnce {
			workers.Go(func() {
				for started.Add(1) <= target {
					if err := cycle(w); err != nil {
						t.Errorf("cycle %d: %v", done.Load(), err)
						return
					}
					if n := done.Add(1); n%25 == 0 {
						t.Logf("%d cycles", n)
					}
				}
			})
		}
		workers.Wait()
	}
	run(atOnce) // after which caches, connections and the like are there
	before := a.settled()
	run(cycles)
	l.eventually(2*time.Minute, "nothing is left of what has ended", func() error {
		after := a.inventory()
		for _, what := range slices.Sorted(maps.Keys(after)) {
			if after[what] > before[what] {
				return fmt.Errorf("%d %s, and %d before", after[what], what, before[what])
			}
		}
		return nil
	})
	t.Logf("%d cycles; before %v, after %v", done.Load(), before, a.inventory())
	t.Logf("resident memory of the agent: %d KiB", rss(t, a.agent.Process.Pid))
}

// settled waits until what there is stays the same, and returns it.
func (a *apart) settled() map[string]int {
	a.t.Helper()
	last := a.inventory()
	a.l.eventually(time.Minute, "what there is stays the same", func() error {
		time.Sleep(time.Second)
		now := a.inventory()
		was := last
		last = now
		if !maps.Equal(now, was) {
			return fmt.Errorf("%v, then %v", was, now)
		}
		return nil
	})
	return last
}

// inventory counts what machines and their agent have on the host.
func (a *apart) inventory() map[string]int {
	l, run := a.l, filepath.Join(a.l.dir, "run")
	files, unfinished := 0, 0
	for _, dir := range []string{run, filepath.Join(l.dir, "data", "agent"), filepath.Join(l.dir, "tmp")} {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil: // it is going
			case strings.HasPrefix(e.Name(), durable.TempPattern):
				unfinished++
			case strings.HasPrefix(path, filepath.Join(l.dir, "data", "agent", "logs")): // kept on purpose
			default:
				files++
			}
			return nil
		})
	}
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.agent.Process.Pid))
	links, _ := filepath.Glob("/sys/class/net/" + l.prefix + "*")
	mounts, _ := os.ReadFile("/proc/mounts")
	return map[string]int{
		"monitors": len(l.processes("qemu-system")), "holders": len(l.processes("pinnace-holder")), "processes": len(l.processes("")),
		"cgroups": l.cgroupsOf(a.t), "taps": l.taps(a.t), "devices": len(links), "namespaces": count(a.t, filepath.Join(run, "network", "netns", "*")),
		"mounts": strings.Count(string(mounts), l.dir), "sockets": l.sockets(run), "files": files, "unfinished files": unfinished,
		"open files of the agent": len(fds),
	}
}

// sockets counts the unix sockets below dir.
func (l *lab) sockets(dir string) int {
	n := 0
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type()&fs.ModeSocket != 0 {
			n++
		}
		return nil
	})
	return n
}
