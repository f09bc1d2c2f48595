package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// tell writes steps in short: s0 is a start of ordinal 0, xold0 a stop of old0.
func tell(steps []Step) string {
	var words []string
	for _, s := range steps {
		letter := map[StepKind]string{
			StepStart: "s", StepStop: "x", StepSwitch: "switch", StepReady: "r", StepHeld: "h", StepEnded: "e", StepDone: "done",
		}[s.Kind]
		switch {
		case s.Side == Task:
			words = append(words, letter+"task")
		case s.Kind == StepSwitch:
			words = append(words, letter)
		case s.Instance != "":
			words = append(words, letter+s.Instance)
		default:
			words = append(words, fmt.Sprint(letter, s.Ordinal))
		}
	}
	return strings.Join(words, " ")
}

func TestForesee(t *testing.T) {
	old0, old1 := instance("old0", Previous, ready(-100)), instance("old1", Previous, of(1), ready(-100))
	tests := []struct {
		name string
		view View
		want string
	}{
		{"first", with(func(v *View) { v.HasPrevious = false }), "s0 r0 h0 s1 r1 h1"},
		{"rolling", with(func(*View) {}, old0, old1), "s0 r0 h0 xold0 s1 r1 h1 xold1"},
		{"rolling, two at a time", with(func(v *View) { v.MaxParallel = 2 }, old0, old1), "s0 s1 r0 r1 h0 h1 xold0 xold1"},
		{"rolling, without a hold", with(func(v *View) { v.Hold = 0 }, old0, old1), "s0 r0 xold0 s1 r1 xold1"},
		{"more of them", with(func(v *View) { v.PreviousCount = 1 }, old0), "s0 r0 h0 s1 r1 h1 xold0"},
		{"fewer of them", with(func(v *View) { v.Count = 1 }, old0, old1), "xold0 s0 r0 h0 xold1"},
		{"with volumes", with(func(v *View) { v.StopFirst = true }, old0, old1), "xold0 eold0 s0 r0 h0 xold1 eold1 s1 r1 h1"},
		{"canary", with(func(v *View) { v.Strategy, v.Canary, v.MaxParallel = Canary, 1, 2 }, old0, old1), "s0 r0 h0 xold0 s1 r1 h1 xold1"},
		{"blue-green", with(func(v *View) { v.Strategy, v.MaxParallel = BlueGreen, 2 }, old0, old1), "s0 s1 r0 r1 h0 h1 switch xold0 xold1"},
		{"recreate", with(func(v *View) { v.Strategy = Recreate }, old0, old1), "xold0 xold1 eold0 eold1 s0 s1 r0 r1 h0 h1"},
		{"before", with(func(v *View) { v.Before = &Before{Timeout: time.Minute} }, old0, old1), "stask donetask s0 r0 h0 xold0 s1 r1 h1 xold1"},
		{"stop", with(func(v *View) { v.Count = 0 }, old0, old1), "xold0 xold1"},
		{"one that does not serve goes first", with(func(*View) {}, old0, instance("old1", Previous, of(1))), "s0 r0 h0 xold1 s1 r1 h1 xold0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tell(Foresee(tt.view)); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// sorted makes lists comparable in which things that go on side by side may come in any order.
func sorted(words []string) string { return strings.Join(slices.Sorted(slices.Values(words)), " ") }

// TestForeseen: a deployment that goes well takes just the starts, stops and switches that were foreseen.
func TestForeseen(t *testing.T) {
	for seed := range uint64(500) {
		w := newWorld(t, seed)
		var want, got []string
		for _, s := range Foresee(w.view) {
			switch s.Kind {
			case StepStart, StepStop, StepSwitch:
				want = append(want, tell([]Step{s}))
			case StepReady, StepHeld, StepEnded, StepDone:
			}
		}
		for step := 0; w.outcome == "" && step < 5000; step++ {
			w.tick()
			for _, f := range w.fate {
				f.completes = true // for tasks, which fail otherwise by chance
			}
			actions, _ := Next(w.view, w.now)
			w.act(release{}, release{})
			for _, a := range actions {
				s := Step{Side: a.Side, Ordinal: a.Ordinal, Instance: a.Instance}
				switch a.Kind {
				case Start:
					s.Kind = StepStart
				case Stop:
					s.Kind = StepStop
				case Switch:
					s.Kind = StepSwitch
				case TurnBack, Finish:
					continue
				}
				got = append(got, tell([]Step{s}))
			}
		}
		if w.view.Back != nil {
			continue // a task that never ends
		}
		if sorted(want) != sorted(got) {
			w.fail("seed %d: foreseen %v, done %v", seed, want, got)
		}
	}
}
