package rollout

import (
	"fmt"
	"slices"
	"time"
)

// Keep returns what is due for the live deployment of an app while none is under way: instances whose host has been
// away for patience, or is to become empty, get a successor elsewhere. In the view they are on the side New. Like Next
// it remembers nothing, and says when to ask again.
//
// A successor starts first, with at most MaxParallel of them on the way for hosts that become empty; those of lost
// hosts start at once. What it succeeds is stopped once the successor has held, or at once when its host is lost, for
// when that comes back. An instance with volumes has no successor: its data is where it is. waits says of each why
// it stays.
//
// Instances that ended for good are left alone: that is their restart policy's affair.
func Keep(v View, patience time.Duration, now time.Time) (actions []Action, wake time.Time, waits []string) {
	if v.Paused {
		return nil, time.Time{}, nil
	}
	k := keeping{reading: reading{View: v, now: now}, patience: patience, parallel: v.MaxParallel}
	for o := range v.Count {
		k.ordinal(o)
	}
	return k.actions, k.wake, k.waits
}

type keeping struct {
	reading
	patience time.Duration
	parallel int // how many more successors may be on the way
	actions  []Action
	waits    []string
}

// lost tells that the host of an instance has been away for so long that it is given up.
func (k *keeping) lost(i Instance) bool {
	return !i.AwaySince.IsZero() && k.due(i.AwaySince.Add(k.patience))
}

// ordinal decides about the instances of one ordinal.
func (k *keeping) ordinal(o int) {
	var good, lost, leaving []Instance
	for _, i := range k.Instances {
		switch {
		case i.Ordinal != o || i.Side != New || !serves(i):
		case k.lost(i):
			lost = append(lost, i)
		case i.Leaving:
			leaving = append(leaving, i)
		default:
			good = append(good, i)
		}
	}
	// Of several that could go on serving, one stays: that which serves, and has for longest.
	slices.SortStableFunc(good, func(a, b Instance) int {
		if x, y := k.held(a), k.held(b); x != y {
			if x {
				return -1
			}
			return 1
		}
		return a.StartedAt.Compare(b.StartedAt)
	})
	switch {
	case len(good) > 0:
		k.succeed(good, lost, leaving)
	case len(lost)+len(leaving) == 0:
	case k.StopFirst:
		k.stay(lost, leaving)
	case len(lost) > 0:
		k.start(o)
	case k.parallel > 0:
		k.parallel--
		k.start(o)
	}
}

func (k *keeping) start(o int) {
	k.actions = append(k.actions, Action{Kind: Start, Side: New, Ordinal: o})
}

func (k *keeping) stop(i Instance) {
	k.actions = append(k.actions, Action{Kind: Stop, Side: New, Ordinal: i.Ordinal, Instance: i.ID})
}

// succeed stops what has a successor.
func (k *keeping) succeed(good, lost, leaving []Instance) {
	for _, i := range lost {
		k.stop(i)
	}
	held := k.held(good[0])
	if len(leaving) > 0 && !held {
		k.parallel--
	}
	if !held {
		return
	}
	for _, i := range slices.Concat(leaving, good[1:]) {
		k.stop(i)
	}
}

// stay notes what cannot be helped.
func (k *keeping) stay(lost, leaving []Instance) {
	for _, i := range lost {
		k.waits = append(k.waits, fmt.Sprintf("instance %s waits for its host, where its volumes are", i.ID))
	}
	for _, i := range leaving {
		k.waits = append(k.waits, fmt.Sprintf("instance %s stays, because its volumes are there", i.ID))
	}
}
