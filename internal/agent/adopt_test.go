package agent

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/proxy"
	"github.com/pinnacehq/pinnace/internal/vm"
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

// TestEndedMeanwhile: an end that no agent was there to see has its cause all the same.
func TestEndedMeanwhile(t *testing.T) {
	for name, tt := range map[string]struct {
		end  vmtest.End
		play func(told <-chan struct{}) *guesttest.Workload // or the machine just ends
		want *pinnacev1.Cause
	}{
		"exit": {play: func(told <-chan struct{}) *guesttest.Workload {
			return &guesttest.Workload{Run: func(_ context.Context, p *guesttest.Process) int {
				<-told
				_ = p.Log(guest.StreamStderr, "last words")
				return 7
			}}
		}, want: &pinnacev1.Cause{Kind: causeExited, Code: 7}},
		"panic":         {end: vmtest.End{Panic: "no init"}, want: &pinnacev1.Cause{Kind: causeKernelPanic}},
		"reset":         {end: vmtest.End{}, want: &pinnacev1.Cause{Kind: causeLost}},
		"out of memory": {end: vmtest.End{OOM: true}, want: &pinnacev1.Cause{Kind: causeVMMOOM}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.timing.backoffFirst = time.Second // for the end to be reported before the next attempt
			told, over := make(chan struct{}), make(chan struct{})
			ending := byHand(func(ctx context.Context, g *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
				say(guest.Started{PID: 2, StartedAt: 1})
				<-told
				return tt.end
			})
			if tt.play != nil {
				ending = playing(*tt.play(told))
			}
			l.runs("api", inTurn(func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
				defer close(over)
				return ending(ctx, g)
			}, playing(guesttest.Workload{})))
			l.start()
			l.deploy("api-1", l.app("api"))
			l.leave()
			close(told)
			if tt.play == nil {
				<-over
			}
			l.forgetReports()
			l.start()
			end := l.awaitAttemptEnd("api-1", 1)
			if end.Kind != tt.want.Kind || end.Code != tt.want.Code || end.Planned {
				t.Errorf("got %v, want %v", end, tt.want)
			}
			if tt.play != nil && !slices.Contains(end.LogTail, "last words") {
				t.Errorf("its last words: %q", end.LogTail)
			}
			l.await("api-1", "runs again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
		})
	}
}

// TestReportOnTheConsole: the last resort, for a machine that is gone before anybody has heard its guest.
func TestReportOnTheConsole(t *testing.T) {
	l := newLab(t)
	told, over := make(chan struct{}), make(chan struct{})
	l.runs("api", func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		defer close(over)
		return byHand(func(_ context.Context, g *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
			say(guest.Started{PID: 2, StartedAt: 1})
			<-told
			fmt.Fprintf(g.Console, "pinnace-exit %s {\"code\":0}\r\n", strings.Repeat("f", 32)) // the workload's own invention
			fmt.Fprintf(g.Console, "%s\r\n", guest.ConsoleLine(strings.Repeat("0", 32), []byte(`{"code":3,"last_line":5}`)))
			return vmtest.End{}
		})(ctx, g)
	})
	l.start()
	l.deploy("api-1", l.app("api", `restart = "never"`))
	l.leave()
	close(told)
	<-over
	l.start()
	if end := l.awaitEnd("api-1").End; end.Kind != causeExited || end.Code != 3 {
		t.Errorf("got %v", end)
	}
	lost := uint64(0)
	_ = l.agent.logs.read(t.Context(), "api-1", 0, false, func(r logRecord) error { lost += r.Dropped; return nil })
	if lost != 5 {
		t.Errorf("%d lost lines are accounted for, want 5", lost)
	}
}

// TestStopWhileAway: what the server decides while no agent is there is done by the next one.
func TestStopWhileAway(t *testing.T) {
	for name, decide := range map[string]func(l *lab){
		"stop": func(l *lab) { l.stop("api-1") },
		"take": func(l *lab) { l.take("api-1") },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			stopped := make(chan struct{})
			l.runs("api", playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
				<-ctx.Done()
				close(stopped)
				return 0
			}}))
			l.start()
			l.deploy("api-1", l.app("api"))
			l.leave()
			decide(l)
			l.start()
			select {
			case <-stopped:
			case <-time.After(patience):
				t.Fatal("it was not stopped")
			}
			l.poll("nothing is left", l.net.empty)
		})
	}
}

