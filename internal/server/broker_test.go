package server

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// toldOf is for instances that the host knows all.
func toldOf(string) bool { return false }

func TestBroker(t *testing.T) {
	b := newBroker[string](3)
	for _, id := range []string{"b", "a"} {
		if !b.add(id, "h1", "api-1", "what "+id) {
			t.Fatalf("%s was not added", id)
		}
	}
	told, others := map[string]bool{}, map[string]bool{}
	if got := b.waiting("h1", told, toldOf); !slices.Equal(got, []string{"what a", "what b"}) {
		t.Errorf("got %q, want both by id", got)
	}
	if got := b.waiting("h1", told, toldOf); len(got) != 0 {
		t.Errorf("got %q again", got)
	}
	if got := b.waiting("h2", others, toldOf); len(got) != 0 {
		t.Errorf("another host got %q", got)
	}

	// Only its host can take it, and once.
	if what, ok := b.take("a", "h2"); ok {
		t.Errorf("another host took %q", what)
	}
	if what, ok := b.take("a", "h1"); !ok || what != "what a" {
		t.Errorf("took %q, %v", what, ok)
	}
	if what, ok := b.take("a", "h1"); ok {
		t.Errorf("took %q twice", what)
	}
	if what, ok := b.take("nothing", "h1"); ok {
		t.Errorf("took %q, which nobody wants", what)
	}
	// An agent that connects anew is told of what is not taken only.
	if got := b.waiting("h1", map[string]bool{}, toldOf); !slices.Equal(got, []string{"what b"}) {
		t.Errorf("got %q, want what is not taken", got)
	}

	// There is a bound, and room again when something is removed.
	if !b.add("c", "h1", "", "what c") || b.add("d", "h1", "", "what d") {
		t.Error("there is no bound of 3")
	}
	b.remove("a")
	if !b.add("d", "h1", "", "what d") {
		t.Error("there is no room where something was removed")
	}
	b.waiting("h1", told, toldOf)
	if told["a"] || len(told) != 3 {
		t.Errorf("what was told is %v, and a was removed", told)
	}
}

// TestBrokerHoldsBack: what is wanted of an instance waits until its host was told of that; what is of none does not.
func TestBrokerHoldsBack(t *testing.T) {
	b := newBroker[string](10)
	b.add("1", "h1", "api-new", "of the new one")
	b.add("2", "h1", "api-old", "of the old one")
	b.add("3", "h1", "", "of the host")
	told := map[string]bool{}
	got := b.waiting("h1", told, func(instance string) bool { return instance != "api-old" })
	if !slices.Equal(got, []string{"of the old one", "of the host"}) {
		t.Errorf("got %q", got)
	}
	if got := b.waiting("h1", told, toldOf); !slices.Equal(got, []string{"of the new one"}) {
		t.Errorf("then got %q", got)
	}
}

// TestBrokerTakesOnce: of many that take at the same time, one gets it.
func TestBrokerTakesOnce(t *testing.T) {
	b := newBroker[int](100)
	for i := range 100 {
		b.add(fmt.Sprint(i), "h1", "", i)
	}
	var taken atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 100 {
				if _, ok := b.take(fmt.Sprint(i), "h1"); ok {
					taken.Add(1)
				}
			}
		})
	}
	all.Wait()
	if taken.Load() != 100 {
		t.Errorf("100 were taken %d times", taken.Load())
	}
}
