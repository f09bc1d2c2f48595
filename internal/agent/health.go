package agent

import (
	"context"
	"errors"
	"sync"
	"time"
)

// What a health loop finds out.
const (
	verdictReady   = "ready"
	verdictUnready = "unready"
	verdictDead    = "dead" // health.live failed: restart
)

type verdict struct {
	kind string
	why  string
	said string // of a failed check by command: what it wrote
}

// health checks one attempt until it is ended.
type health struct {
	*attempt
	verdicts chan verdict
	cancel   context.CancelFunc
	done     chan struct{} // closed when nothing is checked any more

	mu      sync.Mutex
	failure error // guarded by mu: of the last check that failed
}

// checkError is the failure of a check by a command. What the command wrote is for those who look now: it may hold what
// must not be kept for ever, and causes are in the event log.
type checkError struct {
	err  error
	said string
}

func (e *checkError) Error() string { return e.err.Error() }
func (e *checkError) Unwrap() error { return e.err }

// saidBy is what a command wrote whose failure err is.
func saidBy(err error) string {
	if check, ok := errors.AsType[*checkError](err); ok {
		return check.said
	}
	return ""
}

// withSaid is err with that.
func withSaid(err error) string {
	if said := saidBy(err); said != "" {
		return err.Error() + ": " + said
	}
	return err.Error()
}

// watchHealth begins to check an attempt whose workload runs. Whoever calls it reads the verdicts and ends it.
func watchHealth(ctx context.Context, t *attempt) *health {
	ctx, cancel := context.WithCancel(ctx)
	h := &health{attempt: t, verdicts: make(chan verdict), cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		h.run(ctx)
	}()
	return h
}

// end stops the checks. When it has returned they say nothing more of the instance, whatever was under way.
func (h *health) end() {
	h.cancel()
	<-h.done
}

func (h *health) lastFailure() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failure
}

// run checks until ctx is done.
func (h *health) run(ctx context.Context) {
	var live sync.WaitGroup
	defer live.Wait()
	ready := h.readyCheck()
	var passes, fails int
	// Under an agent that takes over, what was ready is, until it fails.
	wasReady := h.wasReady()
	isReady := wasReady && h.agent.routes.state(h.id) == routeActive
	if wasReady && h.workload.manifest.Health.Live != nil {
		live.Go(func() { h.watchLive(ctx) })
	}
	for {
		err := ready.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			passes, fails = 0, fails+1
			h.failed(err, wasReady)
		} else {
			passes, fails = passes+1, 0
		}
		switch {
		case !isReady && passes >= ready.pass:
			isReady = true
			if !h.tell(ctx, verdict{kind: verdictReady}) {
				return
			}
			if !wasReady && h.workload.manifest.Health.Live != nil {
				live.Go(func() { h.watchLive(ctx) })
			}
			wasReady = true
		case isReady && fails >= ready.fail:
			isReady = false
			if !h.tell(ctx, verdict{kind: verdictUnready, why: "health.ready failed: " + withSaid(err)}) {
				return
			}
		}
		pause := ready.interval
		if !wasReady {
			pause = min(pause, h.agent.timing.startInterval)
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// failed notes what a failed check said. Before the first pass it is what people wait for.
func (h *health) failed(err error, wasReady bool) {
	h.mu.Lock()
	h.failure = err
	h.mu.Unlock()
	if !wasReady {
		h.setState(stateStarted, "not ready yet: %s", withSaid(err))
	}
}

// watchLive starts after the first ready pass, so that no grace period is needed.
func (h *health) watchLive(ctx context.Context) {
	live := h.check(h.workload.manifest.Health.Live)
	for fails := 0; ; {
		if !sleep(ctx, live.interval) {
			return
		}
		err := live.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			fails = 0
			continue
		}
		if fails++; fails >= live.fail {
			h.tell(ctx, verdict{kind: verdictDead, why: err.Error(), said: saidBy(err)})
			return
		}
	}
}

func (h *health) tell(ctx context.Context, v verdict) bool {
	select {
	case h.verdicts <- v:
		return true
	case <-ctx.Done():
		return false
	}
}

// sleep waits for d, or less when ctx is done; then it returns false.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