// TestEndingGoesOn: an agent that ends while it is ending an attempt leaves the reason behind.
func TestEndingGoesOn(t *testing.T) {
	l := newLab(t)
	let := make(chan struct{})
	l.runs("api", inTurn(playing(guesttest.Workload{
		Exec: func([]string) guest.ExecResult { return guest.ExecResult{Code: 9} },
		Run: func(ctx context.Context, _ *guesttest.Process) int {
			<-ctx.Done()
			<-let
			return 0
		},
	}), playing(guesttest.Workload{})))
	l.start()
	l.assign("dev", "api-1", l.app("api", `health.live = { type = "exec", command = ["/ping"], interval = "1s", timeout = "1s", fail = 1 }`))
	l.await("api-1", "is being stopped", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "stopping, for") })
	l.next()
	l.await("api-1", "is being stopped again", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "stopping, for") })
	close(let)
	end := l.awaitAttemptEnd("api-1", 1)
	if end.Kind != causeSignalled || !strings.Contains(end.Detail, "health.live failed: /ping exited with status 9") || end.Planned {
		t.Errorf("got %v", end)
	}
	l.await("api-1", "runs again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
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

// TestNotTakenOver has what an agent must not trust: it is ended, nothing of it stays, and the instance starts anew.
func TestNotTakenOver(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"damaged record": func(t *testing.T, dir string) { mustWrite(t, filepath.Join(dir, keptName), "{") },
		"no record":      func(t *testing.T, dir string) { mustRemove(t, filepath.Join(dir, keptName)) },
		"an older init": func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, keptName))
			if err != nil {
				t.Fatal(err)
			}
			old := strings.Replace(string(b), `"protocol":2`, `"protocol":1`, 1)
			if old == string(b) {
				t.Fatal("no version in ", old)
			}
			mustWrite(t, filepath.Join(dir, keptName), old)
		},
		"another instance": func(t *testing.T, dir string) {
			if err := os.Rename(dir, filepath.Join(filepath.Dir(dir), "api-9.1")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.start()
			l.deploy("api-1", l.app("api"))
			dir := l.machine("api-1").Dir
			l.leave()
			spoil(t, dir)
			l.driver.KillAll() // it has no process to be killed by
			l.poll("the machine has ended", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.running) == 0 })
			l.forgetReports()
			l.start()
			if r := l.awaitState("api-1", stateReady); r.Attempt != 2 {
				t.Errorf("got attempt %d, want a new one", r.Attempt)
			}
			if left, err := os.ReadDir(filepath.Join(l.dir, "run", "vm")); err != nil || len(left) != 1 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestOthersAreNotDisturbed: one that cannot be taken over costs the others no connection, whatever order they come in.
func TestOthersAreNotDisturbed(t *testing.T) {
	l := newLab(t)
	l.runs("first", l.serves(&answer{}, 8080))
	l.runs("last", l.serves(&answer{}, 9090))
	l.start()
	l.assign("dev", "first-1", l.app("first", "ports.web.port = 8080"))
	l.assign("dev", "last-1", l.app("last", "ports.web.port = 9090"))
	l.awaitState("first-1", stateReady)
	l.awaitState("last-1", stateReady)
	dir := l.machine("first-1").Dir
	l.leave()
	rec, err := vm.ReadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec.StartedAt = rec.StartedAt.Add(time.Second) // of another machine
	if err := rec.Write(); err != nil {
		t.Fatal(err)
	}
	l.driver.Kill("first-1.1")
	l.poll("the machine has ended", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.running["first-1"] == 0 })
	l.forgetReports()
	l.start()
	l.await("first-1", "starts anew", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
	if got := l.proxy.history("last-1"); !slices.Equal(got, []proxy.BackendState{proxy.Active}) {
		t.Errorf("the proxy was told %q of the other", got)
	}
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
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

// A heldPort is a guest's end of a channel on which nothing is answered while held is locked.
type heldPort struct {
	io.ReadWriteCloser
	held *sync.RWMutex
}

func (p heldPort) Write(b []byte) (int, error) {
	p.held.RLock()
	defer p.held.RUnlock()
	return p.ReadWriteCloser.Write(b)
}

// TestEndsBeforeAGuestAnswers has an agent that is told to end, and to stop its machines, before the guest of one that it
// has taken over has answered it: it is stopped in order, not cut off.
func TestEndsBeforeAGuestAnswers(t *testing.T) {
	l := newLab(t)
	var held sync.RWMutex
	l.runs("api", func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		return vmtest.End{Panic: guesttest.Workload{}.Boot(ctx, guesttest.Machine{
			Control: heldPort{g.Control, &held}, Logs: g.Logs, Console: g.Console, MemoryBytes: 128 << 20,
		})}
	})
	l.start()
	l.deploy("api-1", l.app("api"))
	l.leave()
	held.Lock()
	l.forgetReports()
	if err := l.make(); err != nil {
		t.Fatal(err)
	}
	inst := l.agent.instances["api-1"]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.agent.Run(ctx) }()
	// However soon it answers, the agent is ending already.
	held.Unlock()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if end := inst.report().End; end == nil || end.Kind != causeExited || end.Code != 0 || !end.Planned {
		t.Errorf("it ended with %v", end)
	}
}
