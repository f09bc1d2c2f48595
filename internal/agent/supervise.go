package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// supervise watches an attempt whose workload runs, until it has ended, and returns why.
func (t *attempt) supervise(ctx context.Context) *pinnacev1.Cause {
	// Health is watched until the attempt ends; a stop does without it.
	healthCtx, endHealth := context.WithCancel(ctx)
	health := newHealth(t)
	healthDone := make(chan struct{})
	go func() { defer close(healthDone); health.run(healthCtx) }()
	defer func() { endHealth(); <-healthDone }()

	bootDeadline := time.NewTimer(t.workload.manifest.Rollout.BootTimeout)
	defer bootDeadline.Stop()
	for {
		select {
		case exit := <-t.guest.Exit():
			return t.exited(ctx, exit)
		case <-t.guest.Done():
			return t.lostGuest(ctx)
		case verdict := <-health.verdicts:
			switch verdict.kind {
			case verdictReady:
				bootDeadline.Stop()
				t.becomeReady(ctx)
			case verdictUnready:
				t.setState(stateUnready, "%s", verdict.why)
				t.route(ctx, routeNone)
			case verdictDead:
				cause := t.stopWorkload(ctx, t.workload.manifest.Stop.Drain)
				cause.Planned = false
				cause.Detail = joinDetail("restarted because health.live failed: "+verdict.why, cause.Detail)
				return cause
			}
		case <-bootDeadline.C:
			why := health.lastFailure()
			cause := t.stopWorkload(ctx, 0)
			cause.Kind, cause.Stage, cause.Planned = causeStartFailed, "ready", false
			cause.Detail = fmt.Sprintf("not ready within boot_timeout (%s)", t.workload.manifest.Rollout.BootTimeout)
			if why != "" {
				cause.Detail += ": " + why
			}
			cause.LogTail = t.agent.logs.tail(t.id, t.number, tailLines)
			return cause
		case <-t.stopc:
			return t.stopWorkload(ctx, t.workload.manifest.Stop.Drain)
		case <-ctx.Done():
			// The agent itself ends: there is nobody left to keep connections for.
			return t.stopWorkload(ctx, 0)
		}
	}
}

// becomeReady puts the instance into routing.
func (t *attempt) becomeReady(ctx context.Context) {
	t.route(ctx, routeActive)
	t.mu.Lock()
	first := t.status.ReadyAt == nil
	t.mu.Unlock()
	if first {
		t.endStage("ready", "")
	}
	t.set(func(r *pinnacev1.InstanceReport) {
		r.State, r.Message = stateReady, ""
		if first {
			r.ReadyAt = timestamppb.Now()
		}
	})
}

// route changes how connections reach the instance. A proxy that cannot be told is tried again by the
// agent's own loop, so the error is worth a line, not the attempt.
func (t *attempt) route(ctx context.Context, state routeState) {
	if err := t.agent.routes.set(ctx, t.id, state); err != nil {
		t.log.Warn("change the routing", "to", string(state), "err", err)
	}
}

// stopWorkload ends the workload in order: leave the routing, drain, signal, time-out, kill.
func (t *attempt) stopWorkload(ctx context.Context, drain time.Duration) *pinnacev1.Cause {
	agentEnds := ctx.Err() != nil
	ctx = context.WithoutCancel(ctx)
	timeout := t.workload.manifest.Stop.Timeout
	if agentEnds {
		timeout = min(timeout, stopOnExit/2)
	}
	t.setState(stateStopping, "leaving the routing")
	began := time.Now()
	t.began = began
	if exit, ended := t.drain(ctx, drain); ended {
		cause := t.exited(ctx, exit)
		cause.Planned = true
		return cause
	}
	detail := ""
	if drained := time.Since(began); drained >= 10*time.Millisecond {
		detail = fmt.Sprintf("drained for %s", drained.Round(10*time.Millisecond))
	}
	t.setState(stateStopping, "stopping; %s at most", timeout)
	cause := t.signalWorkload(ctx, timeout)
	cause.Planned = true
	t.endStage("stop", joinDetail(detail, cause.Detail))
	return cause
}

