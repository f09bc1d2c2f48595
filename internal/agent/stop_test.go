package agent

import (
	"context"
	"errors"
	"io"
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

// TestStopSignals has the guest stop the workload with what the manifest says; the signal itself was in its
// configuration.
func TestStopSignals(t *testing.T) {
	l := newLab(t)
	signalled := make(chan guest.Stop, 1)
	l.runs("api", playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
		<-ctx.Done()
		if cause, ok := errors.AsType[*guesttest.StopCause](context.Cause(ctx)); ok {
			signalled <- cause.Stop
		}
		return 0
	}}))
	l.start()
	l.deploy("api-1", l.app("api", `stop = { drain = "1m", timeout = "7s" }`))
	l.stop("api-1")
	l.await("api-1", "stops", func(r *pinnacev1.InstanceReport) bool { return r.State == stateStopping })
	if stop := <-signalled; stop.TimeoutMS != 7000 || stop.Signal != "" {
		t.Errorf("signal: got %+v", stop)
	}
	l.awaitEnd("api-1")
}

func TestStopDrains(t *testing.T) {
	tests := map[string]struct {
		drain  string
		closes bool // the connections, after a while
		unsure bool // the proxy does not say how many there are
	}{
		"until the connections are closed": {"1m", true, false},
		"no longer than drain":             {"100ms", false, false},
		"also without the proxy":           {"100ms", false, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			signalled := make(chan struct{})
			l.runs("api", func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
				return playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
					ln, err := l.net.listen(g.Spec.NIC.Tap, 8080)
					if err != nil {
						return 98
					}
					defer ln.Close()
					<-ctx.Done()
					close(signalled)
					return 0
				}})(ctx, g)
			})
			l.start()
			l.deploy("api-1", l.app("api", webPort, `stop.drain = "`+tt.drain+`"`))
			l.proxy.do(func() { l.proxy.open["api-1"] = 2 })
			began := time.Now()
			l.stop("api-1")
			if tt.unsure {
				l.await("api-1", "drains", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "draining") })
				l.proxy.do(func() { l.proxy.err = errDown })
			} else {
				l.await("api-1", "drains", func(r *pinnacev1.InstanceReport) bool {
					return strings.HasPrefix(r.Message, "draining 2 connections, for "+tt.drain[:1])
				})
			}
			if got := l.proxy.history("api-1"); !slices.Equal(got, []proxy.BackendState{proxy.Active, proxy.Draining}) {
				t.Errorf("routing while it drains: got %q", got)
			}
			if tt.closes {
				if isClosed(signalled) {
					t.Error("it was signalled while connections were open")
				}
				l.proxy.do(func() { l.proxy.open["api-1"] = 0 })
			}
			<-signalled
			if !tt.closes && time.Since(began) < 100*time.Millisecond {
				t.Errorf("signalled after %s", time.Since(began))
			}
			l.proxy.do(func() { l.proxy.err = nil })
			end := l.awaitEnd("api-1")
			last := end.Stages[len(end.Stages)-1]
			if last.Name != "stop" || (!tt.closes && !strings.Contains(last.Detail, "drained for")) || !end.End.Planned || end.End.Kind != causeExited {
				t.Errorf("got %v after %v", end.End, last)
			}
		})
	}
}

// TestStopWhileItDrainsAndEnds: a workload that ends while its connections drain has ended by its own report.
func TestStopWhileItDrainsAndEnds(t *testing.T) {
	l := newLab(t)
	exit := make(chan struct{})
	l.runs("api", func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		return playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
			ln, err := l.net.listen(g.Spec.NIC.Tap, 8080)
			if err != nil {
				return 98
			}
			defer ln.Close()
			select {
			case <-exit:
				return 4
			case <-ctx.Done():
				return 0
			}
		}})(ctx, g)
	})
	l.start()
	l.deploy("api-1", l.app("api", webPort, `stop.drain = "1m"`))
	l.proxy.do(func() { l.proxy.open["api-1"] = 1 })
	l.stop("api-1")
	l.await("api-1", "drains", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "draining 1") })
	close(exit)
	if end := l.awaitEnd("api-1").End; end.Kind != causeExited || end.Code != 4 || !end.Planned {
		t.Errorf("got %v", end)
	}
}

func TestStopKillsTheStubborn(t *testing.T) {
	l := newLab(t)
	l.runs("api", playing(guesttest.Workload{Stubborn: true}))
	l.start()
	l.deploy("api-1", l.app("api", `stop = { timeout = "1s", drain = "0s" }`))
	l.stop("api-1")
	end := l.awaitEnd("api-1").End
	if end.Kind != causeSignalled || end.Signal != "SIGKILL" || !end.Planned || end.Detail != "killed, because it had not stopped within 1s" {
		t.Errorf("got %v", end)
	}
}

// TestStopNow: an instance that is to be killed is, whether it has been told to stop before or not.
func TestStopNow(t *testing.T) {
	for name, first := range map[string]bool{"at once": false, "after a stop": true} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.runs("api", playing(guesttest.Workload{Stubborn: true}))
			l.start()
			l.deploy("api-1", l.app("api", `stop = { timeout = "15m", drain = "0s" }`))
			if first {
				l.stop("api-1")
				l.await("api-1", "is told to stop", func(r *pinnacev1.InstanceReport) bool { return r.Message == "stopping, for 15m0s at most" })
			}
			l.stopNow("api-1")
			r := l.awaitEnd("api-1")
			if end := r.End; end.Kind != causeSignalled || end.Signal != "SIGKILL" || !end.Planned || !r.Final || end.Detail != "killed at once, as was asked" {
				t.Errorf("got %v", r)
			}
		})
	}
}

