package server

import (
	"fmt"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/fleet"
)

// freshView is the state as it is now.
func (p *plane) freshView() *view {
	var none views
	return none.current(p.ledger, p.changed)
}

// TestViewsAreShared: agents that look at the same time look at the same view, and at a newer one when something has
// changed and the last one is old enough.
func TestViewsAreShared(t *testing.T) {
	p := newPlane(t)
	p.environment("one")
	var v views
	first := v.current(p.ledger, p.changed)
	if v.current(p.ledger, p.changed) != first {
		t.Error("nothing has changed, and there is another view")
	}
	v.watched(int(maxView/viewEach) * 2) // so many that a view serves for long
	p.environment("two")
	if again := v.current(p.ledger, p.changed); again != first || v.left(again) <= 0 {
		t.Error("there is another view before the first is old")
	}
	first.at = first.at.Add(-maxView)
	second := v.current(p.ledger, p.changed)
	if second == first || v.left(second) <= 0 {
		t.Error("the first is old and something has changed, and there is no other view")
	}
	environments := func(v *view) (names string) {
		v.read(func(st *fleet.State) {
			for _, e := range st.Environments() {
				names += e.Name + " "
			}
		})
		return names
	}
	if got := environments(first) + "| " + environments(second); got != "one | one two " {
		t.Errorf("got %q", got)
	}
	a, b := second.environment("one"), second.environment("one")
	if a == b || fmt.Sprint(a) != fmt.Sprint(b) {
		t.Errorf("got %v and %v, want the same twice", a, b)
	}
	v.watched(1 - int(maxView/viewEach)*2)
	if left := v.left(second); left > minView {
		t.Errorf("one agent waits for %s", left)
	}
	second.at = second.at.Add(-time.Second)
	if v.current(p.ledger, p.changed) != second {
		t.Error("nothing has changed since, and there is another view")
	}
}
