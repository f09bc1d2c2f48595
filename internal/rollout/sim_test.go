package rollout

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// world is a small platform around Next: instances that boot, fail and stop at random, and a caller that
// carries every action out. It keeps the promises of the package under test in check while it runs.
type world struct {
	t    *testing.T
	rng  *rand.Rand
	view View
	now  time.Time
	fate map[string]*fate
	next int
	// outcome is empty until Finish.
	outcome Outcome
	reason  string
	log     []string
}

// fate is what an instance is going to do, in seconds of its life.
type fate struct {
	born       time.Time
	readyAfter time.Duration // <0: never
	failEvery  time.Duration // 0: never
	final      bool          // the first failure is for good
	stopAfter  time.Duration
	stoppedAt  time.Time
	flaky      bool
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%4.0fs ", w.now.Sub(w.view.Since).Seconds())+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("%s\n%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n"))
}

// release describes how good a side is: chances out of 100.
type release struct{ never, crash, final, flaky int }

func (w *world) start(side Side, ordinal int, quality release) {
	w.next++
	id := fmt.Sprintf("i%d", w.next)
	f := &fate{born: w.now, readyAfter: time.Duration(1+w.rng.IntN(20)) * time.Second, stopAfter: time.Duration(w.rng.IntN(12)) * time.Second}
	switch p := w.rng.IntN(100); {
	case p < quality.never:
		f.readyAfter = -1
	case p < quality.never+quality.crash:
		f.failEvery = time.Duration(1+w.rng.IntN(30)) * time.Second
	case p < quality.never+quality.crash+quality.final:
		f.failEvery, f.final = time.Duration(1+w.rng.IntN(30))*time.Second, true
	case p < quality.never+quality.crash+quality.final+quality.flaky:
		f.flaky = true
	}
	w.fate[id] = f
	w.view.Instances = append(w.view.Instances, Instance{
		ID: id, Ordinal: ordinal, Side: side, Reachable: true, StartedAt: w.now.Add(time.Second), Restored: side == Previous && w.view.Back != nil,
	})
	w.note("start %s ordinal %d side %d", id, ordinal, side)
}

// tick lets one second pass for every instance.
func (w *world) tick() {
	w.now = w.now.Add(time.Second)
	for k := range w.view.Instances {
		i := &w.view.Instances[k]
		f := w.fate[i.ID]
		if i.Ended {
			continue
		}
		age := w.now.Sub(f.born)
		if i.Stopping {
			i.Ready, i.ReadySince = false, time.Time{}
			i.Ended = w.now.Sub(f.stoppedAt) >= f.stopAfter
			continue
		}
		if f.failEvery > 0 && age >= f.failEvery {
			i.Ends++
			i.LastEnd = "exited with 1"
			i.Ready, i.ReadySince = false, time.Time{}
			i.Ended = f.final
			f.born = w.now
			w.note("%s ended, final %v", i.ID, f.final)
			continue
		}
		ready := f.readyAfter >= 0 && age >= f.readyAfter && (!f.flaky || w.rng.IntN(10) > 0)
		if ready && !i.Ready {
			i.ReadySince, i.EverReady = w.now, true
		}
		if !ready {
			i.ReadySince = time.Time{}
		}
		i.Ready = ready
	}
}

func (w *world) ready() (n int) {
	for _, i := range w.view.Instances {
		if serves(i) && (i.Ready || (w.view.Back != nil && i.Side == Previous && !i.Restored)) {
			n++
		}
	}
	return n
}

func (w *world) stop(id string) (wasReady bool) {
	for k := range w.view.Instances {
		if i := &w.view.Instances[k]; i.ID == id {
			if i.Stopping || i.Ended {
				w.fail("%s is asked to stop again", id)
			}
			i.Stopping = true
			w.fate[id].stoppedAt = w.now
			w.note("stop %s side %d ready %v", id, i.Side, i.Ready)
			return i.Ready
		}
	}
	w.fail("stop of unknown %s", id)
	return false
}

