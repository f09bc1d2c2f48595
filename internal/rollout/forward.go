package rollout

import (
	"fmt"
	"slices"
	"strings"
)

// forward brings the new side in, one step of at most MaxParallel instances at a time.
func (r *reading) forward() []Action {
	if r.Count > 0 {
		if actions, wait := r.runBefore(); wait {
			return actions
		}
	}
	side := r.census(New)
	actions := append(r.makeRoom(side), r.stopBeyond()...)
	if side.held >= r.Count && len(actions) == 0 && !r.serving(Previous, Other) {
		return r.finishForward()
	}
	if reason := r.failure(New); reason != "" {
		return r.fail(reason)
	}
	if r.due(r.Since.Add(r.Deadline)) {
		return r.fail(r.overdue(side.held))
	}
	if slices.ContainsFunc(actions, func(a Action) bool { return a.Kind == Switch }) {
		return actions[:1] // alone
	}
	return append(actions, r.bringIn(side)...)
}

// census is what there is of the new side.
type census struct {
	held, inFlight int
	taken          map[int]bool // the ordinals that it has
}

func (r *reading) census(side Side) census {
	c := census{taken: map[int]bool{}}
	for _, i := range r.Instances {
		if i.Side != side || i.Ordinal >= r.Count || (!serves(i) && !i.Completed) {
			continue
		}
		c.taken[i.Ordinal] = true
		if r.held(i) {
			c.held++
		} else {
			c.inFlight++
		}
	}
	return c
}

// runBefore has the one-off run that must succeed first. wait is false once it has, or when there is none.
func (r *reading) runBefore() (actions []Action, wait bool) {
	if r.Before == nil {
		return nil, false
	}
	// It is the first thing that happens: what it failed for is told without anything else having been touched.
	back := func(format string, args ...any) ([]Action, bool) {
		return []Action{{Kind: TurnBack, Reason: "rollout.before: " + fmt.Sprintf(format, args...)}}, true
	}
	for _, i := range r.Instances {
		switch {
		case i.Side != Task:
		case i.Completed:
			return nil, false
		case i.Ended:
			return back("%s", i.LastEnd)
		case i.StartFailed:
			return back("%s", i.LastEnd)
		case !i.StartedAt.IsZero() && i.Reachable && r.due(i.StartedAt.Add(r.Before.Timeout)):
			return back("did not end within its timeout (%s)", r.Before.Timeout)
		case r.due(r.Since.Add(r.Deadline)):
			return back("did not end before the deadline of %s", r.Deadline)
		default:
			return nil, true
		}
	}
	if r.Blocked != nil && r.due(r.Blocked.Since.Add(r.BootTimeout)) {
		return back("%s", r.Blocked.Reason)
	}
	return []Action{{Kind: Start, Side: Task}}, true
}

// makeRoom stops what the new side has replaced, or what has to go before the new side can come.
func (r *reading) makeRoom(side census) []Action {
	switch {
	case r.Count == 0 || r.Strategy == Recreate:
		return r.stopSurplus(0, Previous, Other)
	case r.Strategy == BlueGreen && side.held < r.Count:
		return nil
	case r.Strategy == BlueGreen && !r.Switched && r.HasPrevious:
		return []Action{{Kind: Switch}}
	case r.Strategy == Canary && side.held < r.canaries():
		return nil
	case r.StopFirst && side.held < r.Count:
		return r.freeOrdinals(New, r.Count, r.MaxParallel)
	default:
		return r.stopSurplus(max(r.Count-side.held, 0), Previous, Other)
	}
}

// stopBeyond stops what there is of the new side beyond the count, the highest ordinals first.
func (r *reading) stopBeyond() []Action {
	var actions []Action
	for _, i := range r.Instances {
		if i.Side == New && serves(i) && i.Ordinal >= r.Count {
			actions = append(actions, Action{Kind: Stop, Side: New, Ordinal: i.Ordinal, Instance: i.ID})
		}
	}
	slices.SortStableFunc(actions, func(a, b Action) int { return b.Ordinal - a.Ordinal })
	return actions
}

// canaries is how many instances a canary begins with. Where nothing serves there is nothing to be compared with.
func (r *reading) canaries() int {
	if !r.HasPrevious {
		return 0
	}
	return min(max(r.Canary, 1), r.Count)
}

