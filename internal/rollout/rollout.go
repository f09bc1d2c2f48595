// Package rollout decides the next step of a deployment.
//
// Next is a pure function from what is known of a deployment to the actions that are due now. Whoever
// calls it carries them out and calls again when something has changed or when the time has come that Next
// named; nothing is remembered between two calls, so a server that was killed goes on from its log and the
// reports of the agents. It does not choose hosts (package scheduler) and starts nothing itself.
//
// Deployments start first: an instance of the previous side is stopped only for one of the new side that has
// been ready for the hold time, so the number of ready instances never falls below the count because of the
// rollout. With volumes, which have one holder at a time, they stop first, and the number never falls below the
// count less max_parallel. Only a recreate stops everything before it starts anything. A deployment turns back, or
// pauses, at the first sign that the new side does not come up.
package rollout

import (
	"time"
)

// CrashLimit is the number of unplanned ends after which an instance that has not held yet counts as
// crash-looping.
const CrashLimit = 3

// Side says what an instance belongs to, as seen from the deployment.
type Side int

// The sides of a deployment.
const (
	// New is what the deployment brings in.
	New Side = iota
	// Previous is what served before and what a rollback goes back to.
	Previous
	// Other is what an earlier deployment left behind that ended mixed; it goes in every case.
	Other
	// Task is the one-off that runs before the new side is brought in: it serves nobody, and is not counted.
	Task
	sides
)

// Strategy is how the new side takes over.
type Strategy int

// The strategies.
const (
	// Rolling replaces one step of at most MaxParallel instances after the other.
	Rolling Strategy = iota
	// Canary starts Canary instances beside all of the previous side, and goes on as Rolling when they have held.
	Canary
	// BlueGreen starts the whole new side beside the previous one. It gets no connections before all of it has held:
	// then it gets all of them at once (Switch), and the previous side goes.
	BlueGreen
	// Recreate stops the whole previous side before it starts the new one: the two never run together.
	Recreate
)

// View is what is known of a deployment. All times are the caller's.
type View struct {
	// Count is how many instances the new side is to have; 0 stops the app.
	Count int
	// PreviousCount is how many the previous side is brought back to.
	PreviousCount int
	// HasPrevious is false for the first deployment of an app: there is nothing to go back to.
	HasPrevious bool

	Strategy Strategy
	// Canary is how many instances Canary begins with, at least 1.
	Canary int
	// Switched is set once a BlueGreen deployment's new side gets the connections.
	Switched bool
	// StopFirst is set for instances with volumes: one of an ordinal starts when those before it have ended. It means
	// something to Rolling; Canary and BlueGreen can't have volumes, and Recreate stops first anyway.
	StopFirst bool
	// Before is set when a Task has to succeed before anything else happens.
	Before *Before
	// Paused is set while somebody wants nothing to be done.
	Paused bool

	MaxParallel                 int
	BootTimeout, Hold, Deadline time.Duration
	// Pause leaves a failing rollout where it is instead of turning it back.
	Pause bool

	// Since is when the deployment began, or when the server last began to watch it, if that is later: time
	// in which nobody looked is not held against a release.
	Since time.Time
	// Back is set once the deployment was turned back.
	Back *Back
	// Away is true while no host is connected at all. Then nothing is decided.
	Away bool
	// Blocked is set while the scheduler has no place for an instance that Next wanted to start.
	Blocked *Blocked

	Instances []Instance
}

// Before is the one-off of a deployment. It is the instance on side Task.
type Before struct {
	// Timeout is for how long it may run.
	Timeout time.Duration
}

// Back says when and why a deployment was turned back.
type Back struct {
	Reason string
	// Since as in View.
	Since time.Time
}

// Blocked says why an instance has no place, and since when.
type Blocked struct {
	Reason string
	Since  time.Time
}

// Instance is one instance of the app in the environment.
type Instance struct {
	ID      string
	Ordinal int
	Side    Side
	// Restored is true for an instance that this deployment started while it was turning back.
	Restored bool
	// Adopted is true for an instance of the new side that ran before the deployment, which only changes how many there
	// are: what becomes of it is not held against the deployment. When that turns back, it is on the previous side again.
	Adopted bool
	// Stopping is true once it was asked to stop, Ended once it will not run again.
	Stopping, Ended bool
	// Completed is true for an instance that ended by itself and did what it had to do.
	Completed bool
	// Reachable is true while its host is connected and reports about it.
	Reachable bool
	// AwaySince is since when its host has been away, zero while it is connected. Leaving is true on a host that is to
	// become empty. Only Keep looks at them.
	AwaySince time.Time
	Leaving   bool

	// StartedAt is when its first VM was started, zero before.
	StartedAt time.Time
	// EverReady is true after the first ready of any attempt.
	EverReady bool
	// Ready is what its host says now; ReadySince is zero when it is not.
	Ready      bool
	ReadySince time.Time

	// Ends counts the attempts that ended without having been asked to.
	Ends int
	// StartFailed is true when the last end was a VM or process that could not be started.
	StartFailed bool
	// LastEnd is the cause of the last end in words that follow the instance's name: "exited with code 1".
	LastEnd string
}

// Kind tells the actions apart.
type Kind int

// The kinds of actions.
const (
	// Start asks for one more instance with Ordinal on Side.
	Start Kind = iota
	// Stop asks for the end of Instance.
	Stop
	// TurnBack begins the way back because of Reason.
	TurnBack
	// Finish ends the deployment with Outcome because of Reason.
	Finish
	// Switch gives the connections to the new side of a BlueGreen deployment.
	Switch
)

// Outcome is how a deployment ended.
type Outcome string

// The outcomes of a deployment.
const (
	// Succeeded means that everything that runs is of the new side.
	Succeeded Outcome = "succeeded"
	// RolledBack means that everything that runs is of the previous side.
	RolledBack Outcome = "rolled-back"
	// Failed means that the new side was removed and there was nothing to go back to.
	Failed Outcome = "failed"
	// Mixed means that both sides run; the reason says how many of each.
	Mixed Outcome = "mixed"
)

// Action is one thing that is due.
type Action struct {
	Kind     Kind
	Side     Side
	Ordinal  int
	Instance string
	Outcome  Outcome
	Reason   string
}

// Next returns what is due at now, and when to call again if nothing changes before; the zero time means
// that only a change can bring the deployment on. TurnBack, Finish and Switch come alone. Starts come in the order
// of their ordinals, and stops in that of the instances in the view or, where they make room, of their ordinals.
func Next(v View, now time.Time) ([]Action, time.Time) {
	if v.Away || v.Paused {
		return nil, time.Time{}
	}
	r := reading{View: v, now: now}
	if v.Back != nil {
		return r.back(), r.wake
	}
	return r.forward(), r.wake
}

// reading is one call of Next.
type reading struct {
	View
	now  time.Time
	wake time.Time
}

// due reports whether t has come; when it has not, the caller of Next is asked back for it.
func (r *reading) due(t time.Time) bool {
	if !r.now.Before(t) {
		return true
	}
	if r.wake.IsZero() || t.Before(r.wake) {
		r.wake = t
	}
	return false
}

// held reports whether an instance has been ready for the hold time, or has done its work.
func (r *reading) held(i Instance) bool {
	if i.Completed {
		return true
	}
	return serves(i) && i.Ready && r.due(i.ReadySince.Add(r.Hold))
}

// serves is true for an instance that runs and may go on running.
func serves(i Instance) bool { return !i.Ended && !i.Stopping }