// TestStopNowWhileItDrains: nobody waits for connections any more.
func TestStopNowWhileItDrains(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.deploy("api-1", l.app("api", webPort, `stop.drain = "5m"`))
	l.proxy.do(func() { l.proxy.open["api-1"] = 1 })
	l.stop("api-1")
	l.await("api-1", "drains", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "draining 1") })
	l.stopNow("api-1")
	if r := l.awaitEnd("api-1"); !r.End.Planned || !r.Final {
		t.Errorf("got %v", r)
	}
}

// TestStopUndrained: a stop that does not wait for connections begins with the signal.
func TestStopUndrained(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.deploy("api-1", l.app("api", webPort, `stop.drain = "5m"`))
	l.proxy.do(func() { l.proxy.open["api-1"] = 1 })
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		set.Assignments[0].Stop, set.Assignments[0].Undrained = true, true
	})
	if end := l.awaitEnd("api-1").End; end.Kind != causeExited || end.Code != 0 || !end.Planned {
		t.Errorf("got %v", end)
	}
}

// stopNow asks for the end of an instance at once.
func (l *lab) stopNow(instance string) {
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		for _, a := range set.Assignments {
			if a.Instance == instance {
				a.StopNow = true
			}
		}
	})
}

// TestStopBeforeReady: checks that go on failing do not say that an instance has started which is stopping.
func TestStopBeforeReady(t *testing.T) {
	l := newLab(t)
	l.timing.startInterval = time.Millisecond
	l.runs("api", playing(guesttest.Workload{Stubborn: true}))
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort, `stop.timeout = "1s"`))
	l.await("api-1", "is not ready", func(r *pinnacev1.InstanceReport) bool { return strings.HasPrefix(r.Message, "not ready yet") })
	l.stop("api-1")
	l.await("api-1", "stops", func(r *pinnacev1.InstanceReport) bool { return r.State == stateStopping })
	l.awaitEnd("api-1")
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	stopping := false
	for _, r := range l.server.reports["api-1"] {
		if stopping && r.State != stateStopping && r.State != stateEnded {
			t.Errorf("after it was stopping it was %s: %s", r.State, r.Message)
		}
		stopping = stopping || r.State == stateStopping
	}
	if got := l.proxy.history("api-1"); len(got) > 0 {
		t.Errorf("routing: got %q", got)
	}
}

// TestStopWhileStarting interrupts an attempt at each stage that can wait for something.
func TestStopWhileStarting(t *testing.T) {
	tests := map[string]struct {
		prepare func(l *lab)
		reached func(*pinnacev1.InstanceReport) bool
		stage   string
	}{
		"pull": {
			func(l *lab) {
				l.registry(func(ctx context.Context, _ string, _ int64) (io.ReadCloser, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				})
			},
			func(r *pinnacev1.InstanceReport) bool { return r.State == statePulling }, "pull",
		},
		"pause between pulls": {
			func(l *lab) {
				l.timing.pullPauses = []time.Duration{time.Hour}
				l.registry(func(context.Context, string, int64) (io.ReadCloser, error) { return nil, errDown })
			},
			func(r *pinnacev1.InstanceReport) bool { return strings.Contains(r.Message, "trying again in 1h") }, "pull",
		},
		"kernel": {
			func(l *lab) { l.runs("api", playing(guesttest.Workload{Silent: true})) },
			func(r *pinnacev1.InstanceReport) bool { return r.Message == "kernel" }, "kernel",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			tt.prepare(l)
			l.start()
			l.assign("dev", "api-1", l.app("api"))
			l.await("api-1", "is on its way", tt.reached)
			l.stop("api-1")
			end := l.awaitEnd("api-1").End
			if end.Kind != causeStartFailed || end.Stage != tt.stage || !end.Planned || end.Detail != "stopped while it was starting" {
				t.Errorf("got %v", end)
			}
		})
	}
}

// TestStopInBackOff keeps the end that there was: nothing has ended by being told not to start.
func TestStopInBackOff(t *testing.T) {
	l := newLab(t)
	l.timing.backoffFirst = time.Hour
	l.runs("api", exits(3))
	l.start()
	l.assign("dev", "api-1", l.app("api"))
	r := l.awaitState("api-1", stateBackoff)
	if r.Message != "starting again in 1h0m0s" || r.End.GetCode() != 3 || r.Final {
		t.Errorf("got %v", r)
	}
	l.stop("api-1")
	if r = l.awaitEnd("api-1"); r.Attempt != 1 || r.End.Kind != causeExited || r.End.Code != 3 || r.End.Planned {
		t.Errorf("got %v", r)
	}
}

func TestStopBeforeStart(t *testing.T) {
	l := newLab(t)
	l.assign("dev", "api-1", l.app("api"))
	l.stop("api-1")
	l.start()
	// It may get as far as being interrupted; it is never a success.
	if end := l.awaitEnd("api-1").End; end != nil && (end.Kind != causeStartFailed || !end.Planned) {
		t.Errorf("got %v", end)
	}
}

// TestVanishedAssignment stops an instance in order that no assignment names any more, and forgets it.
func TestVanishedAssignment(t *testing.T) {
	l := newLab(t).start()
	l.deploy("api-1", l.app("api"))
	l.take("api-1")
	l.await("api-1", "stops", func(r *pinnacev1.InstanceReport) bool { return r.State == stateStopping || r.Final })
	l.eventually("the instance is no longer reported", func() bool { return len(l.server.last.Instances) == 0 })
	l.poll("its record is gone", func() bool {
		_, err := os.Stat(filepath.Join(l.dir, "data", "instances", "api-1.json"))
		return errors.Is(err, os.ErrNotExist)
	})
}
