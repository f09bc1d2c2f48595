package rollout

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
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
	// partitioned has the time until which the host of an instance is away.
	partitioned map[string]time.Time
	partitions  int  // how often hosts go away, in 1000 seconds
	aborts      bool // somebody turns it back, or pauses it for a while
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
	completes  bool // its end is a success
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
	if side == Task {
		w.fateOfTask(f)
	}
	w.checkStart(side, ordinal)
	w.note("start %s ordinal %d side %d", id, ordinal, side)
}

// fateOfTask has most tasks succeed, some fail, and some never end.
func (w *world) fateOfTask(f *fate) {
	*f = fate{born: w.now, readyAfter: -1, stopAfter: f.stopAfter, completes: w.rng.IntN(10) > 0}
	if f.completes {
		f.failEvery, f.final = time.Duration(1+w.rng.IntN(20))*time.Second, true
		f.completes = w.rng.IntN(4) > 0
	}
}

// checkStart has what must never run at the same time.
func (w *world) checkStart(side Side, ordinal int) {
	for _, i := range w.view.Instances[:len(w.view.Instances)-1] {
		switch {
		case i.Side == Task && side == New && !i.Completed:
			w.fail("%d starts before the task has succeeded", ordinal)
		case i.Ended || i.Side == Task || side == Task:
		case w.view.StopFirst && i.Ordinal == ordinal:
			w.fail("ordinal %d has two holders, %s is one", ordinal, i.ID)
		case w.view.Strategy == Recreate && (i.Side == New) != (side == New):
			w.fail("%s runs beside the other side", i.ID)
		}
	}
	if canaries := min(w.view.Canary, w.view.Count); side == New && w.view.Strategy == Canary && w.view.HasPrevious && w.held() < canaries {
		if n := w.left()[New]; n > canaries {
			w.fail("%d instances beside the previous side, of which %d are canaries", n, canaries)
		}
	}
}

// held counts the instances of the new side that have been ready for long enough.
func (w *world) held() (n int) {
	for _, i := range w.view.Instances {
		if i.Side == New && serves(i) && i.Ready && !w.now.Before(i.ReadySince.Add(w.view.Hold)) {
			n++
		}
	}
	return n
}

// checkMotion has what is under way, of a release that comes up well.
func (w *world) checkMotion() {
	moving := map[int]bool{}
	for _, i := range w.view.Instances {
		switch {
		case i.Side == Task && serves(i) && i.Reachable && w.now.After(i.StartedAt.Add(w.view.Before.Timeout+time.Second)) && !w.view.Paused:
			w.fail("the task runs for longer than it may")
		case i.Side == New && serves(i) && (!i.Ready || w.now.Sub(i.ReadySince) < w.view.Hold), i.Side == Previous && i.Stopping && !i.Ended && i.Ordinal < w.view.Count:
			moving[i.Ordinal] = true
		}
	}
	if w.view.StopFirst && w.view.Strategy == Rolling && len(moving) > w.view.MaxParallel && w.held() < w.view.Count {
		w.fail("%d ordinals are under way, max_parallel is %d", len(moving), w.view.MaxParallel)
	}
}

// checkStop has what must not be stopped yet.
func (w *world) checkStop(side Side) {
	held := w.held()
	switch {
	case side != Previous || w.view.Back != nil || w.view.Count == 0:
	case w.view.Strategy == Canary && held < min(w.view.Canary, w.view.Count):
		w.fail("stops a previous instance with %d canaries", held)
	case w.view.Strategy == BlueGreen && !w.view.Switched:
		w.fail("stops a previous instance before the switch")
	}
}

// disturb has hosts go away and come back, and people intervene.
func (w *world) disturb() {
	for k := range w.view.Instances {
		i := &w.view.Instances[k]
		until, away := w.partitioned[i.ID]
		switch {
		case away && !w.now.Before(until):
			delete(w.partitioned, i.ID)
			i.Reachable = true
		case !away && w.partitions > 0 && w.rng.IntN(1000) < w.partitions:
			w.partitioned[i.ID] = w.now.Add(time.Duration(w.rng.IntN(60)) * time.Second)
			i.Reachable, i.Ready, i.ReadySince = false, false, time.Time{}
			w.note("host of %s is away", i.ID)
		}
	}
	if !w.aborts {
		return
	}
	switch w.rng.IntN(60) {
	case 0:
		if w.view.Back == nil && w.view.Count > 0 && !w.view.Paused {
			w.view.Back = &Back{Reason: "aborted", Since: w.now}
			w.note("aborted")
		}
	case 1:
		w.view.Paused = !w.view.Paused
		w.note("paused: %v", w.view.Paused)
	case 2, 3, 4:
		w.view.Paused = false
	}
}

