package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
)

// TestServerAway: what runs goes on and is restarted as its policy says, and the server hears of it all when it
// is back.
func TestServerAway(t *testing.T) {
	l := newLab(t)
	crash := make(chan struct{})
	l.runs("api", inTurn(playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
		select {
		case <-crash:
			return 5
		case <-ctx.Done():
			return 0
		}
	}}), playing(guesttest.Workload{})))
	l.start()
	l.deploy("api-1", l.app("api"))
	l.deploy("job-1", l.app("job"))
	l.server.leave()
	l.server.change(func() { l.server.reports = map[string][]*pinnacev1.InstanceReport{} })
	close(crash)
	l.poll("the instance was started again without the server", func() bool { return strings.HasPrefix(l.machine("api-1").ID, "api-1.2") })
	before := l.server.refused.Load()
	l.poll("the agent tries and tries", func() bool { return l.server.refused.Load() > before+10 })
	l.mu.Lock()
	running := len(l.running)
	l.mu.Unlock()
	if running != 2 {
		t.Errorf("%d machines run, want 2", running)
	}
	l.server.change(func() { l.server.joins = 0 })
	l.server.comeBack()
	l.eventually("the agent joins again", func() bool { return l.server.joins == 1 })
	if r := l.awaitState("api-1", stateReady); r.Attempt != 2 || r.Booted == nil || r.ReadyAt == nil || len(r.Stages) != 10 {
		t.Errorf("got %v", r)
	}
	if r := l.awaitState("job-1", stateReady); r.Attempt != 1 {
		t.Errorf("got %v", r)
	}
	// The agent acts on assignments again.
	l.stop("api-1")
	l.awaitEnd("api-1")
}

// TestServerStartsOver: a server that was restored counts its revisions from an earlier one.
func TestServerStartsOver(t *testing.T) {
	l := newLab(t)
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.Revision = 1000 })
	l.start()
	l.deploy("api-1", l.app("api"))
	l.server.leave()
	l.eventually("the stream has ended", func() bool { return l.server.streams == 0 })
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.Revision = 10 })
	l.server.comeBack()
	l.stop("api-1")
	l.awaitEnd("api-1")
}

// TestSilentServer: a connection over which nothing comes is given up, and nothing that runs is.
func TestSilentServer(t *testing.T) {
	l := newLab(t)
	l.timing.silence = 100 * time.Millisecond
	l.start()
	l.deploy("api-1", l.app("api"))
	l.eventually("the agent has joined again", func() bool { return l.server.joins >= 3 })
	if r := l.awaitState("api-1", stateReady); r.Attempt != 1 {
		t.Errorf("got %v", r)
	}
}

// TestHeartbeat: an agent with nothing to tell still reports, and says which set it has acted on.
func TestHeartbeat(t *testing.T) {
	l := newLab(t).start()
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.Revision = 41 })
	for range 2 {
		l.server.change(func() { l.server.last = nil })
		l.eventually("a heartbeat", func() bool {
			return l.server.last != nil && l.server.last.Revision == 41 && l.server.last.Host == "ship"
		})
	}
}

// TestAgentEnds stops everything in order and says so before it is gone. The instances are to go on: none of
// their ends is final.
func TestAgentEnds(t *testing.T) {
	l := newLab(t)
	l.timing.stopOnExit = 100 * time.Millisecond
	l.runs("stubborn", playing(guesttest.Workload{Stubborn: true}))
	l.runs("slow", playing(guesttest.Workload{Silent: true}))
	l.start()
	l.deploy("api-1", l.app("api", `restart = "on-failure"`, `stop.drain = "5m"`))
	l.deploy("job-1", l.app("job", `restart = "never"`))
	l.deploy("stubborn-1", l.app("stubborn", `stop.timeout = "15m"`))
	l.assign("dev", "slow-1", l.app("slow"))
	l.await("slow-1", "boots", func(r *pinnacev1.InstanceReport) bool { return r.Message == "kernel" })
	began := time.Now()
	l.end()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	want := map[string]string{"api-1": causeExited, "job-1": causeExited, "stubborn-1": causeSignalled, "slow-1": causeStartFailed}
	for _, r := range l.server.last.Instances {
		if r.State != stateEnded || r.End.GetKind() != want[r.Instance] || !r.End.Planned || r.Final {
			t.Errorf("got %v", r)
		}
		delete(want, r.Instance)
	}
	if len(want) > 0 {
		t.Errorf("not reported: %v", want)
	}
}

// TestAgentEndsWhileAnInstanceStops: neither the drain nor the time-out of a stop that is under way holds the
// agent up.
func TestAgentEndsWhileAnInstanceStops(t *testing.T) {
	l := newLab(t)
	l.timing.stopOnExit = 100 * time.Millisecond
	l.runs("web", l.serves(&answer{}, 8080))
	l.runs("stubborn", playing(guesttest.Workload{Stubborn: true}))
	l.start()
	l.deploy("web-1", l.app("web", webPort, `stop.drain = "5m"`))
	l.deploy("stubborn-1", l.app("stubborn", `stop.timeout = "15m"`))
	l.proxy.do(func() { l.proxy.open["web-1"] = 1 })
	l.stop("web-1")
	l.stop("stubborn-1")
	l.await("web-1", "drains", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "draining 1") })
	l.await("stubborn-1", "stops", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "stopping") })
	l.end()
	if end := l.awaitEnd("web-1").End; end.Kind != causeExited || !end.Planned {
		t.Errorf("got %v", end)
	}
	if end := l.awaitEnd("stubborn-1").End; end.Signal != "SIGKILL" || end.Detail != "killed, because it had not stopped within 100ms" {
		t.Errorf("got %v", end)
	}
}