// bringIn starts what is missing of the new side, as far as it may be started now.
func (r *reading) bringIn(side census) []Action {
	most := r.MaxParallel - side.inFlight
	switch {
	case r.Strategy == Recreate && r.runs(Previous, Other):
		return nil
	case r.Strategy == Recreate:
		most = r.Count
	case r.Strategy == Canary && side.held < r.canaries():
		most = min(most, r.canaries()-side.held-side.inFlight)
	}
	var actions []Action
	for o := 0; o < r.Count && len(actions) < most; o++ {
		if !side.taken[o] && (!r.StopFirst || !r.occupied(o)) {
			actions = append(actions, Action{Kind: Start, Side: New, Ordinal: o})
		}
	}
	return actions
}

// freeOrdinals stops instances of other sides than the one that comes, so that its own can start. It keeps to
// MaxParallel ordinals below count that are without a ready instance, and to moves that are under way.
func (r *reading) freeOrdinals(comes Side, count, moves int) []Action {
	var (
		down   = map[int]bool{} // nothing of it is ready
		moving = 0              // ordinals under way from one side to the other
		goes   = map[int][]Instance{}
	)
	for o := range count {
		down[o] = true
	}
	for _, i := range r.Instances {
		switch {
		case i.Ordinal >= count || i.Side == Task:
		case i.Side == comes && r.held(i), i.Side != comes && serves(i) && i.Ready, i.Side == comes && r.untouched(i):
			down[i.Ordinal] = false
		case i.Side == comes && serves(i):
			moving++
		case i.Side != comes && i.Stopping && !i.Ended:
			moving++
		}
		if i.Side != comes && i.Side != Task && serves(i) {
			goes[i.Ordinal] = append(goes[i.Ordinal], i)
		}
	}
	downs := 0
	for o := range count {
		if down[o] {
			downs++
		}
	}
	var actions []Action
	for o := range count {
		if len(goes[o]) == 0 || moving >= moves || (!down[o] && downs >= r.MaxParallel) {
			continue
		}
		for _, i := range goes[o] {
			actions = append(actions, Action{Kind: Stop, Side: i.Side, Ordinal: o, Instance: i.ID})
		}
		moving++
		if !down[o] {
			downs++
		}
	}
	return actions
}

// occupied tells whether an instance has not let go of the ordinal and its volumes.
func (r *reading) occupied(ordinal int) bool {
	for _, i := range r.Instances {
		if i.Ordinal == ordinal && i.Side != Task && !i.Ended {
			return true
		}
	}
	return false
}

// runs tells whether the sides have an instance that has not ended.
func (r *reading) runs(sides ...Side) bool {
	for _, i := range r.Instances {
		if is(i, sides) && !i.Ended {
			return true
		}
	}
	return false
}

// finishForward waits for the previous side to end, and succeeds. A host that is away cannot keep a
// deployment from ending, except one that is there to stop the app and would claim too much.
func (r *reading) finishForward() []Action {
	waiting, away := r.ending(New, Previous, Other)
	late := r.due(r.Since.Add(r.Deadline))
	switch {
	case waiting == 0 && (away == 0 || r.Count > 0), late && r.Count > 0:
		return finish(Succeeded, unconfirmed(waiting+away))
	case late:
		return finish(Failed, fmt.Sprintf("%s. Each stops as soon as its host is back", unconfirmed(waiting+away)))
	default:
		return nil
	}
}

// ending counts the instances of the given sides that were asked to stop and have not ended: those whose
// host would say so, and those whose host is away.
func (r *reading) ending(sides ...Side) (waiting, away int) {
	for _, i := range r.Instances {
		if !is(i, sides) || i.Ended || !i.Stopping {
			continue
		}
		if i.Reachable {
			waiting++
		} else {
			away++
		}
	}
	return waiting, away
}

func unconfirmed(n int) string {
	if n == 0 {
		return ""
	}
	return plural(n, "instance") + " did not confirm the stop"
}

