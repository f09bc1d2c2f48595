package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/volume"
)

// The causes of an attempt's end, as they are on the wire.
const (
	causeExited      = "exited"
	causeSignalled   = "signalled"
	causeGuestOOM    = "guest_oom"
	causeVMMOOM      = "vmm_oom"
	causeKernelPanic = "kernel_panic"
	causeStartFailed = "start_failed"
	causeLost        = "lost"
)

// tailLines is how much of an attempt's output goes into its cause, and tailBytes how much of each line: causes
// travel with every report.
const (
	tailLines = 10
	tailBytes = 1 << 10
)

// attempt is one start of an instance: one microVM with a fresh scratch disk. run owns it.
type attempt struct {
	*instance
	number uint32
	log    *slog.Logger
	stages []*pinnacev1.Stage
	stage  string    // the one that runs
	began  time.Time // of that

	pulled     time.Time // when all layers were there, if they were not before
	image      *image.Image
	attachment *network.Attachment
	uid        uint32
	dir        string
	machine    vm.Machine
	guest      *guest.Host
	boots      *pinnacev1.Booted // what the machine runs
	nonce      string            // of the boot, once init has said hello
	protocol   int               // that init speaks, likewise
	session    chan struct{}     // closed when the conversation with the guest is over
	sessionErr error             // why it is; set before session is closed
	endSession func()
	bootedAt   time.Time     // when init said hello
	startedAt  time.Time     // when the workload's process ran
	exit       *guest.Exit   // the guest's report, once it was taken from the session
	grace      time.Duration // what a stop gave the workload before it is killed
	cleanUps   []func(context.Context) error
	holds      []*volume.Hold // on the volumes, until the machine has them

	born    bool             // the record says that its number is used
	ending  *ending          // why it is being ended, if it is
	said    string           // by the check because of which it is
	end     *pinnacev1.Cause // how it ended, once that is known
	routed  routeState       // what connections it gets, as on record
	adopted bool             // an earlier agent has begun it
	keptEnd *pinnacev1.Cause // end, by an earlier agent
	last    *pinnacev1.Cause // the end of the instance that an earlier agent has kept

	// judge, when set, says what the agent knows of an end that it has caused itself. It is applied before
	// the end is kept.
	judge func(*pinnacev1.Cause)
}

func newAttempt(i *instance, number uint32) *attempt {
	return &attempt{instance: i, number: number, log: i.log.With("attempt", number)}
}

// ran is for how long the workload has been running, or had when it ended.
func (t *attempt) ran() time.Duration {
	if t.startedAt.IsZero() {
		return 0
	}
	return time.Since(t.startedAt)
}

// stageError says at which stage an attempt failed to start.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.stage + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// run makes the attempt, from the pull to the end of its machine, and returns why it ended. Nothing of it
// is left when it returns, unless it returns nil: then its machine runs on without this agent.
func (t *attempt) run(ctx context.Context) *pinnacev1.Cause {
	var cause *pinnacev1.Cause
	if t.adopted {
		if cause = t.goOn(ctx); cause != nil && t.keptEnd != nil {
			cause = t.keptEnd // which an earlier agent has learnt from the guest
		}
	} else {
		cause = t.startAndSupervise(ctx, []step{
			{"pull", statePulling, t.pull},
			{"network", stateStarting, t.attach},
			{"disks", stateStarting, t.makeDisks},
			{"jail", stateStarting, t.startMachine},
			{"kernel", stateStarting, t.awaitHello},
			{"init", stateStarting, t.configure},
		})
	}
	if cause == nil {
		t.leave()
		return nil
	}
	if t.dir != "" && t.end == nil {
		// Should the agent end before the machine is cleaned up, the next one knows.
		t.end = cause
		t.keepOrSay()
	}
	// What a stop interrupts must still be cleaned up.
	t.cleanUp(context.WithoutCancel(ctx))
	return cause
}

