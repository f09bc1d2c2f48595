package rollout

import "fmt"

// back removes the new side and brings the previous one to its count again. New instances that are ready
// keep serving until the previous ones do.
func (r *reading) back() []Action {
	want := 0
	if r.HasPrevious {
		want = r.PreviousCount
	}
	restored := 0
	taken := map[int]bool{}
	for _, i := range r.Instances {
		if i.Side != Previous || (!serves(i) && !i.Completed) {
			continue
		}
		taken[i.Ordinal] = true
		if r.restored(i) {
			restored++
		}
	}
	actions := r.stopSurplus(0, Task)
	switch {
	case restored >= want || r.Strategy == Recreate:
		actions = append(actions, r.stopSurplus(0, New, Other)...)
	case r.StopFirst:
		actions = append(actions, r.freeOrdinals(Previous, want, want)...)
	default:
		actions = append(actions, r.stopAllButReady(want-restored)...)
	}
	if restored >= want && len(actions) == 0 {
		return r.finishBack()
	}
	if reason := r.failure(Previous); reason != "" {
		return finish(Mixed, r.stuck(reason))
	}
	if r.due(r.Back.Since.Add(r.Deadline)) {
		return finish(Mixed, r.stuck(fmt.Sprintf("it did not come up within %s", r.Deadline)))
	}
	if r.Strategy == Recreate && r.runs(New, Other) {
		return actions
	}
	// Nobody is served well by a slow way back: all that are missing start at once.
	for o, missing := 0, want-len(taken); missing > 0; o++ {
		switch {
		case taken[o]:
			continue
		case !r.StopFirst || !r.occupied(o):
			actions = append(actions, Action{Kind: Start, Side: Previous, Ordinal: o})
		}
		missing--
	}
	return actions
}

// restored reports whether a previous instance is what it was before the deployment. One that the
// deployment never touched is, however well it does.
func (r *reading) restored(i Instance) bool {
	return r.untouched(i) || r.held(i)
}

// untouched tells whether a previous instance has run since before the deployment.
func (r *reading) untouched(i Instance) bool {
	return i.Side == Previous && serves(i) && !i.Restored
}

// stopAllButReady stops new and other instances except for keep that are ready.
func (r *reading) stopAllButReady(keep int) []Action {
	ready := 0
	for _, i := range r.Instances {
		if i.Side != Previous && serves(i) && i.Ready {
			ready++
		}
	}
	return r.stopSurplus(min(keep, ready), New, Other)
}

func (r *reading) finishBack() []Action {
	waiting, _ := r.ending(New, Other, Task)
	if waiting > 0 && !r.due(r.Back.Since.Add(r.Deadline)) {
		return nil
	}
	if r.HasPrevious {
		return finish(RolledBack, r.Back.Reason)
	}
	return finish(Failed, r.Back.Reason)
}

func (r *reading) stuck(reason string) string {
	return fmt.Sprintf("%s; going back failed too: %s; %s", r.Back.Reason, reason, r.headcount())
}
