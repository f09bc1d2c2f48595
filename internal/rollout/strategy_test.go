package rollout

import (
	"reflect"
	"testing"
	"time"
)

// with changes a view of two instances.
func with(change func(*View), instances ...Instance) View {
	return view(func(v *View) {
		v.Count, v.PreviousCount = 2, 2
		change(v)
	}, instances...)
}

func adopted(i *Instance) { i.Adopted = true }

func of(ordinal int) func(*Instance) { return func(i *Instance) { i.Ordinal = ordinal } }

func TestStrategies(t *testing.T) {
	old0, old1 := instance("old0", Previous, ready(-100)), instance("old1", Previous, of(1), ready(-100))
	new0, new1 := instance("new0", New, ready(0)), instance("new1", New, of(1), ready(0))
	task := func(change ...func(*Instance)) Instance { return instance("task", Task, change...) }
	start := func(side Side, ordinals ...int) (all []Action) {
		for _, o := range ordinals {
			all = append(all, Action{Kind: Start, Side: side, Ordinal: o})
		}
		return all
	}
	stop := func(instances ...Instance) (all []Action) {
		for _, i := range instances {
			all = append(all, Action{Kind: Stop, Side: i.Side, Ordinal: i.Ordinal, Instance: i.ID})
		}
		return all
	}
	turn := func(reason string) []Action { return []Action{{Kind: TurnBack, Reason: reason}} }
	volumes := func(v *View) { v.StopFirst = true }
	canary := func(v *View) { v.Strategy, v.Canary, v.MaxParallel = Canary, 1, 2 }
	blueGreen := func(v *View) { v.Strategy, v.MaxParallel = BlueGreen, 2 }
	recreate := func(v *View) { v.Strategy = Recreate }
	before := func(v *View) { v.Before = &Before{Timeout: 20 * time.Second} }
	back := func(change func(*View)) func(*View) {
		return func(v *View) { change(v); v.Back = &Back{Reason: "it was bad", Since: at(20)} }
	}
	unready := func(i *Instance) { i.Ready, i.ReadySince = false, time.Time{} }

	tests := []struct {
		name string
		view View
		now  int
		want []Action
	}{
		{"volumes: the old one goes first", with(volumes, old0, old1), 1, stop(old0)},
		{"volumes: its successor waits until it has ended", with(volumes, instance("old0", Previous, stopping), old1), 1, nil},
		{"volumes: and then starts", with(volumes, instance("old0", Previous, stopping, ended), old1), 1, start(New, 0)},
		{"volumes: the next one goes when that has held", with(volumes, new0, old1), 10, stop(old1)},
		{"volumes: not before", with(volumes, new0, old1), 9, nil},
		{"volumes: one on a host that is away is waited for", with(volumes, instance("old0", Previous, stopping, away), old1), 1, nil},
		{
			"volumes: one at a time, ready or not",
			with(volumes, instance("old0", Previous, unready), instance("old1", Previous, of(1), unready)), 1, stop(instance("old0", Previous)),
		},
		{
			"volumes: those that are missing already count",
			with(volumes, instance("new0", New, of(0), func(i *Instance) { i.EverReady = true }), old1), 1, nil,
		},
		{"volumes: back, the old one waits for its volume", with(back(volumes), instance("new0", New, stopping), old1), 21, nil},
		{"volumes: back, then it starts", with(back(volumes), instance("new0", New, stopping, ended), old1), 21, start(Previous, 0)},
		{"volumes: back, what serves is not stopped all at once", with(back(volumes), new0, new1), 21, stop(new0)},

		{"canary: begins with one", with(canary, old0, old1), 1, start(New, 0)},
		{"canary: nobody goes for it", with(canary, old0, old1, new0), 9, nil},
		{"canary: goes on when it has held", with(canary, old0, old1, new0), 10, append(stop(old0), start(New, 1)...)},
		{"canary: has nothing to be compared with", with(func(v *View) { canary(v); v.HasPrevious = false }), 1, start(New, 0, 1)},

		{"blue-green: all start", with(blueGreen, old0, old1), 1, start(New, 0, 1)},
		{"blue-green: waits for all", with(blueGreen, old0, old1, new0), 11, start(New, 1)},
		{"blue-green: switches", with(blueGreen, old0, old1, new0, new1), 11, []Action{{Kind: Switch}}},
		{
			"blue-green: then the old ones go",
			with(func(v *View) { blueGreen(v); v.Switched = true }, old0, old1, new0, new1), 11, stop(old0, old1),
		},
		{"blue-green: back before the switch", with(back(blueGreen), old0, old1, new0), 21, stop(new0)},

		{"recreate: all go first", with(recreate, old0, old1), 1, stop(old0, old1)},
		{"recreate: waits for the last", with(recreate, instance("old0", Previous, ended), instance("old1", Previous, of(1), stopping)), 1, nil},
		{"recreate: all start at once", with(recreate, instance("old0", Previous, ended), instance("old1", Previous, of(1), ended)), 1, start(New, 0, 1)},
		{"recreate: back, the new ones go first", with(back(recreate), instance("old0", Previous, ended), new0), 21, stop(new0)},
		{"recreate: back, then the old ones start", with(back(recreate), instance("new0", New, ended)), 21, start(Previous, 0, 1)},

		{"before: runs first", with(before, old0, old1), 1, start(Task, 0)},
		{"before: is waited for", with(before, old0, old1, task()), 1, nil},
		{"before: succeeded", with(before, old0, old1, task(completed)), 1, start(New, 0)},
		{"before: failed", with(before, old0, old1, task(ended)), 1, turn("rollout.before: exited with 3")},
		{"before: is not paused for", with(func(v *View) { before(v); v.Pause = true }, old0, old1, task(ended)), 1, turn("rollout.before: exited with 3")},
		{"before: timeout", with(before, old0, old1, task()), 20, turn("rollout.before: did not end within its timeout (20s)")},
		{
			"before: timeout is not held against a host that is away", with(before, old0, old1, task(away)), 21, nil,
		},
		{"before: is stopped on the way back", with(back(before), old0, old1, task()), 21, stop(task())},
		{"before: not for a stop", with(func(v *View) { before(v); v.Count = 0 }, old0, old1), 1, stop(old0, old1)},

		{"scale: starts what is missing", with(func(*View) {}, instance("a", New, ready(-9), adopted)), 1, start(New, 1)},
		{"scale: what ran before is not held against it", with(func(*View) {}, instance("a", New, ends(7), adopted), new1), 11, nil},
		{
			"scale: the highest ordinals go", with(func(v *View) { v.Count = 1 }, instance("a", New, ready(-9), adopted), instance("c", New, of(2), adopted), instance("b", New, of(1), adopted)), 1,
			stop(instance("c", New, of(2)), instance("b", New, of(1))),
		},
		{"scale: waits for their end", with(func(v *View) { v.Count = 1 }, instance("a", New, ready(-19), adopted), instance("b", New, of(1), adopted, stopping)), 1, nil},
		{
			"scale: and has succeeded", with(func(v *View) { v.Count = 1 }, instance("a", New, ready(-19), adopted), instance("b", New, of(1), adopted, ended)), 1,
			[]Action{{Kind: Finish, Outcome: Succeeded}},
		},
		{
			"scale: back, what was added goes", with(func(v *View) { v.Back, v.PreviousCount = &Back{Reason: "bad", Since: at(0)}, 1 }, instance("a", Previous, ready(-9)), instance("b", New, of(1))), 1,
			stop(instance("b", New, of(1))),
		},

		{"paused: nothing", with(func(v *View) { v.Paused = true }, old0, old1, instance("new0", New, ended)), 700, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := Next(tt.view, at(tt.now))
			if len(got)+len(tt.want) > 0 && !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}
