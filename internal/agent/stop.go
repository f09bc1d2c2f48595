package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// stop ends the workload in order: leave the routing, drain, signal, time-out, kill. When ctx is done, because
// the agent itself ends, it is in more of a hurry.
func (t *attempt) stop(ctx context.Context, drain time.Duration) *pinnacev1.Cause {
	t.setState(stateStopping, "leaving the routing")
	t.began = time.Now()
	ended := t.drain(ctx, drain)
	if leaving(ctx) && !ended {
		return nil
	}
	detail := ""
	if drained := time.Since(t.began); drained >= 10*time.Millisecond {
		detail = fmt.Sprintf("drained for %s", drained.Round(10*time.Millisecond))
	}
	var cause *pinnacev1.Cause
	if ended {
		cause = t.sessionOver(ctx)
	} else {
		cause = t.signal(ctx)
	}
	if cause == nil {
		return nil
	}
	t.endStage("stop", joinDetail(detail, cause.Detail))
	return cause
}

// drain waits until the connections to the instance have ended, for at most patience. It tells whether the
// workload ended meanwhile.
func (t *attempt) drain(ctx context.Context, patience time.Duration) bool {
	if t.agent.routes.state(t.id) == routeNone {
		return false // nothing routes to it
	}
	t.route(ctx, routeDraining)
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(t.agent.timing.drain)
	defer tick.Stop()
	for patience > 0 {
		switch open, err := t.agent.routes.openConnections(ctx, t.id); {
		case err != nil:
			t.setState(stateStopping, "draining, for %s at most; the proxy does not say what is open", patience)
		case open == 0:
			return false
		default:
			t.setState(stateStopping, "draining %d connections, for %s at most", open, patience)
		}
		select {
		case exit := <-t.guest.Exit():
			t.exit = &exit
			return true
		case <-t.guest.Done():
			return true
		case <-deadline.C:
			return false
		case <-t.killc:
			return false
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return false
}

// signal sends the stop signal and returns how the workload ended.
func (t *attempt) signal(ctx context.Context) *pinnacev1.Cause {
	timeout := t.workload.manifest.Stop.Timeout
	hurried := min(timeout, t.agent.timing.stopOnExit)
	if ctx.Err() != nil {
		timeout = hurried
	}
	if isClosed(t.killc) {
		timeout = 0
	}
	t.grace = timeout
	t.setState(stateStopping, "stopping, for %s at most", timeout)
	err := t.guestStop(ctx, timeout, hurried)
	if errors.Is(err, errLeft) {
		return nil
	}
	if exit, ok := t.reported(); ok {
		return t.exited(ctx, exit)
	}
	cause := t.lostGuest(ctx)
	if err != nil {
		cause.Detail = joinDetail(cause.Detail, "the guest did not stop: "+err.Error())
	}
	return cause
}

// guestStop has the guest stop the workload within timeout, within hurried from the moment at which ctx is done, or at
// once from the moment at which the instance is to be killed.
func (t *attempt) guestStop(ctx context.Context, timeout, hurried time.Duration) error {
	patient, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	if ctx.Err() != nil {
		return t.guest.Stop(patient, "", timeout)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- t.guest.Stop(patient, "", timeout) }()
	select {
	case err := <-stopped:
		return err
	case <-t.killc:
		hurried = 0
	case <-ctx.Done():
	}
	if leaving(ctx) {
		giveUp() // waiting only: the guest goes on
		if <-stopped == nil {
			return nil // it ended just then
		}
		return errLeft
	}
	t.grace = hurried
	err := t.guest.Stop(patient, "", hurried)
	giveUp()
	if <-stopped == nil {
		return nil
	}
	return err
}

// stopSignal is what the guest was configured to stop its workload with.
func (t *attempt) stopSignal() string {
	return firstOf(t.workload.manifest.Stop.Signal, t.image.Config.StopSignal, "SIGTERM")
}
