package agent

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

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
