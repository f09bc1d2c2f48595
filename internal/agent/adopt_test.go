package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/proxy"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// leave ends the agent and leaves its machines, as an upgrade does.
func (l *lab) leave() {
	l.t.Helper()
	l.agent.LeaveMachines = true
	l.end()
}

// forgetReports lets a test see what the next agent reports.
func (l *lab) forgetReports() {
	l.server.change(func() { l.server.reports = map[string][]*pinnacev1.InstanceReport{} })
}

// next ends the agent, leaves its machines, and starts the next one.
func (l *lab) next() {
	l.t.Helper()
	l.leave()
	l.forgetReports()
	l.start()
}

// TestNextAgentTakesOver is the promise that an agent may come and go: nothing of what runs changes.
func TestNextAgentTakesOver(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	first := l.deploy("api-1", l.app("api", webPort, httpHealth))
	made := slices.Clone(l.net.log)
	for range 3 {
		l.next()
		again := l.awaitState("api-1", stateReady)
		if again.Attempt != 1 || again.Address != first.Address || !again.ReadyAt.AsTime().Equal(first.ReadyAt.AsTime()) ||
			len(again.Stages) != len(first.Stages) || again.Booted.GetKernelSha256() != "aa" {
			t.Fatalf("the next agent reports %v, the first %v", again, first)
		}
		for _, r := range l.server.reports["api-1"] {
			if r.State != stateReady {
				t.Errorf("it was reported as %s: %s", r.State, r.Message)
			}
		}
	}
	if n := len(l.driver.Started()); n != 1 {
		t.Errorf("%d machines were started", n)
	}
	if got := l.proxy.history("api-1"); !slices.Equal(got, []proxy.BackendState{proxy.Active}) {
		t.Errorf("the proxy was told %q", got)
	}
	l.net.mu.Lock()
	if !slices.Equal(l.net.log, made) {
		t.Errorf("networks: %q, at first %q", l.net.log, made)
	}
	l.net.mu.Unlock()
	l.stop("api-1")
	if end := l.awaitEnd("api-1").End; end.Kind != causeExited || !end.Planned {
		t.Errorf("end: %v", end)
	}
}

// TestTakeOverWithoutServer: what an agent needs to go on is on its own host.
func TestTakeOverWithoutServer(t *testing.T) {
	l := newLab(t)
	web := &answer{}
	l.runs("api", l.serves(web, 8080))
	l.start()
	l.deploy("api-1", l.app("api", webPort, httpHealth))
	internal := "internal/dev/api/10.101.0.2:8080"
	if _, ok := l.proxy.listener(internal); !ok {
		t.Fatal("no listener at the virtual address")
	}
	l.server.leave()
	l.next()
	l.poll("the agent calls the server", func() bool { return l.server.refused.Load() > 3 })
	for _, id := range []string{internal, "public/0.0.0.0:80"} {
		if ln, ok := l.proxy.listener(id); !ok || len(ln.Backends) != 1 || ln.Backends[0].State != proxy.Active {
			t.Errorf("%s: %+v, %v", id, ln, ok)
		}
	}
	web.set(http.StatusServiceUnavailable)
	l.poll("its health is watched", func() bool {
		ln, ok := l.proxy.listener(internal)
		return ok && len(ln.Backends) == 1 && ln.Backends[0].State == proxy.Draining
	})
	web.set(http.StatusOK)
	l.server.comeBack()
	l.awaitState("api-1", stateReady)
}

