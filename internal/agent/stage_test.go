package agent

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// failingDriver starts nothing.
type failingDriver struct {
	vm.Driver

	err error
}

func (d failingDriver) Start(context.Context, vm.Spec) (vm.Machine, error) {
	return nil, fmt.Errorf("start machine x: %w", d.err)
}

// TestStageOfAFailedStart: what keeps a monitor from being started is told from one that fails.
func TestStageOfAFailedStart(t *testing.T) {
	for stage, err := range map[string]error{
		"jail": vm.JailError(errors.New("no room")),
		"vmm":  errors.New("firecracker refused PUT /drives/disk0"),
	} {
		t.Run(stage, func(t *testing.T) {
			l := newLab(t)
			l.other = failingDriver{l.driver, err}
			l.start()
			l.assign("dev", "api-1", l.app("api", `restart = "never"`))
			r := l.awaitEnd("api-1")
			if end := r.End; end.Kind != causeStartFailed || end.Stage != stage || end.Detail != "start machine x: "+err.Error() {
				t.Errorf("got %v", end)
			}
			if last := r.Stages[len(r.Stages)-1]; last.Name != stage {
				t.Errorf("the last stage is %v", last)
			}
		})
	}
}

// TestGuestCannotLengthenStages: the time of the last step is the guest's word, and cannot be more than the stage that it
// was part of, nor less than nothing.
func TestGuestCannotLengthenStages(t *testing.T) {
	for _, marks := range [][]guest.Mark{
		nil,
		{{Name: "a", MS: 5}},
		{{Name: "a", MS: math.MaxInt64}, {Name: "b", MS: math.MinInt64}},
		{{Name: "a", MS: math.MinInt64}, {Name: "b", MS: math.MaxInt64}},
		{{Name: "a", MS: 0}, {Name: "b", MS: 1 << 40}},
	} {
		began := time.Now().Add(-time.Second)
		a := &attempt{instance: &instance{agent: &Agent{reportc: make(chan struct{}, 1)}}, stage: "init", began: began}
		a.next("exec", "", time.Now().Add(-lastStep(marks)))
		a.endStage(a.stage, "")
		var total time.Duration
		for _, s := range a.stages {
			if s.DurationMs < 0 {
				t.Errorf("marks %v: stage %v", marks, s)
			}
			total += time.Duration(s.DurationMs) * time.Millisecond
		}
		if took := time.Since(began); len(a.stages) != 2 || total > took {
			t.Errorf("marks %v: %d stages of %s in %s", marks, len(a.stages), total, took)
		}
	}
}