// drain waits until the connections to the instance have ended, for at most patience. It returns the exit
// report when the workload ended meanwhile.
func (t *attempt) drain(ctx context.Context, patience time.Duration) (guest.Exit, bool) {
	routed := t.agent.routes.state(t.id) == routeActive
	t.route(ctx, routeDraining)
	if !routed || patience <= 0 {
		return guest.Exit{}, false
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		open, err := t.agent.routes.openConnections(ctx, t.id)
		if err == nil && open == 0 {
			return guest.Exit{}, false
		}
		t.setState(stateStopping, "draining %d connections", open)
		select {
		case exit := <-t.guest.Exit():
			return exit, true
		case <-t.guest.Done():
			return guest.Exit{}, false
		case <-deadline.C:
			return guest.Exit{}, false
		case <-tick.C:
		}
	}
}

// signalWorkload sends the stop signal and returns how the workload ended.
func (t *attempt) signalWorkload(ctx context.Context, timeout time.Duration) *pinnacev1.Cause {
	err := t.guest.Stop(ctx, "", timeout)
	select {
	case exit := <-t.guest.Exit():
		cause := t.exited(ctx, exit)
		if exit.Killed {
			cause.Detail = joinDetail(cause.Detail, fmt.Sprintf("killed after stop.timeout (%s)", timeout))
		}
		return cause
	default:
	}
	cause := t.lostGuest(ctx)
	if err != nil {
		cause.Detail = joinDetail(cause.Detail, "the guest did not stop: "+err.Error())
	}
	return cause
}

// exited is the cause of an end that the guest has reported. It lets the guest shut down.
func (t *attempt) exited(ctx context.Context, exit guest.Exit) *pinnacev1.Cause {
	ctx = context.WithoutCancel(ctx)
	t.route(ctx, routeNone)
	cause := &pinnacev1.Cause{Kind: causeExited, Code: int32(exit.Code), At: timestamppb.Now()} //nolint:gosec // An exit status fits.
	if exit.ExitedAt > 0 {
		cause.At = timestamppb.New(time.Unix(0, exit.ExitedAt))
	}
	switch {
	case exit.OOM:
		cause.Kind, cause.Signal = causeGuestOOM, exit.Signal
	case exit.Signal != "":
		cause.Kind, cause.Signal = causeSignalled, exit.Signal
	}
	if err := t.guest.AckExit(ctx); err != nil && !errors.Is(err, guest.ErrClosed) {
		t.log.Warn("acknowledge the exit report", "err", err)
	}
	t.awaitReset(ctx)
	if cause.Kind != causeExited || cause.Code != 0 {
		cause.LogTail = t.agent.logs.tail(t.id, t.number, tailLines)
	}
	return cause
}

// awaitReset gives the guest time to bring its file systems down; clean-up kills what is left.
func (t *attempt) awaitReset(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, resetWait)
	defer cancel()
	if _, err := t.machine.Wait(ctx); err != nil {
		t.log.Warn("the guest did not shut down after its report", "err", err)
	}
}

// lostGuest is the cause of an end without a report: never a success, whatever the monitor's status is.
func (t *attempt) lostGuest(ctx context.Context) *pinnacev1.Cause {
	ctx = context.WithoutCancel(ctx)
	t.route(ctx, routeNone)
	cause := &pinnacev1.Cause{Kind: causeLost, At: timestamppb.Now()}
	exit, ended := t.machineExit(ctx, 3*time.Second)
	if !ended {
		// The monitor lives and the guest does not answer.
		cause.Detail = "the guest stopped answering"
		cause.LogTail = t.agent.logs.tail(t.id, t.number, tailLines)
		return cause
	}
	t.blameMachine(cause, exit)
	return cause
}

func joinDetail(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
