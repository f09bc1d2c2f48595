package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// Gates and goals of what a microVM costs. Times are ratios to the same kernel with an init that does nothing, because
// they depend on the host more than on us.
const (
	gateFirst200, goalFirst200 = 1.7, 1.35
	goalExec                   = 0.30
	gateInitKiB, goalInitKiB   = 16 << 10, 12 << 10
	gateStop                   = 2 * time.Second // beyond the grace
)

// TestBenchVM measures what a microVM costs, prints it, and fails where a gate is not met. PINNACE_BENCH_BOOTS says how
// many boots of each kind a median is of.
func TestBenchVM(t *testing.T) {
	if os.Getenv("PINNACE_BENCH_VM") != "1" {
		t.Skip("takes minutes, and a machine without other work: make bench-vm")
	}
	boots := 10
	if text := os.Getenv("PINNACE_BENCH_BOOTS"); text != "" {
		var err error
		if boots, err = strconv.Atoi(text); err != nil || boots < 1 {
			t.Fatalf("PINNACE_BENCH_BOOTS is %q, which is no number from 1", text)
		}
	}
	b := newBootBench(t)
	out := &table{t: t}
	b.bootApp() // which pulls the image and fills the caches
	b.bootApp()
	for _, condition := range []string{"quiet", "loaded"} {
		end := func() {}
		if condition == "loaded" {
			end = busy(t)
		}
		b.measureBoots(out, condition, boots)
		b.measureStop(out, condition)
		end()
	}
	b.measureInit(out)
	b.measureLines(out)
	out.print(fmt.Sprintf("%s, %d processors, load before %s; medians of %d boots of each, in turn", b.idle.Release, runtime.NumCPU(), loadAverage(), boots))
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Fields(string(text))[0]
}

func (b *bootBench) measureBoots(out *table, condition string, boots int) {
	b.t.Helper()
	var all []aBoot
	for n := range boots {
		var boot aBoot
		if n%2 == 0 {
			idle := b.bootIdle()
			boot = b.bootApp()
			boot.idle = idle
		} else {
			boot = b.bootApp()
			boot.idle = b.bootIdle()
		}
		all = append(all, boot)
		b.t.Logf("%s: do-nothing %s, first 200 %s, init to exec %s of which waiting %s", condition, boot.idle.Round(time.Millisecond), boot.first200.Round(time.Millisecond), boot.exec, boot.waited)
	}
	idle := median(all, func(a aBoot) float64 { return a.idle.Seconds() })
	first := median(all, func(a aBoot) float64 { return a.first200.Seconds() })
	exec := median(all, func(a aBoot) float64 { return a.exec.Seconds() })
	ratio := median(all, func(a aBoot) float64 { return a.first200.Seconds() / a.idle.Seconds() })
	share := median(all, func(a aBoot) float64 { return a.exec.Seconds() / a.idle.Seconds() })
	out.add(condition+": do-nothing boot, exec of QEMU to its end", fmt.Sprintf("%.2f s", idle), "", "", false)
	out.add(condition+": exec of QEMU to the first 200", fmt.Sprintf("%.2f s", first), "", "", false)
	out.add(condition+": that, to a do-nothing boot", fmt.Sprintf("%.2f", ratio), fmt.Sprintf("≤ %.2f", gateFirst200), fmt.Sprintf("≤ %.2f", goalFirst200), ratio > gateFirst200)
	out.add(condition+": start of init to exec of the workload", fmt.Sprintf("%.2f s", exec), "", "", false)
	out.add(condition+": that, to a do-nothing boot", fmt.Sprintf("%.0f %%", 100*share), "", fmt.Sprintf("≤ %.0f %%", 100*goalExec), false)
}