// TestLinesAcrossAgents: with agents that come and go in a flood of lines every line is stored, once and in order.
func TestLinesAcrossAgents(t *testing.T) {
	const lines = 3000
	l := newLab(t)
	l.runs("job", playing(guesttest.Workload{Run: func(_ context.Context, p *guesttest.Process) int {
		for n := range lines {
			_ = p.Log(guest.StreamStdout, fmt.Sprint("line ", n+1))
		}
		return 0
	}}))
	l.start()
	l.assign("dev", "job-1", l.app("job", `restart = "never"`))
	stored := func() (all []logRecord) {
		s, err := openLogStore(filepath.Join(l.dir, "data", "logs"), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.read(t.Context(), "job-1", 0, false, func(r logRecord) error { all = append(all, r); return nil })
		return all
	}
	for n := range 5 {
		l.poll("more lines", func() bool { return len(stored()) > n*lines/6 })
		l.next()
	}
	if end := l.awaitEnd("job-1"); end.Attempt != 1 || end.End.Kind != causeExited || end.End.Code != 0 {
		t.Errorf("end: %v", end)
	}
	l.end()
	all := stored()
	for n, r := range all {
		if r.Seq != uint64(n+1) || r.Dropped != 0 || string(r.Data) != fmt.Sprint("line ", n+1) {
			t.Fatalf("line %d is %+v", n+1, r)
		}
	}
	if len(all) != lines {
		t.Errorf("%d lines of %d", len(all), lines)
	}
}

// TestTakeOverOfAStart: an attempt that was under way goes on where it was, with one machine and one number; before
// there is a machine there is nothing to go on with.
func TestTakeOverOfAStart(t *testing.T) {
	for _, tt := range []struct {
		stage   string
		guest   func(l *lab, let <-chan struct{}) vmtest.Guest
		attempt uint32
	}{
		{"kernel", func(_ *lab, let <-chan struct{}) vmtest.Guest {
			return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
				<-let
				return playing(guesttest.Workload{})(ctx, g)
			}
		}, 1},
		{"init", func(_ *lab, let <-chan struct{}) vmtest.Guest {
			return playing(guesttest.Workload{Slow: let})
		}, 1},
	} {
		t.Run(tt.stage, func(t *testing.T) {
			l := newLab(t)
			let := make(chan struct{})
			l.runs("api", tt.guest(l, let))
			l.start()
			l.assign("dev", "api-1", l.app("api"))
			l.await("api-1", "is at "+tt.stage, func(r *pinnacev1.InstanceReport) bool { return r.Message == tt.stage })
			l.kernel = "cc"
			l.next()
			close(let)
			r := l.awaitState("api-1", stateReady)
			if got := r.Booted.GetKernelSha256(); got != "aa" {
				t.Errorf("it runs kernel %q, want that of the agent that started it", got)
			}
			if r.Attempt != tt.attempt || len(l.driver.Started()) != 1 {
				t.Errorf("got attempt %d with %d machines", r.Attempt, len(l.driver.Started()))
			}
			var stages []string
			for _, s := range r.Stages {
				stages = append(stages, s.Name)
			}
			if want := []string{"pull", "build", "network", "disks", "jail", "vmm", "kernel", "init", "exec", "ready"}; !slices.Equal(stages, want) {
				t.Errorf("stages: got %q, want %q", stages, want)
			}
		})
	}
}

// TestLastSeq finds the last line that is stored, whatever a crash has made of the end of the files.
func TestLastSeq(t *testing.T) {
	dir := t.TempDir()
	line := func(seq uint64) guest.Line {
		return guest.Line{Seq: seq, Stream: guest.StreamStdout, Data: []byte(strings.Repeat("x", guest.MaxLine))}
	}
	open := func(segment int64) *logStore {
		s, err := openLogStore(dir, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		s.segment = segment
		s.begin("api-1")
		return s
	}
	want := func(s *logStore, attempt uint32, seq uint64) {
		t.Helper()
		if got, err := s.lastSeq("api-1", attempt); got != seq || err != nil {
			t.Errorf("attempt %d: got %d, %v, want %d", attempt, got, err, seq)
		}
	}
	s := open(100 << 10)
	want(s, 1, 0)
	for seq := uint64(1); seq <= 20; seq++ {
		if _, err := s.append("api-1", 1, line(seq)); err != nil {
			t.Fatal(err)
		}
		want(s, 1, seq)
	}
	s.end("api-1")
	want(open(100<<10), 1, 20)
	want(open(100<<10), 2, 0)
	numbers, err := segments(filepath.Join(dir, "api-1"))
	if err != nil {
		t.Fatal(err)
	}
	newest := segmentPath(filepath.Join(dir, "api-1"), numbers[len(numbers)-1])
	b, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, newest, string(b[:len(b)-100]))
	want(open(100<<10), 1, 19)
	mustWrite(t, newest, "")
	want(open(100<<10), 1, uint64(20-strings.Count(string(b), "\n")))
}
