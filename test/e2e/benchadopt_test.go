package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// adopted is how many machines an agent takes over; PINNACE_BENCH_MACHINES sets another number.
const adopted = 30

// Gates of an agent that starts on a host with so many machines.
const (
	gateAdopt    = 2 * time.Second
	gateAdoptKiB = 2 << 10 // for each machine
)

// apart is a lab whose server, registry and agent are processes of their own, so that the agent can be killed. When the
// test is over, everything is stopped.
type apart struct {
	l     *lab
	t     *testing.T
	args  []string
	agent *exec.Cmd
}

func newApart(t *testing.T, flags ...string) *apart {
	t.Helper()
	l := newLab(t)
	l.stop() // it has made keys, the environment and the context
	data, run := filepath.Join(l.dir, "data"), filepath.Join(l.dir, "run")
	l.role(t, "the server is up", "server", "--data-dir", data, "--listen", l.api, "--agent-listen", l.agents)
	l.role(t, "the registry is up", "registry", "--data-dir", data, "--listen", l.registry)
	a := &apart{l: l, t: t, args: append([]string{
		"agent", "--data-dir", data, "--run-dir", run, "--kernels", kernels, "--net-prefix", l.prefix, "--host-id", "lab",
		"--uplink", "none", "--agent-server", "https://" + l.agents,
	}, flags...)}
	a.start()
	t.Cleanup(func() {
		if a.agent.ProcessState == nil {
			end(t, a.agent)
		}
		end(t, l.role(t, "joined the server", append(a.args, "--stop-vms")...)) // and the proxy with it
	})
	return a
}

func (a *apart) start() { a.agent = a.l.role(a.t, "joined the server", a.args...) }

// kill ends the agent as a crash would.
func (a *apart) kill() {
	a.t.Helper()
	if err := a.agent.Process.Signal(syscall.SIGKILL); err != nil {
		a.t.Fatal(err)
	}
	_ = a.agent.Wait()
}

