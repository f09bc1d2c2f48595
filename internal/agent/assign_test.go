package agent

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// change changes the assignment of an instance.
func (l *lab) change(instance string, change func(*pinnacev1.Assignment)) {
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		for _, a := range set.Assignments {
			if a.Instance == instance {
				change(a)
			}
		}
	})
}

// park says whether new connections go to others.
func (l *lab) park(instance string, parked bool) {
	l.change(instance, func(a *pinnacev1.Assignment) { a.Parked = parked })
}

func parked(a *pinnacev1.Assignment) { a.Parked = true }

// TestParked: a parked instance becomes ready without being given connections, and keeps those that it has when it is
// parked later.
func TestParked(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort), parked)
	l.awaitState("api-1", stateReady)
	if got := l.proxy.history("api-1"); slices.Contains(got, proxy.Active) {
		t.Errorf("parked from the start: got %v", got)
	}
	l.park("api-1", false)
	l.poll("connections", func() bool { return slices.Contains(l.proxy.history("api-1"), proxy.Active) })
	l.park("api-1", true)
	l.poll("no new connections", func() bool {
		h := l.proxy.history("api-1")
		return h[len(h)-1] == proxy.Draining
	})
	if r := l.await("api-1", "is ready", func(r *pinnacev1.InstanceReport) bool { return r.State == stateReady }); r.End != nil {
		t.Errorf("got %v", r)
	}
}

// TestParkedIsRemembered: an agent that takes over without a server goes on with what was said last.
func TestParkedIsRemembered(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort), parked)
	l.awaitState("api-1", stateReady)
	l.park("api-1", false)
	l.poll("connections", func() bool { return slices.Contains(l.proxy.history("api-1"), proxy.Active) })
	l.server.leave()
	l.leave()
	l.proxy.do(func() { l.proxy.states = map[string][]proxy.BackendState{} })
	l.start()
	l.poll("the proxy is told", func() bool { return len(l.proxy.history("api-1")) > 0 })
	if got := l.proxy.history("api-1"); !slices.Equal(got, []proxy.BackendState{proxy.Active}) {
		t.Errorf("told %v", got)
	}
}

// TestOnce: a one-off that must not run twice does not, when the host was started anew in the middle of it: there is a
// record of its attempt, and nothing of its machine.
func TestOnce(t *testing.T) {
	l := newLab(t)
	var runs atomic.Int32
	l.runs("api", playing(guesttest.Workload{Run: func(context.Context, *guesttest.Process) int { runs.Add(1); return 0 }}))
	mustWrite(t, filepath.Join(l.dir, "data", "instances", "api-1.json"), `{"attempt":1}`)
	l.assign("dev", "api-1", l.app("api", webPort), func(a *pinnacev1.Assignment) { a.Task, a.Once = []string{"/migrate"}, true })
	l.start()
	end := l.awaitEnd("api-1")
	if end.Attempt != 1 || end.End.Kind != causeLost || end.End.Planned || !end.Final {
		t.Errorf("end: got %v", end)
	}
	// The end is on record now.
	l.end()
	l.server.change(func() { l.server.reports = map[string][]*pinnacev1.InstanceReport{} })
	l.start()
	if again := l.awaitEnd("api-1"); again.End.Kind != causeLost || runs.Load() != 0 {
		t.Errorf("later: got %v after %d runs", again, runs.Load())
	}
}

// TestOnceEndsWithItsAgent: an agent that ends what it runs ends a one-off for good.
func TestOnceEndsWithItsAgent(t *testing.T) {
	l := newLab(t)
	var runs atomic.Int32
	l.runs("api", playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
		runs.Add(1)
		<-ctx.Done()
		return 0
	}}))
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort), func(a *pinnacev1.Assignment) { a.Task, a.Once = []string{"/migrate"}, true })
	l.poll("it runs", func() bool { return runs.Load() == 1 })
	l.end()
	l.start()
	if end := l.awaitEnd("api-1"); end.Attempt != 1 || runs.Load() != 1 {
		t.Errorf("got %v after %d runs", end, runs.Load())
	}
}

// TestOnceNeedsACommand: without one it would run what the app is.
func TestOnceNeedsACommand(t *testing.T) {
	l := newLab(t)
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort), func(a *pinnacev1.Assignment) { a.Once = true })
	if end := l.awaitEnd("api-1"); end.End.Kind != causeStartFailed || !strings.Contains(end.End.Detail, "no command") {
		t.Errorf("end: got %v", end)
	}
}

// TestTask: a one-off has a command of its own and everything else of the release, but nothing that serves.
func TestTask(t *testing.T) {
	l := newLab(t)
	configs := make(chan guest.Config, 1)
	l.runs("api", playing(guesttest.Workload{Run: func(_ context.Context, p *guesttest.Process) int {
		configs <- p.Config
		return 3
	}}))
	l.start()
	rel := l.app("api", webPort, httpHealth, `command = ["--serve"]`, `env = { A = "b" }`, `restart = "always"`)
	l.assign("dev", "api-1", rel, func(a *pinnacev1.Assignment) { a.Task = []string{"/app/server", "migrate"} })
	end := l.awaitEnd("api-1")
	if end.Attempt != 1 || end.End.Kind != causeExited || end.End.Code != 3 || end.End.Planned {
		t.Errorf("end: got %v", end)
	}
	c := <-configs
	if p := c.Process; !slices.Equal(p.Entrypoint, []string{"/app/server", "migrate"}) || len(p.Cmd) != 0 || !slices.Contains(p.Env, "A=b") {
		t.Errorf("process: got %+v", p)
	}
	if h := l.proxy.history("api-1"); len(h) != 0 {
		t.Errorf("it was routed to: %v", h)
	}
}