// measureStop stops an app that ignores the stop signal: it gets its grace, and then the command has to return.
func (b *bootBench) measureStop(out *table, condition string) {
	b.t.Helper()
	const grace = 3 * time.Second
	name := "deaf-" + condition
	ref := b.lab.push("deaf", "v1", endsImage(b.t, "ignore"))
	b.lab.must("deploy", "--image", ref, "-f", b.lab.manifest(name, fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "128MiB", disk = "64MiB" }
rollout = { hold = "0s", boot_timeout = "2m" }
stop = { drain = "0s", timeout = "%s" }
`, name, grace)))
	b.lab.awaitOutput(name, "ignoring SIGTERM")
	began := time.Now()
	b.lab.must("stop", name)
	took := time.Since(began)
	out.add(condition+": stop of what ignores the signal, beyond the grace", fmt.Sprintf("%.2f s", (took-grace).Seconds()),
		fmt.Sprintf("≤ %.0f s", gateStop.Seconds()), "", took > grace+gateStop || took < grace)
}

// measureInit reads what memory init has, before and after it has carried much output.
func (b *bootBench) measureInit(out *table) {
	b.t.Helper()
	if _, err := b.ask("/flood?100000"); err != nil {
		b.t.Fatal(err)
	}
	text, err := b.ask("/")
	if err != nil {
		b.t.Fatal(err)
	}
	for name, what := range map[string]string{"VmRSS:": "init's memory after 10 MB of output", "VmHWM:": "the most that it was"} {
		_, after, _ := strings.Cut(text, name)
		var kib int
		if _, err := fmt.Sscan(after, &kib); err != nil {
			b.t.Fatalf("%q: %v", text, err)
		}
		out.add(what, fmt.Sprintf("%.1f MiB", float64(kib)/1024), fmt.Sprintf("≤ %d MiB", gateInitKiB>>10), fmt.Sprintf("≤ %d MiB", goalInitKiB>>10), kib > gateInitKiB)
	}
}

// measureLines compares the way of a line through all of Pinnace with the bare serial device.
func (b *bootBench) measureLines(out *table) {
	b.t.Helper()
	const lines = 200000
	began := time.Now()
	if _, err := b.ask(fmt.Sprintf("/flood?%d", lines)); err != nil {
		b.t.Fatal(err)
	}
	ours := lines / time.Since(began).Seconds() // less than 1 % of it is under way still
	source, err := kernel.Find(kernels)
	if err != nil {
		b.t.Fatal(err)
	}
	m, err := b.driver.Start(b.t.Context(), b.machine(vmtest.Prepare(b.t, source, vmtest.Build(b.t, vmtest.GuestInit))))
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() {
		_ = m.Kill()
		_, _ = m.Wait(context.Background())
	}()
	control, err := m.Dial(b.t.Context(), vm.Control)
	if err != nil {
		b.t.Fatal(err)
	}
	defer control.Close()
	logs, err := m.Dial(b.t.Context(), vm.Logs)
	if err != nil {
		b.t.Fatal(err)
	}
	defer logs.Close()
	answers := bufio.NewScanner(control)
	if !answers.Scan() || answers.Text() != "hello" {
		b.t.Fatalf("got %q, %v", answers.Text(), answers.Err())
	}
	each, batched := b.drainLines(control, logs, 20000, 1), b.drainLines(control, logs, 500000, 32<<10)
	out.add("lines of 100 bytes a second, kept by the agent", fmt.Sprintf("%.0f", ours), "", "", false)
	out.add("the bare device: one write a line", fmt.Sprintf("%.0f", each), "", "", false)
	out.add("the bare device: 32 KiB a write", fmt.Sprintf("%.0f", batched), "", "", false)
	out.add("kept, to the bare device with one write a line", fmt.Sprintf("%.0f %%", 100*ours/each), "", "≥ 100 %", false)
}

// drainLines has the guest write lines of 100 bytes to the log channel, and returns how many a second come.
func (b *bootBench) drainLines(control, logs net.Conn, lines, size int) float64 {
	b.t.Helper()
	began := time.Now()
	if _, err := fmt.Fprintf(control, "flood %d %d\n", lines, size); err != nil {
		b.t.Fatal(err)
	}
	if err := logs.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		b.t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, logs, int64(lines)*100); err != nil {
		b.t.Fatal(err)
	}
	return float64(lines) / time.Since(began).Seconds()
}

// ask asks the app that runs.
func (b *bootBench) ask(path string) (string, error) {
	b.t.Helper()
	list := b.lab.instances()
	at := slices.IndexFunc(list, func(i instance) bool { return i.App == "hello" })
	if at < 0 {
		b.t.Fatalf("the app does not run: %+v", list)
	}
	var text string
	err := inNetns(filepath.Join(b.lab.dir, "run", "network", "netns", "dev"), func() error {
		var err error
		text, err = ask200(net.JoinHostPort(list[at].Address, "8080"), path)
		return err
	})
	return text, err
}

func median[T any](all []T, of func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, a := range all {
		values[i] = of(a)
	}
	slices.Sort(values)
	if n := len(values); n%2 == 0 {
		return (values[n/2-1] + values[n/2]) / 2
	}
	return values[len(values)/2]
}

// table is what a benchmark has found.
type table struct {
	t    *testing.T
	rows [][]string
}

// add adds a figure, with its gate and its goal if it has any.
func (o *table) add(what, figure, gate, goal string, missed bool) {
	o.t.Helper()
	o.rows = append(o.rows, []string{what, figure, gate, goal})
	if missed {
		o.t.Errorf("%s: %s; the gate is %s", what, figure, gate)
	}
}

func (o *table) print(title string) {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "%s\n\nwhat\tfound\tgate\tgoal\n", title)
	for _, row := range o.rows {
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush()
}
