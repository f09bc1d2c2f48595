package rollout

import (
	"fmt"
	"time"
)

// StepKind tells the steps of a plan apart.
type StepKind int

// The kinds of steps.
const (
	// StepStart and StepStop are what Start and Stop ask for, StepSwitch is Switch.
	StepStart StepKind = iota
	StepStop
	StepSwitch
	// StepReady is an instance that becomes ready, StepHeld one that has been so for the hold time.
	StepReady
	StepHeld
	// StepEnded is an instance whose end something waits for, StepDone a Task that has succeeded.
	StepEnded
	StepDone
)

// Step is one thing that a deployment does, or waits for.
type Step struct {
	Kind     StepKind
	Side     Side
	Ordinal  int
	Instance string // of one that runs already; empty for one that the deployment starts
}

// Foresee returns the steps of a deployment in which everything goes well, in order. They come from Next itself: what
// is planned is what is done.
func Foresee(v View) []Step {
	f := foreseen{view: v, now: v.Since, planned: map[string]bool{}}
	f.view.Instances = append([]Instance(nil), v.Instances...)
	f.view.Away, f.view.Paused, f.view.Blocked = false, false, nil
	// Whatever the settings say, waiting is not what a plan fails for.
	f.view.Deadline, f.view.BootTimeout = endless, endless
	for f.act() {
		for f.wait() {
			if actions, _ := Next(f.view, f.now); len(actions) > 0 {
				break
			}
		}
	}
	return f.steps
}

const endless = 1000 * time.Hour

type foreseen struct {
	view    View
	now     time.Time
	steps   []Step
	planned map[string]bool // instances that the deployment starts
}

func (f *foreseen) add(kind StepKind, i Instance) {
	s := Step{Kind: kind, Side: i.Side, Ordinal: i.Ordinal, Instance: i.ID}
	if f.planned[i.ID] {
		s.Instance = ""
	}
	f.steps = append(f.steps, s)
}

// act takes the steps that are due; false when there are none any more.
func (f *foreseen) act() bool {
	actions, _ := Next(f.view, f.now)
	for _, a := range actions {
		switch a.Kind {
		case Start:
			i := Instance{ID: fmt.Sprintf("+%d", len(f.steps)), Ordinal: a.Ordinal, Side: a.Side, Reachable: true, StartedAt: f.now}
			f.planned[i.ID] = true
			f.view.Instances = append(f.view.Instances, i)
			f.add(StepStart, i)
		case Stop:
			for k := range f.view.Instances {
				if i := &f.view.Instances[k]; i.ID == a.Instance {
					i.Stopping, i.Ready, i.Reachable = true, false, true
					f.add(StepStop, *i)
				}
			}
		case Switch:
			f.view.Switched = true
			f.steps = append(f.steps, Step{Kind: StepSwitch})
		case TurnBack, Finish:
			return false
		}
	}
	return len(actions) > 0
}

// wait lets the next thing happen that the deployment waits for; false when it waits for nothing.
func (f *foreseen) wait() bool {
	all := f.view.Instances
	for k := range all {
		if i := &all[k]; i.Side == New && serves(*i) && !i.Ready && f.planned[i.ID] {
			i.Ready, i.EverReady, i.ReadySince = true, true, f.now
			f.add(StepReady, *i)
			return true
		}
	}
	for k := range all {
		if i := &all[k]; i.Side == Task && serves(*i) {
			i.Ended, i.Completed = true, true
			f.add(StepDone, *i)
			return true
		}
	}
	for k := range all {
		if i := &all[k]; i.Stopping && !i.Ended {
			i.Ended = true
			if f.view.StopFirst || f.view.Strategy == Recreate {
				f.add(StepEnded, *i)
			}
			return true
		}
	}
	for _, i := range all {
		if until := i.ReadySince.Add(f.view.Hold); i.Side == New && serves(i) && i.Ready && until.After(f.now) {
			f.now = until
			for _, held := range all {
				if held.Side == New && serves(held) && held.ReadySince.Equal(i.ReadySince) {
					f.add(StepHeld, held)
				}
			}
			return true
		}
	}
	return false
}