// tick lets one second pass for every instance.
func (w *world) tick() {
	w.now = w.now.Add(time.Second)
	for k := range w.view.Instances {
		i := &w.view.Instances[k]
		f := w.fate[i.ID]
		if i.Ended || !i.Reachable { // nothing is heard of one that is away
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
			i.Ended, i.Completed = f.final, f.final && f.completes
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
			w.checkStop(i.Side)
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
		if (a.Kind == TurnBack || a.Kind == Finish || a.Kind == Switch) && len(actions) != 1 {
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
		case Switch:
			if w.view.Switched || w.view.Strategy != BlueGreen || w.held() < w.view.Count {
				w.fail("switches with %d ready", w.held())
			}
			w.view.Switched = true
			w.note("switch")
		}
	}
	want := w.view.Count
	if w.view.Back != nil {
		want = w.view.PreviousCount
	}
	switch {
	case w.view.Strategy == Recreate:
		want = 0
	case w.view.StopFirst:
		want -= w.view.MaxParallel
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
	if w.view.Back == nil && inFlight > w.view.MaxParallel && bad.flaky == 0 && bad.crash == 0 && w.partitions == 0 && w.view.Strategy != Recreate {
		w.fail("%d instances in flight, max_parallel is %d", inFlight, w.view.MaxParallel)
	}
	if w.view.Back == nil && bad == (release{}) && w.partitions == 0 {
		w.checkMotion()
	}
}

func (w *world) left() (n [sides]int) {
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
	w := &world{t: t, rng: rng, now: now, fate: map[string]*fate{}, partitioned: map[string]time.Time{}, view: View{
		Count: count, PreviousCount: count, HasPrevious: rng.IntN(10) > 0,
		MaxParallel: 1 + rng.IntN(3), BootTimeout: 40 * time.Second, Hold: time.Duration(rng.IntN(8)) * time.Second, Deadline: 10 * time.Minute,
		Pause: rng.IntN(6) == 0, Since: now,
	}}
	switch w.view.Strategy = Strategy(rng.IntN(4)); w.view.Strategy {
	case Rolling, Recreate:
		w.view.StopFirst = rng.IntN(2) == 0
	case Canary:
		w.view.Canary = 1 + rng.IntN(3)
	case BlueGreen:
	}
	if rng.IntN(4) == 0 {
		w.view.Before = &Before{Timeout: 30 * time.Second}
	}
	if w.view.HasPrevious {
		for o := range count {
			w.start(Previous, o, release{})
		}
		for o := range rng.IntN(2) {
			o += count * btoi(w.view.StopFirst) // which has an ordinal of its own
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

// mayTurnBack is false where on_failure = "pause" leaves a failing rollout where it is.
func (w *world) mayTurnBack() bool {
	return !w.view.Pause || w.view.Back.Reason == "aborted" || strings.HasPrefix(w.view.Back.Reason, "rollout.before")
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestSimulation has every kind of deployment under crashes, slow boots, hosts that go away and people who
// intervene. PINNACE_ROLLOUTS is how many; a deployment is known by its number.
func TestSimulation(t *testing.T) {
	type ending struct {
		strategy  Strategy
		stopFirst bool
		outcome   Outcome
	}
	outcomes, endings := map[Outcome]int{}, map[ending]int{}
	rollouts := uint64(4000)
	if n, err := strconv.ParseUint(os.Getenv("PINNACE_ROLLOUTS"), 10, 64); err == nil {
		rollouts = n
	}
	for seed := range rollouts {
		w := newWorld(t, seed)
		w.aborts = w.rng.IntN(4) == 0
		if w.rng.IntN(4) == 0 {
			w.partitions = 1 + w.rng.IntN(30)
		}
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
			w.disturb()
			w.tick()
			w.act(good, bad)
		}
		outcomes[w.outcome]++
		endings[ending{w.view.Strategy, w.view.StopFirst, w.outcome}]++
		n := w.left()
		switch w.outcome {
		case Succeeded:
			if n != [sides]int{New: w.view.Count} {
				w.fail("succeeded with %v", n)
			}
		case RolledBack:
			if n != [sides]int{Previous: w.view.PreviousCount} || !w.mayTurnBack() {
				w.fail("rolled back with %v", n)
			}
		case Failed:
			if n != [sides]int{} || w.view.HasPrevious {
				w.fail("failed with %v", n)
			}
		case Mixed:
			if w.reason == "" || (good == release{} && !w.view.Pause && w.partitions == 0) {
				w.fail("mixed although the previous side could be restored: %s", w.reason)
			}
		}
	}
	t.Log(outcomes, endings)
	for _, o := range []Outcome{Succeeded, RolledBack, Failed, Mixed} {
		for s := Rolling; s <= Recreate; s++ {
			if endings[ending{s, false, o}] == 0 {
				t.Errorf("no run with strategy %d ended %s", s, o)
			}
		}
		if endings[ending{Rolling, true, o}] == 0 || endings[ending{Recreate, true, o}] == 0 {
			t.Errorf("no run with volumes ended %s", o)
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
		if w.outcome != Succeeded || w.left() != [sides]int{} {
			w.fail("ended %s with %v", w.outcome, w.left())
		}
	}
}
