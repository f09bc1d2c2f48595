package rollout

import (
	"reflect"
	"testing"
	"time"
)

var t0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return t0.Add(time.Duration(seconds) * time.Second) }

func view(change func(*View), instances ...Instance) View {
	v := View{
		Count: 1, PreviousCount: 1, HasPrevious: true, MaxParallel: 1,
		BootTimeout: 60 * time.Second, Hold: 10 * time.Second, Deadline: 10 * time.Minute, Since: t0, Instances: instances,
	}
	if change != nil {
		change(&v)
	}
	return v
}

func instance(id string, side Side, change ...func(*Instance)) Instance {
	i := Instance{ID: id, Side: side, Reachable: true, StartedAt: t0}
	for _, c := range change {
		c(&i)
	}
	return i
}

func ready(seconds int) func(*Instance) {
	return func(i *Instance) { i.Ready, i.EverReady, i.ReadySince = true, true, at(seconds) }
}
func stopping(i *Instance)  { i.Stopping = true }
func ended(i *Instance)     { i.Ended = true; i.LastEnd = "exited with 3" }
func completed(i *Instance) { i.Ended, i.Completed = true, true }
func away(i *Instance)      { i.Reachable = false }
func restored(i *Instance)  { i.Restored = true }
func ends(n int) func(*Instance) {
	return func(i *Instance) { i.Ends, i.LastEnd = n, "exited with 1" }
}

func TestNext(t *testing.T) {
	old := instance("old", Previous, ready(-100))
	back := func(v *View) { v.Back = &Back{Reason: "it was bad", Since: at(20)} }
	start := Action{Kind: Start, Side: New}
	stopOld := Action{Kind: Stop, Side: Previous, Instance: "old"}
	stopNew := Action{Kind: Stop, Side: New, Instance: "new"}
	turn := func(reason string) []Action { return []Action{{Kind: TurnBack, Reason: reason}} }

	tests := []struct {
		name string
		view View
		now  int
		want []Action
		wake time.Time
	}{
		{"starts first", view(nil, old), 0, []Action{start}, at(600)},
		{"waits while it boots", view(nil, old, instance("new", New)), 5, nil, at(60)},
		{"waits for the hold", view(nil, old, instance("new", New, ready(4))), 5, nil, at(14)},
		{"stops the old one after the hold", view(nil, old, instance("new", New, ready(4))), 14, []Action{stopOld}, at(600)},
		{"waits for the old one to end", view(nil, instance("old", Previous, stopping), instance("new", New, ready(4))), 15, nil, at(600)},
		{
			"succeeds", view(nil, instance("old", Previous, stopping, ended), instance("new", New, ready(4))), 16,
			[]Action{{Kind: Finish, Outcome: Succeeded}},
			time.Time{},
		},
		{
			"an old one on a host that is away does not hold it up", view(nil, instance("old", Previous, stopping, away), instance("new", New, ready(4))), 16,
			[]Action{{Kind: Finish, Outcome: Succeeded, Reason: "1 instance did not confirm the stop"}},
			time.Time{},
		},
		{
			"a completed instance needs no hold", view(nil, instance("new", New, completed)), 5,
			[]Action{{Kind: Finish, Outcome: Succeeded}},
			time.Time{},
		},
		{
			"max_parallel limits what is in flight", view(func(v *View) { v.Count, v.MaxParallel = 4, 2 }), 0,
			[]Action{start, {Kind: Start, Side: New, Ordinal: 1}},
			at(600),
		},
		{"ends for good", view(nil, old, instance("new", New, ended)), 3, turn("instance new ended for good: exited with 3"), time.Time{}},
		{
			"could not be started", view(nil, old, instance("new", New, ends(1), func(i *Instance) { i.StartFailed, i.LastEnd = true, "could not be started" })), 3,
			turn("instance new could not be started"),
			time.Time{},
		},
		{"two crashes are borne", view(nil, old, instance("new", New, ends(2))), 3, nil, at(60)},
		{"three are not", view(nil, old, instance("new", New, ends(3))), 3, turn("instance new ended 3 times: exited with 1"), time.Time{}},
		{"boot_timeout", view(nil, old, instance("new", New)), 60, turn("instance new was not ready within boot_timeout (1m0s)"), time.Time{}},
		{"boot_timeout is not held against a host that is away", view(nil, old, instance("new", New, away)), 61, nil, at(600)},
		{
			"deadline", view(nil, old, instance("new", New, func(i *Instance) { i.EverReady = true })), 600,
			turn("the deadline of 10m0s passed with 0 of 1 instance ready: waiting for new"),
			time.Time{},
		},
		{"pause leaves it as it is", view(func(v *View) { v.Pause = true }, old, instance("new", New, ended)), 3, []Action{{
			Kind: Finish, Outcome: Mixed,
			Reason: `instance new ended for good: exited with 3; left as it is (on_failure = "pause"): 0 new and 1 previous instances run`,
		}}, time.Time{}},
		{"no place", view(func(v *View) { v.Blocked = &Blocked{Reason: "no room", Since: at(10)} }, old), 70, turn("no room"), time.Time{}},
		{"no host at all", view(func(v *View) { v.Away = true }, old, instance("new", New, away)), 9999, nil, time.Time{}},
		{"stop", view(func(v *View) { v.Count = 0 }, old), 0, []Action{stopOld}, at(600)},
		{
			"stop does not claim what a host has not confirmed", view(func(v *View) { v.Count = 0 }, instance("old", Previous, stopping, away)), 5,
			nil, at(600),
		},
		{"stop ends at the deadline", view(func(v *View) { v.Count = 0 }, instance("old", Previous, stopping, away)), 600, []Action{{
			Kind: Finish, Outcome: Failed, Reason: "1 instance did not confirm the stop. Each stops as soon as its host is back",
		}}, time.Time{}},

		{"back: the new one goes at once when the old one serves", view(back, old, instance("new", New)), 21, []Action{stopNew}, at(620)},
		{
			"back: a ready new one serves until the old one is back", view(back, instance("old", Previous, stopping), instance("new", New, ready(4))), 21,
			[]Action{{Kind: Start, Side: Previous}},
			at(620),
		},
		{
			"back: then it goes", view(back, instance("old2", Previous, restored, ready(30)), instance("new", New, ready(4))), 40,
			[]Action{stopNew},
			time.Time{},
		},
		{"back: waits for the end", view(back, old, instance("new", New, stopping)), 21, nil, at(620)},
		{
			"back: rolled back", view(back, old, instance("new", New, ended)), 21,
			[]Action{{Kind: Finish, Outcome: RolledBack, Reason: "it was bad"}},
			time.Time{},
		},
		{"back: the first deployment fails", view(func(v *View) { back(v); v.HasPrevious = false }, instance("new", New, ended)), 21, []Action{{
			Kind: Finish, Outcome: Failed, Reason: "it was bad",
		}}, time.Time{}},
		{"back: cannot be restored", view(back, instance("old2", Previous, restored, ends(3))), 40, []Action{{
			Kind: Finish, Outcome: Mixed,
			Reason: "it was bad; going back failed too: instance old2 ended 3 times: exited with 1; 0 new and 1 previous instances run",
		}}, time.Time{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, wake := Next(tt.view, at(tt.now))
			if len(got)+len(tt.want) > 0 && !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
			if len(tt.want) == 0 && !wake.Equal(tt.wake) {
				t.Errorf("wakes at %s, want %s", wake.Sub(t0), tt.wake.Sub(t0))
			}
		})
	}
}
