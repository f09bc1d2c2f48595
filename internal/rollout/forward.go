package rollout

import (
	"fmt"
	"slices"
	"strings"
)

// forward brings the new side in, one step of at most MaxParallel instances at a time.
func (r *reading) forward() []Action {
	var held, inFlight int
	taken := map[int]bool{}
	for _, i := range r.Instances {
		if i.Side != New || (!serves(i) && !i.Completed) {
			continue
		}
		taken[i.Ordinal] = true
		if r.held(i) {
			held++
		} else {
			inFlight++
		}
	}
	actions := r.stopSurplus(max(r.Count-held, 0), Previous, Other)
	if held >= r.Count && len(actions) == 0 && !r.serving(Previous, Other) {
		return r.finishForward()
	}
	if reason := r.failure(New); reason != "" {
		return r.fail(reason)
	}
	if r.due(r.Since.Add(r.Deadline)) {
		return r.fail(r.overdue(held))
	}
	for o := 0; o < r.Count && inFlight < r.MaxParallel; o++ {
		if !taken[o] {
			actions = append(actions, Action{Kind: Start, Side: New, Ordinal: o})
			inFlight++
		}
	}
	return actions
}

// finishForward waits for the previous side to end, and succeeds. A host that is away cannot keep a
// deployment from ending, except one that is there to stop the app and would claim too much.
func (r *reading) finishForward() []Action {
	waiting, away := r.ending(Previous, Other)
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
		if !is(i, sides) && r.held(i) {
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
		if i.Side != side || i.Stopping || i.Completed || (side == Previous && !i.Restored) {
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
		return finish(Mixed, fmt.Sprintf("%s; left as it is (on_failure = \"pause\"): %s", reason, r.census()))
	default:
		return []Action{{Kind: TurnBack, Reason: reason}}
	}
}

func finish(o Outcome, reason string) []Action {
	return []Action{{Kind: Finish, Outcome: o, Reason: reason}}
}

// census says what runs, in words.
func (r *reading) census() string {
	var n [3]int
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
