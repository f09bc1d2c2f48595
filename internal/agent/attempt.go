package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/vm"
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

const (
	// helloWait is how long a guest may take from the start of its monitor to init's first word.
	helloWait = 90 * time.Second
	// startWait is how long init may take to run the workload once it has its configuration.
	startWait = 90 * time.Second
	// resetWait is how long the guest may take to shut down after its report was acknowledged.
	resetWait = 10 * time.Second
	// tailLines is how much of an attempt's output goes into its cause.
	tailLines = 10
)

// attempt is one start of an instance: one microVM with a fresh scratch disk. run owns it.
type attempt struct {
	*instance
	number uint32
	log    *slog.Logger
	stages []*pinnacev1.Stage
	began  time.Time // of the stage that runs

	image      *image.Image
	attachment *network.Attachment
	uid        uint32
	dir        string
	machine    vm.Machine
	guest      *guest.Host
	guestDone  chan struct{}
	cleanUps   []func(context.Context) error // undone in reverse order
}

func newAttempt(i *instance, number uint32) *attempt {
	return &attempt{instance: i, number: number, log: i.log.With("attempt", number)}
}

// stageError says at which stage an attempt failed to start.
type stageError struct {
	stage string
	err   error
}

func (e *stageError) Error() string { return e.stage + ": " + e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

// run makes the attempt, from the pull to the end of its machine, and returns why it ended. Nothing of it
// is left when it returns.
func (t *attempt) run(ctx context.Context) *pinnacev1.Cause {
	// What a stop interrupts must still be cleaned up.
	cleanCtx := context.WithoutCancel(ctx)
	defer t.cleanUp(cleanCtx)

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
	err := t.start(startCtx)
	interrupted := context.Cause(startCtx)
	cancel(nil)
	<-watched
	if err != nil {
		return t.startFailed(cleanCtx, err, interrupted)
	}
	return t.supervise(ctx)
}

// errStopped interrupts a start because the instance is to stop.
var errStopped = errors.New("stopped while it was starting")

// start takes the attempt to the point where the workload's process runs.
func (t *attempt) start(ctx context.Context) error {
	steps := []struct {
		stage string
		state string
		do    func(context.Context) (detail string, err error)
	}{
		{"pull", statePulling, t.pull},
		{"network", stateStarting, t.attach},
		{"disks", stateStarting, t.makeDisks},
		{"vmm", stateStarting, t.startMachine},
		{"kernel", stateStarting, t.awaitHello},
		{"init", stateStarting, t.configure},
	}
	for _, step := range steps {
		t.setState(step.state, "%s", step.stage)
		t.began = time.Now()
		detail, err := step.do(ctx)
		t.endStage(step.stage, detail)
		if err != nil {
			return &stageError{step.stage, err}
		}
	}
	return nil
}

// endStage records the stage that has begun at t.began, and begins the next.
func (t *attempt) endStage(name, detail string) {
	now := time.Now()
	t.stages = append(t.stages, &pinnacev1.Stage{
		Name: name, StartedAt: timestamppb.New(t.began), DurationMs: now.Sub(t.began).Milliseconds(), Detail: detail,
	})
	t.began = now
	stages := t.stages[:len(t.stages):len(t.stages)]
	t.set(func(r *pinnacev1.InstanceReport) { r.Stages = stages })
}

// startFailed is the cause of an attempt that did not get as far as running its workload.
func (t *attempt) startFailed(ctx context.Context, err error, interrupted error) *pinnacev1.Cause {
	cause := &pinnacev1.Cause{Kind: causeStartFailed, Detail: err.Error(), At: timestamppb.Now()}
	if interrupted != nil {
		cause.Planned = true
		cause.Detail = "stopped while it was starting"
	}
	var stage *stageError
	if errors.As(err, &stage) {
		cause.Stage = stage.stage
		if interrupted == nil {
			cause.Detail = stage.err.Error()
		}
	}
	var failed *guest.StartError
	if errors.As(err, &failed) {
		cause.Stage, cause.Detail, cause.Code = failed.Stage, failed.Message, int32(failed.Code) //nolint:gosec // 125 to 127.
		if err := t.guest.AckExit(ctx); err == nil {
			t.awaitReset(ctx)
		}
		return cause
	}
	// A guest that went away while it was starting says more than the time-out that noticed it.
	if t.machine != nil && interrupted == nil {
		if exit, ended := t.machineExit(ctx, time.Second); ended {
			t.blameMachine(cause, exit)
			if cause.Kind == causeLost {
				cause.Kind = causeStartFailed
			}
		}
	}
	return cause
}

// machineExit is how the machine ended, if it ends within patience.
func (t *attempt) machineExit(ctx context.Context, patience time.Duration) (vm.Exit, bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	exit, err := t.machine.Wait(ctx)
	return exit, err == nil
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
		lines[i] = strings.ToValidUTF8(line, "\uFFFD")
	}
	return lines
}

// onCleanUp remembers what undoes a step.
func (t *attempt) onCleanUp(undo func(context.Context) error) { t.cleanUps = append(t.cleanUps, undo) }

// cleanUp undoes the steps, the last first.
func (t *attempt) cleanUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for n := len(t.cleanUps) - 1; n >= 0; n-- {
		if err := t.cleanUps[n](ctx); err != nil {
			t.log.Error("clean up after an attempt", "err", err)
		}
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