// TestBenchAdopt measures what an agent takes to take over many machines, from its exec until it has heard from all their
// guests, and what memory it has for each; and fails where a gate is not met.
func TestBenchAdopt(t *testing.T) {
	if os.Getenv("PINNACE_BENCH_VM") != "1" {
		t.Skip("boots 30 machines: make bench-vm")
	}
	adopted := adopted
	if text := os.Getenv("PINNACE_BENCH_MACHINES"); text != "" {
		var err error
		if adopted, err = strconv.Atoi(text); err != nil || adopted < 1 {
			t.Fatalf("PINNACE_BENCH_MACHINES is %q, which is no number from 1", text)
		}
	}
	a := newApart(t, "--log-level", "debug")
	l := a.l
	// The first start has tried KVM and built an initramfs, which leaves a heap that says nothing of machines.
	a.kill()
	a.start()
	empty := a.settledMemory()
	ref := l.push("hello", "v1", helloImage(t, "1"))
	for i := range adopted {
		name := fmt.Sprintf("hello-%d", i)
		l.must("deploy", "--no-wait", "--image", ref, "-f", l.manifest(name, fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "96MiB", disk = "64MiB" }
rollout = { hold = "0s", boot_timeout = "10m", deadline = "30m" }
`, name)))
		if i%4 == 3 || i == adopted-1 { // more at once only wait for each other
			a.awaitReady(i + 1)
		}
	}
	full := a.settledMemory()
	idle := a.guestLoad(10 * time.Second)
	a.kill()
	alone := a.guestLoad(10 * time.Second)
	a.start()
	var took, heard, used []time.Duration
	for range 5 {
		a.kill()
		all, guests, cpu := a.timeStart(adopted)
		took, heard, used = append(took, all), append(heard, guests), append(used, cpu)
		t.Logf("taken over after %s, heard from after %s, with %s of processor time", all.Round(time.Millisecond), guests.Round(time.Millisecond), cpu)
		a.awaitReady(adopted)
	}
	after := a.settledMemory()
	for _, i := range l.instances() {
		if i.Attempt != 1 {
			t.Errorf("%s is in attempt %d", i.ID, i.Attempt)
		}
	}
	out := &table{t: t}
	least := func(all []time.Duration) time.Duration {
		return time.Duration(median(all, func(d time.Duration) float64 { return float64(d) }))
	}
	out.add(fmt.Sprintf("exec of the agent until %d machines are taken over", adopted), fmt.Sprintf("%.2f s", least(took).Seconds()), fmt.Sprintf("≤ %.0f s", gateAdopt.Seconds()), "", least(took) > gateAdopt)
	out.add("exec of the agent until it has heard from all guests", fmt.Sprintf("%.2f s", least(heard).Seconds()), "", "", false)
	out.add("processor time of the agent until then", fmt.Sprintf("%.2f s", least(used).Seconds()), "", "", false)
	out.add("what the idle guests take, all together", fmt.Sprintf("%.0f %% of a processor", 100*idle), "", "", false)
	out.add("the same, while there is no agent", fmt.Sprintf("%.0f %% of a processor", 100*alone), "", "", false)
	out.add("the agent without machines", fmt.Sprintf("%d KiB", empty), "", "", false)
	for what, kib := range map[string]int{"that has started them": full, "that has taken them over": after} {
		each := (kib - empty) / adopted
		out.add("memory for each machine, of an agent "+what, fmt.Sprintf("%d KiB", each), fmt.Sprintf("≤ %d KiB", gateAdoptKiB), "", each > gateAdoptKiB)
	}
	out.print(fmt.Sprintf("an agent with %d machines; medians of %d starts", adopted, len(took)))
}

// awaitReady waits until so many instances are ready.
func (a *apart) awaitReady(n int) {
	a.t.Helper()
	a.l.eventually(3*time.Minute, fmt.Sprintf("%d instances are ready", n), func() error {
		time.Sleep(time.Second) // the question costs processor time that the guests need
		ready := 0
		for _, i := range a.l.instances() {
			if i.State == "ready" {
				ready++
			}
		}
		if ready < n {
			return fmt.Errorf("%d are", ready)
		}
		return nil
	})
}

// timeStart starts the agent and returns how long it took until it had taken all machines over, and until it had heard
// from all guests.
func (a *apart) timeStart(adopted int) (took, heard, cpu time.Duration) {
	a.t.Helper()
	c := &counter{began: time.Now(), words: []string{"took over a machine", "the guest of a machine that was taken over answers"}}
	cmd := exec.Command(binary, a.args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.WaitDelay = a.l.env, c, c, 5*time.Second
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	a.agent = cmd
	a.l.eventually(time.Minute, "all machines are taken over, and all guests have answered", func() error {
		n, at := c.counted()
		if n[0] < adopted || n[1] < adopted {
			return fmt.Errorf("%d and %d", n[0], n[1])
		}
		took, heard = at[0], at[1]
		return nil
	})
	return took, heard, processorTime(a.t, cmd.Process.Pid)
}

// processorTime is what a process has used, to 10 ms.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	var user, system int64
	if _, err := fmt.Sscan(fields[11], &user); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(fields[12], &system); err != nil {
		t.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}

// guestLoad is how many processors the monitors take together.
func (a *apart) guestLoad(over time.Duration) float64 {
	a.t.Helper()
	sum := func() (total time.Duration) {
		for _, path := range a.l.processes("qemu-system") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			if err != nil {
				a.t.Fatal(err)
			}
			total += processorTime(a.t, pid)
		}
		return total
	}
	before, began := sum(), time.Now()
	time.Sleep(over)
	return (sum() - before).Seconds() / time.Since(began).Seconds()
}

// settledMemory is the agent's memory when it does no more than it has to. What its start has used goes back to the
// system within minutes, for which this does not wait in vain: it takes the least of the time until it has not become
// less for a while.
func (a *apart) settledMemory() int {
	a.t.Helper()
	least, since := rss(a.t, a.agent.Process.Pid), time.Now()
	for began := time.Now(); time.Since(since) < 20*time.Second && time.Since(began) < 2*time.Minute; {
		time.Sleep(500 * time.Millisecond)
		if now := rss(a.t, a.agent.Process.Pid); now < least-200 {
			least, since = now, time.Now()
		}
	}
	return least
}

// counter counts words in what a process says, and when they came last.
type counter struct {
	began time.Time
	words []string

	mu sync.Mutex
	n  [2]int
	at [2]time.Duration
}

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, w := range c.words {
		if n := bytes.Count(p, []byte(w)); n > 0 {
			c.n[i] += n
			c.at[i] = time.Since(c.began)
		}
	}
	return len(p), nil
}

func (c *counter) counted() ([2]int, [2]time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n, c.at
}
