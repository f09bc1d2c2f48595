package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
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

// Back-off between the attempts of an instance.
const (
	backoffFirst = time.Second
	backoffMax   = time.Minute
	// backoffReset is how long an attempt must have run for the next failure to count as a first one.
	backoffReset = 10 * time.Minute
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
	done     chan struct{} // closed when run has returned

	mu     sync.Mutex
	status pinnacev1.InstanceReport // guarded by mu; what reports and routes read
}

func newInstance(a *Agent, asg *pinnacev1.Assignment, w *workload) *instance {
	return &instance{
		agent:      a,
		id:         asg.Instance,
		assignment: asg,
		workload:   w,
		log:        a.Log.With("instance", asg.Instance),
		stopc:      make(chan struct{}),
		done:       make(chan struct{}),
		status:     pinnacev1.InstanceReport{Instance: asg.Instance, State: statePlaced},
	}
}

// requestStop asks for the end of the instance; more calls do nothing.
func (i *instance) requestStop() { i.stopOnce.Do(func() { close(i.stopc) }) }

func (i *instance) stopRequested() bool {
	select {
	case <-i.stopc:
		return true
	default:
		return false
	}
}

// gone tells that nothing of the instance runs any more.
func (i *instance) gone() bool {
	select {
	case <-i.done:
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
		End: r.End, Final: r.Final,
	}
}

// set changes the status and has it reported. The change must replace what it points to, not write into it.
func (i *instance) set(change func(r *pinnacev1.InstanceReport)) {
	i.mu.Lock()
	change(&i.status)
	i.mu.Unlock()
	i.agent.changed()
}

func (i *instance) setState(state, format string, args ...any) {
	i.set(func(r *pinnacev1.InstanceReport) { r.State, r.Message = state, fmt.Sprintf(format, args...) })
}

// refuse ends an instance that cannot be run because of what was assigned.
func (i *instance) refuse(err error) {
	i.log.Error("refused an assignment", "err", err)
	i.set(func(r *pinnacev1.InstanceReport) {
		r.Attempt = 1
		r.State, r.Message, r.Final = stateEnded, err.Error(), true
		r.End = &pinnacev1.Cause{Kind: causeStartFailed, Stage: "assignment", Detail: err.Error(), At: timestamppb.Now()}
	})
}

// run makes attempt after attempt until the instance has ended for good: because it was asked to stop,
// because its restart policy says so, or because the agent ends, which is when ctx is done.
func (i *instance) run(ctx context.Context) {
	backoff := backoffFirst
	number, err := i.loadAttempt()
	if err != nil {
		i.refuse(err)
		return
	}
	for {
		if i.stopRequested() || ctx.Err() != nil {
			i.end(&pinnacev1.Cause{Kind: causeExited, Planned: true, Detail: "stopped before it was started", At: timestamppb.Now()}, i.stopRequested())
			return
		}
		number++
		if err := i.saveAttempt(number); err != nil {
			i.refuse(fmt.Errorf("keep the attempt's number: %w", err))
			return
		}
		began := time.Now()
		i.set(func(r *pinnacev1.InstanceReport) {
			r.Attempt, r.State, r.Message = number, statePlaced, ""
			r.Stages, r.Booted, r.ReadyAt, r.End, r.Address = nil, nil, nil, nil, ""
		})
		cause := newAttempt(i, number).run(ctx)

		final := i.stopRequested() || !i.restarts(cause)
		i.end(cause, final)
		if final || ctx.Err() != nil {
			return
		}
		if time.Since(began) >= backoffReset {
			backoff = backoffFirst
		}
		i.setState(stateBackoff, "starting again in %s", backoff)
		select {
		case <-time.After(backoff):
		case <-i.stopc:
		case <-ctx.Done():
		}
		backoff = min(backoff*2, backoffMax)
	}
}

// restarts says whether the manifest wants another attempt after one that ended with cause.
func (i *instance) restarts(cause *pinnacev1.Cause) bool {
	succeeded := cause.Kind == causeExited && cause.Code == 0
	switch i.workload.manifest.Restart {
	case "never":
		return false
	case "on-failure":
		return !succeeded
	}
	return true
}

func (i *instance) end(cause *pinnacev1.Cause, final bool) {
	i.log.Info("attempt ended", "kind", cause.Kind, "code", cause.Code, "detail", cause.Detail, "final", final)
	i.set(func(r *pinnacev1.InstanceReport) {
		r.State, r.End, r.Final, r.Message = stateEnded, cause, final, ""
	})
}

// attemptRecord is what the agent keeps of an instance: a number is never used twice, so that logs and
// events of two attempts cannot be mistaken for one another.
type attemptRecord struct {
	Attempt uint32 `json:"attempt"`
}

func (i *instance) recordPath() string {
	return filepath.Join(i.agent.instancesDir(), i.id+".json")
}

func (i *instance) loadAttempt() (uint32, error) {
	if !filepath.IsLocal(i.id) || filepath.Base(i.id) != i.id {
		return 0, fmt.Errorf("%q cannot be the name of an instance", i.id)
	}
	b, err := os.ReadFile(i.recordPath())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var rec attemptRecord
	if err := json.Unmarshal(b, &rec); err != nil {
		return 0, fmt.Errorf("read %s: %w", i.recordPath(), err)
	}
	return rec.Attempt, nil
}

func (i *instance) saveAttempt(n uint32) error {
	b, err := json.Marshal(attemptRecord{Attempt: n})
	if err != nil {
		return err
	}
	return durable.WriteFile(i.recordPath(), b, 0o600)
}

// forget removes what the agent keeps of an instance that is gone. Its logs stay for their time.
func (a *Agent) forget(i *instance) {
	if err := os.Remove(i.recordPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		i.log.Warn("remove the instance's record", "err", err)
	}
	a.logs.closeInstance(i.id)
}
