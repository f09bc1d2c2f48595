package rollout

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

func awaySince(seconds int) func(*Instance) {
	return func(i *Instance) {
		i.AwaySince, i.Reachable, i.Ready, i.ReadySince = at(seconds), false, false, time.Time{}
	}
}
func leaving(i *Instance) { i.Leaving = true }
func started(seconds int) func(*Instance) {
	return func(i *Instance) { i.StartedAt = at(seconds) }
}

func TestKeep(t *testing.T) {
	volumes := func(v *View) { v.StopFirst = true }
	one := func(more ...func(*Instance)) Instance {
		return instance("one", New, append([]func(*Instance){ready(-100)}, more...)...)
	}
	two := func(more ...func(*Instance)) Instance {
		return instance("two", New, append([]func(*Instance){ready(-90), started(5)}, more...)...)
	}
	start := func(o int) Action { return Action{Kind: Start, Side: New, Ordinal: o} }
	stop := func(id string) Action { return Action{Kind: Stop, Side: New, Instance: id} }
	tests := []struct {
		name  string
		view  View
		now   int
		want  []Action
		waits []string
	}{
		{"all is well", view(nil, one()), 0, nil, nil},
		{"a host that is away is waited for", view(nil, one(awaySince(0))), 9, nil, nil},
		{"and then given up", view(nil, one(awaySince(0))), 10, []Action{start(0)}, nil},
		{"once", view(nil, one(awaySince(0)), instance("two", New)), 11, []Action{stop("one")}, nil},
		{"it was asked to stop already", view(nil, one(awaySince(0), stopping), instance("two", New)), 11, nil, nil},
		{"what has ended for good is left alone", view(nil, instance("one", New, ended)), 11, nil, nil},
		{"what has completed is left alone", view(nil, instance("one", New, completed)), 11, nil, nil},
		{"what is not of this deployment is not looked at", view(nil, instance("one", Previous, awaySince(0))), 20, nil, nil},
		{"an app that was stopped needs nothing", view(func(v *View) { v.Count = 0 }, one(awaySince(0))), 20, nil, nil},
		{"a host comes back: the one that serves stays", view(nil, one(), instance("two", New, started(5))), 11, []Action{stop("two")}, nil},
		{"a host comes back: the older one stays", view(nil, two(), one()), 11, []Action{stop("two")}, nil},
		{"a drain starts first", view(nil, one(leaving)), 0, []Action{start(0)}, nil},
		{"a drain waits for the successor", view(nil, one(leaving), instance("two", New, ready(1))), 10, nil, nil},
		{"a drain stops when it has held", view(nil, one(leaving), instance("two", New, ready(1))), 11, []Action{stop("one")}, nil},
		{
			"a drain takes few at a time",
			with(func(v *View) { v.MaxParallel = 1 }, one(leaving), instance("two", New, of(1), ready(-90), leaving)), 0,
			[]Action{start(0)},
			nil,
		},
		{
			"a drain goes on with the next", with(func(*View) {}, instance("new", New, ready(-20)), instance("two", New, of(1), ready(-90), leaving)), 0,
			[]Action{start(1)},
			nil,
		},
		{
			"a drain waits for the one on its way",
			with(func(*View) {}, one(leaving), instance("new", New), instance("two", New, of(1), ready(-90), leaving)), 0, nil, nil,
		},
		{
			"what is lost comes at once",
			with(func(*View) {}, one(awaySince(0)), instance("two", New, of(1), awaySince(0))), 10,
			[]Action{start(0), start(1)},
			nil,
		},
		{"volumes wait for a lost host", view(volumes, one(awaySince(0))), 50, nil, []string{"instance one waits for its host, where its volumes are"}},
		{"volumes stay through a drain", view(volumes, one(leaving)), 50, nil, []string{"instance one stays, because its volumes are there"}},
		{"paused", view(func(v *View) { v.Paused = true }, one(awaySince(0))), 50, nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, waits := Keep(tt.view, 10*time.Second, at(tt.now))
			if len(got)+len(tt.want) > 0 && !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if !reflect.DeepEqual(waits, tt.waits) {
				t.Errorf("waits %q, want %q", waits, tt.waits)
			}
		})
	}
	if _, wake, _ := Keep(view(nil, one(awaySince(0))), 10*time.Second, at(3)); !wake.Equal(at(10)) {
		t.Errorf("asks again at %v", wake.Sub(t0))
	}
}

// TestKeepSettles has hosts come and go at random, and then leaves them alone: in the end each ordinal is served by
// one instance, and never was a second one started for an ordinal that was served.
func TestKeepSettles(t *testing.T) {
	const hosts = 4
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 11))
		w := newWorld(t, seed)
		w.view.Instances, w.view.Strategy, w.view.Before = nil, Rolling, nil
		hostOf, away, draining := map[string]int{}, [hosts]time.Time{}, [hosts]bool{}
		w.view.StopFirst = false
		for o := range w.view.Count {
			w.start(New, o, release{})
			hostOf[w.view.Instances[o].ID] = o % hosts
		}
		for second := range 400 {
			if second < 250 && rng.IntN(10) == 0 {
				h := rng.IntN(hosts)
				switch {
				case !away[h].IsZero():
					away[h] = time.Time{}
				case rng.IntN(2) == 0:
					away[h] = w.now
				default:
					draining[h] = !draining[h]
				}
			}
			if second == 250 { // host 0 works
				away[0], draining[0] = time.Time{}, false
			}
			for k := range w.view.Instances {
				i := &w.view.Instances[k]
				h := hostOf[i.ID]
				i.AwaySince, i.Leaving, i.Reachable = away[h], draining[h], away[h].IsZero()
				if !i.Reachable {
					i.Ready, i.ReadySince = false, time.Time{}
				}
			}
			w.tick()
			actions, wake, _ := Keep(w.view, 10*time.Second, w.now)
			if !wake.IsZero() && !wake.After(w.now) {
				w.fail("seed %d: asks to be called at %s, which is past", seed, wake)
			}
			for _, a := range actions {
				switch a.Kind {
				case Start:
					for _, i := range w.view.Instances {
						if i.Ordinal == a.Ordinal && serves(i) && i.AwaySince.IsZero() && !i.Leaving {
							w.fail("seed %d: starts a second instance of ordinal %d beside %s", seed, a.Ordinal, i.ID)
						}
					}
					w.start(New, a.Ordinal, release{})
					hostOf[w.view.Instances[len(w.view.Instances)-1].ID] = pick(away, draining)
				case Stop:
					if w.stop(a.Instance) && w.ready() == 0 {
						w.fail("seed %d: stops the last that is ready", seed)
					}
				case TurnBack, Finish, Switch:
					w.fail("seed %d: %v", seed, a)
				}
			}
		}
		serving := map[int]int{}
		for _, i := range w.view.Instances {
			if serves(i) {
				if serving[i.Ordinal]++; !i.Ready || i.Leaving || !i.AwaySince.IsZero() {
					w.fail("seed %d: %s serves in the end: %+v", seed, i.ID, i)
				}
			}
		}
		for o := range w.view.Count {
			if serving[o] != 1 {
				w.fail("seed %d: ordinal %d is served by %d in the end", seed, o, serving[o])
			}
		}
	}
}

// pick is a host that is there and stays, or host 0.
func pick(away [4]time.Time, draining [4]bool) int {
	for h := range away {
		if away[h].IsZero() && !draining[h] {
			return h
		}
	}
	return 0
}