// act carries out what Next says and checks what it must never do.
func (w *world) act(good, bad release) {
	actions, wake := Next(w.view, w.now)
	if !wake.IsZero() && !wake.After(w.now) {
		w.fail("asks to be called at %s, which is past", wake)
	}
	stoppedReady := false
	for _, a := range actions {
		if (a.Kind == TurnBack || a.Kind == Finish) && len(actions) != 1 {
			w.fail("%v does not come alone", actions)
		}
		switch a.Kind {
		case Start:
			quality := bad
			if a.Side == Previous {
				quality = good
			}
			w.start(a.Side, a.Ordinal, quality)
		case Stop:
			stoppedReady = w.stop(a.Instance) || stoppedReady
		case TurnBack:
			w.view.Back = &Back{Reason: a.Reason, Since: w.now}
			w.note("turn back: %s", a.Reason)
		case Finish:
			w.outcome, w.reason = a.Outcome, a.Reason
			w.note("finish %s: %s", a.Outcome, a.Reason)
		}
	}
	want := w.view.Count
	if w.view.Back != nil {
		want = w.view.PreviousCount
	}
	if stoppedReady && w.ready() < want {
		w.fail("stopped a ready instance with %d of %d left", w.ready(), want)
	}
	inFlight := 0
	for _, i := range w.view.Instances {
		if i.Side == New && serves(i) && (!i.Ready || w.now.Sub(i.ReadySince) < w.view.Hold) {
			inFlight++
		}
	}
	// A held instance that turned unready is in flight again, so a flaky release may exceed the limit.
	if w.view.Back == nil && inFlight > w.view.MaxParallel && bad.flaky == 0 && bad.crash == 0 {
		w.fail("%d instances in flight, max_parallel is %d", inFlight, w.view.MaxParallel)
	}
}

func (w *world) left() (n [3]int) {
	for _, i := range w.view.Instances {
		if serves(i) {
			n[i.Side]++
		}
	}
	return n
}

func newWorld(t *testing.T, seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 7))
	count := 1 + rng.IntN(5)
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	w := &world{t: t, rng: rng, now: now, fate: map[string]*fate{}, view: View{
		Count: count, PreviousCount: count, HasPrevious: rng.IntN(10) > 0,
		MaxParallel: 1 + rng.IntN(3), BootTimeout: 40 * time.Second, Hold: time.Duration(rng.IntN(8)) * time.Second, Deadline: 10 * time.Minute,
		Pause: rng.IntN(6) == 0, Since: now,
	}}
	if w.view.HasPrevious {
		for o := range count {
			w.start(Previous, o, release{})
		}
		for o := range rng.IntN(2) {
			w.start(Other, o, release{flaky: 50})
		}
		for range 30 {
			w.tick()
		}
		w.view.Since = w.now
	} else {
		w.view.PreviousCount = 0
	}
	return w
}

func TestSimulation(t *testing.T) {
	outcomes := map[Outcome]int{}
	for seed := range uint64(3000) {
		w := newWorld(t, seed)
		good, bad := release{}, release{}
		switch w.rng.IntN(4) {
		case 0:
			bad = release{never: 20, crash: 20, final: 20}
		case 1:
			bad = release{flaky: 60}
		case 2:
			good, bad = release{never: 20, final: 20}, release{crash: 60}
		}
		for step := 0; w.outcome == ""; step++ {
			if step > 3000 {
				w.fail("seed %d does not end", seed)
			}
			w.tick()
			w.act(good, bad)
		}
		outcomes[w.outcome]++
		n := w.left()
		switch w.outcome {
		case Succeeded:
			if n != [3]int{New: w.view.Count} {
				w.fail("succeeded with %v", n)
			}
		case RolledBack:
			if n != [3]int{Previous: w.view.PreviousCount} || w.view.Pause {
				w.fail("rolled back with %v", n)
			}
		case Failed:
			if n != [3]int{} || w.view.HasPrevious {
				w.fail("failed with %v", n)
			}
		case Mixed:
			if w.reason == "" || (good == release{} && !w.view.Pause) {
				w.fail("mixed although the previous side could be restored: %s", w.reason)
			}
		}
	}
	t.Log(outcomes)
	for _, o := range []Outcome{Succeeded, RolledBack, Failed, Mixed} {
		if outcomes[o] == 0 {
			t.Errorf("no run ended %s", o)
		}
	}
}

// TestSimulatedStop stops an app whose instances end at their own pace.
func TestSimulatedStop(t *testing.T) {
	for seed := range uint64(200) {
		w := newWorld(t, seed)
		w.view.Count = 0
		for step := 0; w.outcome == ""; step++ {
			if step > 1000 {
				w.fail("does not end")
			}
			w.tick()
			w.act(release{}, release{})
		}
		if w.outcome != Succeeded || w.left() != [3]int{} {
			w.fail("ended %s with %v", w.outcome, w.left())
		}
	}
}
