package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// The states of an instance, as they are on the wire.
const (
	statePlaced   = "placed"
	statePulling  = "pulling"
	stateStarting = "starting"
	stateStarted  = "started"
	stateReady    = "ready"
	stateUnready  = "unready"
	stateBackoff  = "backoff"
	stateStopping = "stopping"
	stateEnded    = "ended"
)

// instance is one assignment being acted on. run owns everything but the fields behind mu.
type instance struct {
	agent      *Agent
	id         string
	assignment *pinnacev1.Assignment
	workload   *workload // nil when the assignment could not be read
	log        *slog.Logger

	stopOnce sync.Once
	stopc    chan struct{} // closed when the instance is to stop for good
	hurried  atomic.Bool   // it is to stop without waiting for connections to end
	killOnce sync.Once
	killc    chan struct{} // closed when it is to stop at once; then stopc is, too
	done     chan struct{} // closed when nothing of the instance runs any more
	unwanted bool          // guarded by agent.mu: no assignment names it any more
	adopted  *attempt      // that which an earlier agent had made, if there is one; set before run
	updated  chan struct{} // has room for one: latest is another than it was

	mu      sync.Mutex
	latest  *pinnacev1.Assignment    // guarded by mu; the assignment as it came last
	status  pinnacev1.InstanceReport // guarded by mu; what reports read
	bundles bundles                  // guarded by mu; the secrets as they came last
	talk    *guest.Host              // guarded by mu; nil while no workload runs
	stats   latestStats              // guarded by mu; of the attempt that runs
}

func newInstance(a *Agent, asg *pinnacev1.Assignment, w *workload) *instance {
	return &instance{
		agent:      a,
		id:         asg.Instance,
		assignment: asg,
		workload:   w,
		log:        a.Log.With("instance", asg.Instance),
		stopc:      make(chan struct{}),
		killc:      make(chan struct{}),
		done:       make(chan struct{}),
		updated:    make(chan struct{}, 1),
		latest:     asg,
		status:     pinnacev1.InstanceReport{Instance: asg.Instance, State: statePlaced},
	}
}

// assign takes over an assignment of the instance that came later. What in it may change takes effect while the
// instance runs.
func (i *instance) assign(asg *pinnacev1.Assignment) {
	i.mu.Lock()
	same := proto.Equal(i.latest, asg)
	i.latest = asg
	i.mu.Unlock()
	if same {
		return
	}
	select {
	case i.updated <- struct{}{}:
	default:
	}
}

// assigned is the assignment as it came last.
func (i *instance) assigned() *pinnacev1.Assignment {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.latest
}

// requestStop asks for the end of the instance; more calls do nothing.
func (i *instance) requestStop() { i.stopOnce.Do(func() { close(i.stopc) }) }

// requestKill asks for the end of the instance without the time that a stop gives it.
func (i *instance) requestKill() {
	i.killOnce.Do(func() { close(i.killc) })
	i.requestStop()
}

func (i *instance) stopRequested() bool { return isClosed(i.stopc) }