// A step of the start of an attempt. It begins as the stage of that name, and may go on to others; see next.
type step struct {
	stage string
	state string
	do    func(context.Context) (detail string, err error)
}

// startAndSupervise takes the steps to where the workload runs, and watches it from there.
func (t *attempt) startAndSupervise(ctx context.Context, steps []step) *pinnacev1.Cause {
	startCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-t.stopc:
			cancel(errStopped)
		case <-startCtx.Done():
		}
	}()
	err := t.start(startCtx, steps)
	interrupted := context.Cause(startCtx)
	cancel(nil)
	<-watched
	if err != nil {
		if leaving(ctx) && t.machine != nil {
			return nil
		}
		return t.startFailed(context.WithoutCancel(ctx), err, interrupted)
	}
	return t.supervise(ctx)
}

// errStopped interrupts a start because the instance is to stop.
var errStopped = errors.New("stopped while it was starting")

// start takes the attempt to the point where the workload's process runs.
func (t *attempt) start(ctx context.Context, steps []step) error {
	for _, step := range steps {
		t.setState(step.state, "%s", step.stage)
		t.stage, t.began = step.stage, time.Now()
		detail, err := step.do(ctx)
		if err != nil && leaving(ctx) {
			return &stageError{t.stage, err} // the next agent ends the stage
		}
		t.endStage(t.stage, detail)
		t.keepOrSay()
		if err != nil {
			return &stageError{t.stage, err}
		}
	}
	return nil
}

// next ends the stage that runs, at a time that may be past already, and begins another.
func (t *attempt) next(stage, detail string, at time.Time) {
	// Who says when it was may have another clock, or be a guest.
	if at.Before(t.began) {
		at = t.began
	}
	if now := time.Now(); at.After(now) {
		at = now
	}
	t.endStageAt(t.stage, detail, at)
	t.stage = stage
}

// endStage records the stage that has begun at t.began, and begins the next.
func (t *attempt) endStage(name, detail string) { t.endStageAt(name, detail, time.Now()) }

func (t *attempt) endStageAt(name, detail string, now time.Time) {
	t.stages = append(t.stages, &pinnacev1.Stage{
		Name: name, StartedAt: timestamppb.New(t.began), DurationMs: now.Sub(t.began).Milliseconds(), Detail: detail,
	})
	t.began = now
	stages := slices.Clip(t.stages)
	t.set(func(r *pinnacev1.InstanceReport) { r.Stages = stages })
}

// startFailed is the cause of an attempt that did not get as far as running its workload.
func (t *attempt) startFailed(ctx context.Context, err error, interrupted error) *pinnacev1.Cause {
	cause := &pinnacev1.Cause{Kind: causeStartFailed, Detail: err.Error(), At: timestamppb.Now()}
	if stage, ok := errors.AsType[*stageError](err); ok {
		cause.Stage, cause.Detail = stage.stage, stage.err.Error()
	}
	if interrupted != nil {
		cause.Planned, cause.Detail = true, errStopped.Error()
		return cause
	}
	if failed, ok := errors.AsType[*guest.StartError](err); ok {
		cause.Stage, cause.Detail, cause.Code = failed.Stage, failed.Message, int32(failed.Code)
		t.letGo(ctx)
		return cause
	}
	if t.machine == nil {
		return cause
	}
	// A machine that ended by itself says more than the time-out that noticed it, and if it did not end, its
	// console may tell where the boot stands.
	exit, known, byItself := t.postMortem(ctx)
	if byItself {
		t.blameMachine(cause, exit)
		if cause.Kind == causeLost {
			cause.Kind = causeStartFailed
		}
	} else if known {
		cause.LogTail = lastLines(exit.ConsoleTail, tailLines)
	}
	return cause
}

