package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// supervise watches an attempt whose workload runs, until it has ended, and returns why.
func (t *attempt) supervise(ctx context.Context) *pinnacev1.Cause {
	health := watchHealth(ctx, t)
	defer health.end()
	bootTimeout := t.workload.manifest.Rollout.BootTimeout
	bootDeadline := time.NewTimer(time.Until(t.bootedAt.Add(bootTimeout)))
	defer bootDeadline.Stop()
	drain := t.workload.manifest.Stop.Drain
	for {
		select {
		case exit := <-t.guest.Exit():
			return t.exited(ctx, exit)
		case <-t.guest.Done():
			return t.sessionOver(ctx)
		case verdict := <-health.verdicts:
			switch verdict.kind {
			case verdictReady:
				bootDeadline.Stop()
				t.becomeReady(ctx)
			case verdictUnready:
				// Connections that are there stay: whether they still work is theirs to find out.
				t.route(ctx, routeDraining)
				t.setState(stateUnready, "%s", verdict.why)
			case verdictDead:
				health.end()
				t.judge = t.judgeDead(verdict.why)
				return t.stop(ctx, drain)
			}
		case <-bootDeadline.C:
			health.end()
			t.judge = t.judgeLate(bootTimeout, health.lastFailure())
			return t.stop(ctx, 0)
		case <-t.stopc:
			health.end()
			t.judge = judgePlanned
			return t.stop(ctx, drain)
		case <-ctx.Done():
			// The agent itself ends: there is nobody left to keep connections for.
			health.end()
			t.judge = judgePlanned
			return t.stop(ctx, 0)
		}
	}
}

func judgePlanned(cause *pinnacev1.Cause) { cause.Planned = true }

// judgeDead is for a workload that was stopped because health.live failed. One that then exits with 0 has not
// done what it had to do: the platform's signal ended it.
func (t *attempt) judgeDead(why string) func(*pinnacev1.Cause) {
	return func(cause *pinnacev1.Cause) {
		detail := "health.live failed: " + why
		if cause.Kind == causeExited && cause.Code == 0 {
			detail += "; exited with code 0 when it was told to stop"
			cause.Kind, cause.Signal = causeSignalled, t.stopSignal()
		}
		cause.Detail = joinDetail(detail, cause.Detail)
	}
}

// judgeLate is for a workload that was stopped because it did not become ready in time.
func (t *attempt) judgeLate(timeout time.Duration, failure string) func(*pinnacev1.Cause) {
	return func(cause *pinnacev1.Cause) {
		cause.Kind, cause.Stage = causeStartFailed, "ready"
		cause.Detail = fmt.Sprintf("not ready within boot_timeout (%s)", timeout)
		if failure != "" {
			cause.Detail += ": " + failure
		}
		cause.LogTail = t.tail()
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
		if err := t.agent.keeper.ready(ctx, t.instance); err != nil {
			t.log.Warn("remember that the image is good", "err", err)
		}
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

// reported is the guest's report, if there is one.
func (t *attempt) reported() (guest.Exit, bool) {
	if t.exit == nil {
		select {
		case exit := <-t.guest.Exit():
			t.exit = &exit
		default:
			return guest.Exit{}, false
		}
	}
	return *t.exit, true
}

// sessionOver is the cause of an attempt whose guest has gone silent: what it reported before, or that it is
// lost.
func (t *attempt) sessionOver(ctx context.Context) *pinnacev1.Cause {
	if exit, ok := t.reported(); ok {
		return t.exited(ctx, exit)
	}
	return t.lostGuest(ctx)
}

// exited is the cause of an end that the guest has reported. It lets the guest shut down.
func (t *attempt) exited(ctx context.Context, exit guest.Exit) *pinnacev1.Cause {
	ctx = context.WithoutCancel(ctx)
	t.route(ctx, routeNone)
	cause := &pinnacev1.Cause{Kind: causeExited, Code: int32(exit.Code), At: timestamppb.New(t.exitTime(exit))}
	switch {
	case exit.OOM:
		cause.Kind, cause.Signal = causeGuestOOM, exit.Signal
	case exit.Signal != "":
		cause.Kind, cause.Signal = causeSignalled, exit.Signal
	}
	if exit.Killed {
		cause.Detail = fmt.Sprintf("killed, because it had not stopped within %s", t.grace)
	}
	if t.judge != nil {
		t.judge(cause)
	}
	// The acknowledgement is the guest's permission to forget the report.
	if t.isFinal(cause) {
		t.keepEnd(t.number, cause)
	}
	t.letGo(ctx)
	if cause.Kind != causeExited || cause.Code != 0 {
		cause.LogTail = t.tail()
	}
	return cause
}

// exitTime is when the workload ended: by the guest's clock, which only a guest that tells the truth can say,
// unless that cannot be.
func (t *attempt) exitTime(exit guest.Exit) time.Time {
	now := time.Now()
	if at := time.Unix(0, exit.ExitedAt); at.After(t.startedAt) && at.Before(now) {
		return at
	}
	return now
}

// lostGuest is the cause of an end without a report: never a success, whatever the monitor's status is.
func (t *attempt) lostGuest(ctx context.Context) *pinnacev1.Cause {
	ctx = context.WithoutCancel(ctx)
	t.route(ctx, routeNone)
	cause := &pinnacev1.Cause{Kind: causeLost, At: timestamppb.Now()}
	if exit, _, byItself := t.postMortem(ctx); byItself {
		t.blameMachine(cause, exit)
	} else {
		cause.Detail = t.silence()
		cause.LogTail = t.tail()
	}
	if t.judge != nil {
		t.judge(cause)
	}
	return cause
}

// silence says why nothing is heard of a guest whose machine had to be killed.
func (t *attempt) silence() string {
	if isClosed(t.session) {
		return t.sessionErr.Error()
	}
	return "the guest does not answer"
}

// tail are the last lines of the attempt's output.
func (t *attempt) tail() []string { return t.agent.logs.tail(t.id, t.number) }

func joinDetail(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