// gone tells that nothing of the instance runs any more.
func (i *instance) gone() bool { return isClosed(i.done) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// report is a copy of the instance's status.
func (i *instance) report() *pinnacev1.InstanceReport {
	i.mu.Lock()
	defer i.mu.Unlock()
	r := &i.status
	return &pinnacev1.InstanceReport{
		Instance: r.Instance, Attempt: r.Attempt, State: r.State, Message: r.Message, Address: r.Address,
		Stages: append([]*pinnacev1.Stage(nil), r.Stages...), Booted: r.Booted, ReadyAt: r.ReadyAt,
		End: r.End, Final: r.Final, SecretVersions: r.SecretVersions, Usage: i.stats.usage(),
	}
}

// set changes the status and has it reported. The change must replace what it points to, not write into it.
func (i *instance) set(change func(r *pinnacev1.InstanceReport)) {
	i.mu.Lock()
	change(&i.status)
	i.mu.Unlock()
	i.agent.changed()
}

// setState changes what the instance is doing. Saying the same again is no news.
func (i *instance) setState(state, format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	i.mu.Lock()
	same := i.status.State == state && i.status.Message == message
	i.status.State, i.status.Message = state, message
	i.mu.Unlock()
	if !same {
		i.agent.changed()
	}
}

// refuse ends an instance that cannot be run because of what was assigned.
func (i *instance) refuse(attempt uint32, err error) {
	i.log.Error("refused an assignment", "err", err)
	i.set(func(r *pinnacev1.InstanceReport) {
		r.Attempt = attempt
		r.State, r.Message, r.Final = stateEnded, err.Error(), true
		r.End = &pinnacev1.Cause{Kind: causeStartFailed, Stage: "assignment", Detail: err.Error(), At: timestamppb.Now()}
	})
}

// run makes attempt after attempt until the instance has ended for good: because it was asked to stop,
// because its restart policy says so, or because the agent ends, which is when ctx is done. The first one may be under
// way already.
func (i *instance) run(ctx context.Context) {
	if i.adopted != nil {
		i.runFrom(ctx, i.adopted.number, i.adopted)
		return
	}
	rec, last, err := i.loadRecord()
	number := rec.Attempt
	if err != nil {
		i.refuse(number+1, err)
		return
	}
	if last != nil {
		// It ended under an earlier run of the agent, and the server has not taken note yet.
		i.set(func(r *pinnacev1.InstanceReport) { r.Attempt = number })
		i.end(last, true)
		return
	}
	switch {
	case rec.Unborn:
		number-- // nothing has run under it, and everybody else would count it as lost
	case number > 0 && i.once():
		i.lose(number)
		return
	}
	i.runFrom(ctx, number, nil)
}

// runFrom goes on with an attempt that is under way, if there is one, and then with attempts after that number.
func (i *instance) runFrom(ctx context.Context, number uint32, first *attempt) {
	pause := i.agent.timing.backoffFirst
	for first != nil || (!i.stopRequested() && ctx.Err() == nil) {
		var cause *pinnacev1.Cause
		var ran time.Duration
		if first != nil {
			cause, ran = first.run(ctx), first.ran()
			if cause != nil && first.last != nil {
				cause = first.last // an earlier agent has kept the end already
			}
			first = nil
		} else {
			if !i.awaitSecrets(ctx) {
				continue // it is to stop, or the agent ends
			}
			number++
			cause, ran = i.attempt(ctx, number)
		}
		if cause == nil {
			return // it runs on without this agent
		}
		final := i.isFinal(cause)
		if final {
			i.keepEnd(number, cause)
		}
		i.end(cause, final)
		if final || ctx.Err() != nil {
			return
		}
		if ran >= i.agent.timing.backoffReset {
			pause = i.agent.timing.backoffFirst
		}
		i.backOff(ctx, pause)
		pause = min(pause*2, i.agent.timing.backoffMax)
	}
	// Stopped while nothing ran: before the first attempt, which is no end of anything, or after an attempt
	// whose end stays what it was.
	i.set(func(r *pinnacev1.InstanceReport) { r.State, r.Message, r.Final = stateEnded, "", i.stopRequested() })
}

// attempt makes one attempt and returns why it ended, and for how long its workload ran.
func (i *instance) attempt(ctx context.Context, number uint32) (*pinnacev1.Cause, time.Duration) {
	t := newAttempt(i, number)
	err := i.keepRecord(number, true, nil)
	i.set(func(r *pinnacev1.InstanceReport) {
		r.Attempt, r.State, r.Message = number, statePlaced, ""
		r.Stages, r.Booted, r.ReadyAt, r.End, r.Address, r.SecretVersions = nil, nil, nil, nil, "", nil
	})
	if err != nil {
		// An attempt whose number is not safe does not begin. The disk may have room again for the next.
		err = fmt.Errorf("keep the number of the attempt: %w", err)
		return &pinnacev1.Cause{Kind: causeStartFailed, Stage: "record", Detail: err.Error(), At: timestamppb.Now()}, 0
	}
	cause := t.run(ctx)
	if cause != nil {
		// Its end is about to be told, so that its number is gone, whether there was a machine or not.
		if err := t.bear(); err != nil {
			i.log.Error("keep that an attempt was made", "err", err)
		}
	}
	return cause, t.ran()
}

func (i *instance) backOff(ctx context.Context, pause time.Duration) {
	i.setState(stateBackoff, "starting again in %s", pause)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-i.stopc:
	case <-ctx.Done():
	}
}

// isFinal tells whether an attempt that ended with cause was the last one.
func (i *instance) isFinal(cause *pinnacev1.Cause) bool {
	switch {
	case i.stopRequested():
		return true
	case i.once():
		return true
	case cause.Planned:
		// The agent ends, and with it what it runs. That is no end that the workload or its policy has
		// anything to do with: the next agent starts the instance again.
		return false
	}
	return !restarts(i.workload.manifest.Restart, cause)
}

// once tells whether there must never be a second attempt, whatever became of the first.
func (i *instance) once() bool { return i.assignment.GetOnce() }

// lose ends an instance that runs at most once and of which an attempt was begun, with nothing left that could prove how
// it ended: the host was started anew, or something has ended the machine while no agent was there.
func (i *instance) lose(number uint32) {
	cause := &pinnacev1.Cause{
		Kind: causeLost, At: timestamppb.Now(),
		Detail: "its machine has gone while no agent was there, and with it how far it came; it is not started again",
	}
	i.set(func(r *pinnacev1.InstanceReport) { r.Attempt = number })
	i.keepEnd(number, cause)
	i.end(cause, true)
}

// restarts tells whether the policy wants another attempt after an end that nobody had asked for.
func restarts(policy manifest.Restart, cause *pinnacev1.Cause) bool {
	switch policy {
	case manifest.RestartNever:
		return false
	case manifest.RestartOnFailure:
		return cause.Kind != causeExited || cause.Code != 0
	case manifest.RestartAlways:
	}
	return true
}

// keepEnd makes the end of the instance survive the agent.
func (i *instance) keepEnd(number uint32, cause *pinnacev1.Cause) {
	if err := i.keepRecord(number, false, cause); err != nil {
		i.log.Error("keep the end of the instance; after a restart the agent would start it again", "err", err)
	}
}

func (i *instance) end(cause *pinnacev1.Cause, final bool) {
	i.log.Info("attempt ended", "kind", cause.Kind, "code", cause.Code, "detail", cause.Detail, "final", final)
	i.set(func(r *pinnacev1.InstanceReport) {
		r.State, r.End, r.Final, r.Message = stateEnded, cause, final, ""
	})
}