// letGo acknowledges the guest's report and waits until it has brought its file systems down. Clean-up kills
// what is left.
func (t *attempt) letGo(ctx context.Context) {
	if err := t.guest.AckExit(ctx); err != nil {
		if !errors.Is(err, guest.ErrClosed) {
			t.log.Warn("acknowledge the guest's report", "err", err)
		}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, t.agent.timing.reset)
	defer cancel()
	if _, err := t.machine.Wait(ctx); err != nil {
		t.log.Warn("the guest did not shut down after its report", "err", err)
	}
}

// postMortem finds out how the machine ended, and whether by itself; one that has not is killed. known is false
// when it does not end at all.
func (t *attempt) postMortem(ctx context.Context) (exit vm.Exit, known, byItself bool) {
	exit, err := t.machineExit(ctx, t.agent.timing.obituary)
	if err == nil {
		return exit, true, true
	}
	if err := t.machine.Kill(); err != nil {
		t.log.Error("kill the machine", "err", err)
	}
	exit, err = t.machineExit(ctx, t.agent.timing.reset)
	return exit, err == nil, false
}

// machineExit is how the machine ended, if it ends within patience.
func (t *attempt) machineExit(ctx context.Context, patience time.Duration) (vm.Exit, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return t.machine.Wait(ctx)
}

// blameMachine fills in the cause of a machine that ended without a report from its init.
func (t *attempt) blameMachine(cause *pinnacev1.Cause, exit vm.Exit) {
	cause.Detail = exit.String()
	switch {
	case exit.OOM:
		cause.Kind = causeVMMOOM
	case exit.Panic != "":
		cause.Kind = causeKernelPanic
	default:
		cause.Kind = causeLost
	}
	cause.LogTail = lastLines(exit.ConsoleTail, tailLines)
}

// lastLines are the last n lines of a console's output.
func lastLines(text string, n int) []string {
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(text, "\r", ""), "\n"), "\n")
	if len(lines) == 1 && lines[0] == "" {
		return nil
	}
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	for i, line := range lines {
		lines[i] = tailLine(line)
	}
	return lines
}

// tailLine makes a line of output fit for a cause.
func tailLine(line string) string {
	if len(line) > tailBytes {
		line = line[:tailBytes] + "…"
	}
	return strings.ToValidUTF8(line, "\uFFFD")
}

// onCleanUp remembers what undoes a step.
func (t *attempt) onCleanUp(undo func(context.Context) error) { t.cleanUps = append(t.cleanUps, undo) }

// leave gives up what is this process's only, and leaves the rest to the next agent.
func (t *attempt) leave() {
	t.hangUp()
	if t.machine != nil {
		t.machine.Release()
	}
}

// endMachine ends the machine, if it runs still.
func (t *attempt) endMachine(ctx context.Context) error {
	killErr := t.machine.Kill()
	_, err := t.machine.Wait(ctx)
	return errors.Join(killErr, err)
}

// cleanUp undoes the steps, the last first. Each has time of its own, so that one that hangs does not take the
// others with it.
func (t *attempt) cleanUp(ctx context.Context) {
	for _, undo := range slices.Backward(t.cleanUps) {
		step, cancel := context.WithTimeout(ctx, t.agent.timing.cleanUp)
		if err := undo(step); err != nil {
			t.log.Error("clean up after an attempt", "err", err)
		}
		cancel()
	}
}

// makeDir makes the attempt's own directory for what is gone with it.
func (t *attempt) makeDir() error {
	t.dir = filepath.Join(t.agent.machinesDir(), fmt.Sprintf("%s.%d", t.id, t.number))
	if err := os.RemoveAll(t.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	t.onCleanUp(func(context.Context) error { return os.RemoveAll(t.dir) })
	return nil
}

// bear makes it durable that the attempt's number is used.
func (t *attempt) bear() error {
	if t.born {
		return nil
	}
	if err := t.keepRecord(t.number, false, nil); err != nil {
		return fmt.Errorf("keep that the attempt has begun: %w", err)
	}
	t.born = true
	return nil
}