// stopSurplus stops what the given sides run beyond keep. Those that are not ready go first, then those
// that an earlier mixed deployment left, then those whose replacement serves already.
func (r *reading) stopSurplus(keep int, sides ...Side) []Action {
	replaced := map[int]bool{}
	for _, i := range r.Instances {
		if !is(i, sides) && i.Side != Task && r.held(i) {
			replaced[i.Ordinal] = true
		}
	}
	rank := func(i Instance) int {
		switch {
		case !i.Ready:
			return 0
		case i.Side == Other:
			return 1
		case replaced[i.Ordinal]:
			return 2
		default:
			return 3
		}
	}
	var candidates []Instance
	for _, i := range r.Instances {
		if is(i, sides) && serves(i) {
			candidates = append(candidates, i)
		}
	}
	surplus := len(candidates) - keep
	var actions []Action
	for level := 0; level <= 3 && surplus > 0; level++ {
		for _, i := range candidates {
			if rank(i) == level && surplus > 0 {
				actions = append(actions, Action{Kind: Stop, Side: i.Side, Ordinal: i.Ordinal, Instance: i.ID})
				surplus--
			}
		}
	}
	return actions
}

// failure says in words why the given side cannot come up, or "".
func (r *reading) failure(side Side) string {
	for _, i := range r.Instances {
		if i.Side != side || i.Stopping || i.Completed || i.Adopted || (side == Previous && !i.Restored) {
			continue
		}
		switch {
		case i.Ended:
			return fmt.Sprintf("instance %s ended for good: %s", i.ID, i.LastEnd)
		case i.StartFailed && !i.EverReady:
			return fmt.Sprintf("instance %s %s", i.ID, i.LastEnd)
		case i.Ends >= CrashLimit && !r.held(i):
			return fmt.Sprintf("instance %s ended %d times: %s", i.ID, i.Ends, i.LastEnd)
		case r.bootOverdue(i):
			return fmt.Sprintf("instance %s was not ready within boot_timeout (%s)", i.ID, r.BootTimeout)
		}
	}
	if r.Blocked != nil && r.due(r.Blocked.Since.Add(r.BootTimeout)) {
		return r.Blocked.Reason
	}
	return ""
}

func (r *reading) bootOverdue(i Instance) bool {
	if i.EverReady || i.StartedAt.IsZero() || !i.Reachable {
		return false
	}
	return r.due(i.StartedAt.Add(r.BootTimeout))
}

// overdue describes what the deadline cut off.
func (r *reading) overdue(held int) string {
	var waiting []string
	for _, i := range r.Instances {
		if i.Side == New && serves(i) && !r.held(i) {
			waiting = append(waiting, i.ID)
		}
	}
	text := fmt.Sprintf("the deadline of %s passed with %d of %s ready", r.Deadline, held, plural(r.Count, "instance"))
	if len(waiting) > 0 {
		text += ": waiting for " + strings.Join(waiting, ", ")
	}
	return text
}

// fail turns the deployment back, or leaves it where it is when the manifest says so. A stop is never
// turned back: whoever asked for it wants the app gone.
func (r *reading) fail(reason string) []Action {
	switch {
	case r.Count == 0:
		return finish(Failed, reason)
	case r.Pause:
		return finish(Mixed, fmt.Sprintf("%s; left as it is (on_failure = \"pause\"): %s", reason, r.headcount()))
	default:
		return []Action{{Kind: TurnBack, Reason: reason}}
	}
}

func finish(o Outcome, reason string) []Action {
	return []Action{{Kind: Finish, Outcome: o, Reason: reason}}
}

// headcount says what runs, in words.
func (r *reading) headcount() string {
	var n [sides]int
	for _, i := range r.Instances {
		if serves(i) {
			n[i.Side]++
		}
	}
	text := fmt.Sprintf("%d new and %d previous instances run", n[New], n[Previous])
	if n[Other] > 0 {
		text += fmt.Sprintf(", and %d of an earlier deployment", n[Other])
	}
	return text
}

// serving reports whether the sides have an instance that runs and was not asked to stop.
func (r *reading) serving(sides ...Side) bool {
	for _, i := range r.Instances {
		if is(i, sides) && serves(i) {
			return true
		}
	}
	return false
}

func is(i Instance, sides []Side) bool {
	return slices.Contains(sides, i.Side)
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
