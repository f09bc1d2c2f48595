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
	defer t.talks()()
	if t.ending != nil {
		return t.goOnEnding(ctx)
	}
	health := watchHealth(ctx, t)
	defer health.end()
	secrets := t.newRotation()
	defer secrets.end()
	rotating, endRotating := context.WithCancel(ctx)
	defer endRotating()
	attended := t.beginAttending(ctx)
	defer attended()
	bootTimeout := t.workload.manifest.Rollout.BootTimeout
	bootDeadline := time.NewTimer(time.Until(t.bootedAt.Add(bootTimeout)))
	defer bootDeadline.Stop()
	if t.wasReady() {
		bootDeadline.Stop() // under an earlier agent
	}
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
				t.noteSaid("health.live", verdict.said)
				return t.endFor(ctx, ending{Kind: endingDead, Why: verdict.why}, drain)
			}
		case <-t.updated:
			t.follow(ctx)
			secrets.next(rotating)
		case <-secrets.again.C:
			secrets.next(rotating)
		case d := <-secrets.done:
			secrets.finish(rotating, d)
		case <-bootDeadline.C:
			health.end()
			why := ending{Kind: endingLate}
			if err := health.lastFailure(); err != nil {
				why.Why = err.Error()
				t.noteSaid("health.ready", saidBy(err))
			}
			return t.endFor(ctx, why, 0)
		case <-t.stopc:
			health.end()
			if t.hurried.Load() {
				drain = 0
			}
			return t.endFor(ctx, ending{Kind: endingPlanned, Final: true}, drain)
		case <-ctx.Done():
			health.end()
			if leaving(ctx) {
				return nil
			}
			// The agent itself ends: there is nobody left to keep connections for.
			return t.endFor(ctx, ending{Kind: endingPlanned}, 0)
		}
	}
}

// follow does what a later assignment of the instance says.
func (t *attempt) follow(ctx context.Context) {
	t.keepOrSay()
	if err := t.agent.routes.park(ctx, t.id, t.assigned().GetParked()); err != nil {
		t.log.Warn("change the routing", "parked", t.assigned().GetParked(), "err", err)
	}
}

// wasReady tells whether the attempt has been ready before.
func (t *attempt) wasReady() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status.ReadyAt != nil
}

// endFor ends the workload for a reason, which is kept first: should the agent end before the workload, the next one
// goes on with the same.
func (t *attempt) endFor(ctx context.Context, why ending, drain time.Duration) *pinnacev1.Cause {
	why.Since = time.Now()
	t.ending = &why
	t.keepOrSay()
	t.applyEnding()
	return t.stop(ctx, drain)
}

// goOnEnding goes on with what an earlier agent has begun. Connections have been draining since.
func (t *attempt) goOnEnding(ctx context.Context) *pinnacev1.Cause {
	t.applyEnding()
	drain := time.Duration(0)
	if t.ending.Kind == endingDead || t.ending.Final {
		drain = max(0, t.workload.manifest.Stop.Drain-time.Since(t.ending.Since))
	}
	return t.stop(ctx, drain)
}

// applyEnding has the end judged by why the agent ends it, if it does.
func (t *attempt) applyEnding() {
	if t.ending == nil {
		return
	}
	switch t.ending.Kind {
	case endingDead:
		t.judge = t.judgeDead(t.ending.Why)
	case endingLate:
		t.judge = t.judgeLate(t.workload.manifest.Rollout.BootTimeout, t.ending.Why)
	default:
		t.judge = judgePlanned
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
	t.keepOrSay()
}

// route changes how connections reach the instance. It is on record before it is done: an agent that takes over gives the
// proxy what the record says, and must not take a backend away that has connections. A proxy that cannot be told is tried again by the
// agent's own loop, so the error is worth a line, not the attempt.
func (t *attempt) route(ctx context.Context, state routeState) {
	if t.routed != state {
		t.routed = state
		t.keepOrSay()
	}
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
	cause := t.causeOf(exit)
	// The acknowledgement is the guest's permission to forget the report.
	t.end = cause
	t.keepOrSay()
	if t.isFinal(cause) {
		t.keepEnd(t.number, cause)
	}
	t.letGo(ctx)
	t.accountForLines(exit.LastLine)
	if cause.Kind != causeExited || cause.Code != 0 {
		cause.LogTail = t.tail()
	}
	return cause
}

// accountForLines puts a marker where the last lines of the output are missing, up to the one that the guest has named
// as the last: it ended before they had come.
func (t *attempt) accountForLines(last uint64) {
	if last == 0 {
		return // there was none
	}
	t.hangUp() // nothing comes any more, or it would come behind the marker
	have, err := t.agent.logs.lastSeq(t.id, t.number)
	if err == nil && last > have {
		_, err = t.agent.logs.append(t.id, t.number, guest.Line{
			Seq: last, Time: time.Now().UnixNano(), Stream: guest.StreamStdout, Dropped: last - have,
		})
	}
	if err != nil {
		t.log.Error("account for the last lines of the output", "err", err)
	}
}

// causeOf is the cause of an end that the guest has reported.
func (t *attempt) causeOf(exit guest.Exit) *pinnacev1.Cause {
	cause := &pinnacev1.Cause{Kind: causeExited, Code: int32(exit.Code), At: timestamppb.New(t.exitTime(exit))}
	switch {
	case exit.OOM:
		cause.Kind, cause.Signal = causeGuestOOM, exit.Signal
		if v := exit.Victim; v != nil {
			cause.Detail = fmt.Sprintf("the guest's kernel killed process %d, %q", v.PID, v.Name)
		}
	case exit.Signal != "":
		cause.Kind, cause.Signal = causeSignalled, exit.Signal
	}
	switch {
	case exit.Error != "":
		// Nothing that the workload did: its microVM broke, as one does that ends without a report.
		cause.Kind, cause.Code, cause.Signal = causeLost, 0, ""
		cause.Detail = "init failed and ended the machine: " + exit.Error
	case exit.Killed && t.grace == 0:
		cause.Detail = "killed at once, as was asked"
	case exit.Killed:
		cause.Detail = fmt.Sprintf("killed, because it had not stopped within %s", t.grace)
	}
	if t.judge != nil {
		t.judge(cause)
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
		if report, ok := guest.ConsoleReport(exit.ConsoleTail, t.nonce); ok {
			// The guest said it on the console as well, for a host that does not hear the other.
			cause = t.causeOf(report)
			t.accountForLines(report.LastLine)
			if cause.Kind != causeExited || cause.Code != 0 {
				cause.LogTail = t.tail()
			}
			return cause
		}
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
	if t.session != nil && isClosed(t.session) {
		return t.sessionErr.Error()
	}
	return "the guest does not answer"
}

// tail are the last lines of the attempt's output, and what the check said for which it was ended.
func (t *attempt) tail() []string {
	lines := t.agent.logs.tail(t.id, t.number)
	if t.said != "" {
		lines = append(lines, t.said)
	}
	return lines
}

// noteSaid notes what the check wrote for which the attempt is ended.
func (t *attempt) noteSaid(check, said string) {
	if said != "" {
		t.said = check + " said: " + said
	}
}

func joinDetail(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}
