package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Gates beside a hostile guest.
const (
	gateHostileKiB = 16 << 10 // that the agent may grow by
	gateWorse      = 1.20     // p99 of a neighbour, to that beside a guest which only spins
)

// TestHostileGuest has a guest whose init and workload flood all that leads to the host: both channels, the console, the
// output of commands and the network. The agent's memory stays in bounds, and the guest's neighbour answers. With
// PINNACE_BENCH_HOSTILE, which is for how many seconds it floods, its answers are compared with those beside a guest that
// spins its processor.
func TestHostileGuest(t *testing.T) {
	if skip != "" {
		t.Skip(skip)
	}
	length, rounds := 5*time.Second, 1
	bench := os.Getenv("PINNACE_BENCH_HOSTILE")
	if bench != "" {
		seconds, err := strconv.Atoi(bench)
		if err != nil || seconds < 4 {
			t.Fatalf("PINNACE_BENCH_HOSTILE is %q, which is no number from 4", bench)
		}
		rounds = 4
		length = time.Duration(seconds) * time.Second / time.Duration(rounds)
	}
	program := buildHostile(t)
	saved := binary
	binary = program
	defer func() { binary = saved }() // tests of this package do not run at once
	a := newApart(t)
	l := a.l
	port, evil := freePort(t), freePort(t)
	img := workloadImage(t, "1", func(c *v1.Config) { c.Env = append(c.Env, "MODE=1") })
	ref := l.push("app", "v1", img)
	l.must("deploy", "--image", ref, "-f", l.manifest("neighbour", web("neighbour", port)))
	l.must("deploy", "--image", ref, "-f", l.manifest("evil", web("evil", evil)+`
[health.live]
type     = "exec"
command  = ["/workload", "spew"]
interval = "1s"
timeout  = "1s"
fail     = 30
`))
	beside := map[string][]time.Duration{}
	mode := func(is string) {
		if got, err := fetch(evil, "/mode?is="+is); err != nil || got != is {
			t.Fatalf("tell the guest to %s: %q, %v", is, got, err)
		}
	}
	measure := func(is string) {
		mode(is)
		times, err := askFor(port, length)
		if err != nil {
			t.Errorf("the neighbour of a guest in mode %s: %v", is, err)
		}
		beside[is] = append(beside[is], times...)
	}
	measure("spin") // for caches and translations to fill
	beside["spin"] = nil
	before := rss(t, a.agent.Process.Pid)
	most := before
	for range rounds {
		measure("spin")
		stop := make(chan struct{})
		watched := make(chan int)
		go func() {
			peak := 0
			for tick := time.Tick(100 * time.Millisecond); ; {
				peak = max(peak, rss(t, a.agent.Process.Pid))
				select {
				case <-stop:
					watched <- peak
					return
				case <-tick:
				}
			}
		}()
		measure("flood")
		close(stop)
		most = max(most, <-watched)
	}
	out := &table{t: t}
	grown := most - before
	out.add("what the agent's memory grew by at most", fmt.Sprintf("%.1f MiB", float64(grown)/1024), fmt.Sprintf("≤ %d MiB", gateHostileKiB>>10), "", grown > gateHostileKiB)
	spin, flood := p99(beside["spin"]), p99(beside["flood"])
	out.add("p99 beside a guest that spins", fmt.Sprintf("%.1f ms, %d requests", spin.Seconds()*1000, len(beside["spin"])), "", "", false)
	out.add("p99 beside a guest that floods", fmt.Sprintf("%.1f ms, %d requests", flood.Seconds()*1000, len(beside["flood"])), "", "", false)
	worse := flood.Seconds() / spin.Seconds()
	out.add("that, to the other", fmt.Sprintf("%.2f", worse), fmt.Sprintf("≤ %.2f", gateWorse), "", bench != "" && worse > gateWorse)
	out.print(fmt.Sprintf("beside a hostile guest: %d times %s of flood", rounds, length))
	l.wantFlooded(t)
}

// wantFlooded makes sure that the flood was one.
func (l *lab) wantFlooded(t *testing.T) {
	t.Helper()
	for _, i := range l.instances() {
		if i.Attempt != 1 || i.State != "ready" {
			t.Errorf("%s: %+v", i.App, i)
		}
		if i.App != "evil" {
			continue
		}
		files, err := filepath.Glob(filepath.Join(l.dir, "data", "agent", "logs", i.ID, "*.ndjson"))
		var size int64
		for _, f := range files {
			info, statErr := os.Stat(f)
			if err = errors.Join(err, statErr); err == nil {
				size += info.Size()
			}
		}
		if err != nil || size < 1<<20 {
			t.Errorf("only %d bytes of the flood's output are there, %v", size, err)
		}
		if size > 51<<20 {
			t.Errorf("%d bytes of logs are kept", size)
		}
	}
}

// askFor asks on one connection, one request after the other, and returns how long each took.
func askFor(port int, length time.Duration) ([]time.Duration, error) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	var times []time.Duration
	for end := time.Now().Add(length); time.Now().Before(end); {
		began := time.Now()
		res, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			return times, err
		}
		_, err = io.Copy(io.Discard, res.Body)
		if err := errors.Join(err, res.Body.Close()); err != nil {
			return times, err
		}
		times = append(times, time.Since(began))
	}
	return times, nil
}

func p99(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// buildHostile builds the binary with an init that floods.
func buildHostile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	build := func(replace map[string]string, pkg, out string) {
		t.Helper()
		overlay, err := json.Marshal(map[string]any{"Replace": replace})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Base(out)+".json")
		if err := os.WriteFile(path, overlay, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-overlay", path, "-o", out, pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", pkg, err, text)
		}
	}
	init, program := filepath.Join(dir, "pinnace-init"), filepath.Join(dir, "pinnace")
	build(map[string]string{
		filepath.Join(root, "cmd/pinnace-init/hostile.go"): filepath.Join(root, "test/e2e/testdata/hostile/flood.go"),
	}, "./cmd/pinnace-init", init)
	build(map[string]string{filepath.Join(root, "cmd/pinnace/initbin/files/pinnace-init"): init}, "./cmd/pinnace", program)
	return program
}
