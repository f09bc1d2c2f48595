// Package lastusetest is what every lastuse.Store has to do. It is imported by tests only.
package lastusetest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
)

// Run has a store, which open opens each time anew, do all of it.
func Run(t *testing.T, open func() lastuse.Store) {
	ctx := t.Context()
	s := open()
	if all, err := s.Load(ctx); err != nil || len(all) != 0 {
		t.Fatalf("a new store has %v, %v", all, err)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	save := func(used map[string]time.Time) {
		t.Helper()
		if err := s.Save(ctx, used); err != nil {
			t.Fatal(err)
		}
	}
	want := func(used map[string]time.Time) {
		t.Helper()
		all, err := s.Load(ctx)
		if err != nil || len(all) != len(used) {
			t.Fatalf("got %v, %v", all, err)
		}
		for id, at := range used {
			if !all[id].Equal(at) {
				t.Errorf("%s was used at %s, want %s", id, all[id], at)
			}
		}
	}
	save(nil)
	save(map[string]time.Time{"tok-1": at, "tok-2": at})
	save(map[string]time.Time{"tok-1": at.Add(time.Second), "tok-2": at.Add(-time.Second), "tok-3": at})
	want(map[string]time.Time{"tok-1": at.Add(time.Second), "tok-2": at, "tok-3": at})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	want(map[string]time.Time{"tok-1": at.Add(time.Second), "tok-2": at, "tok-3": at})

	// Many at once: none gets lost, and the latest stays.
	var savers sync.WaitGroup
	for i := range 8 {
		savers.Go(func() {
			used := map[string]time.Time{"tok-1": at.Add(time.Duration(i+2) * time.Second), fmt.Sprintf("own-%d", i): at}
			if err := s.Save(ctx, used); err != nil {
				t.Error(err)
			}
		})
	}
	savers.Wait()
	all, err := s.Load(ctx)
	if err != nil || len(all) != 11 || !all["tok-1"].Equal(at.Add(9*time.Second)) {
		t.Errorf("got %v, %v", all, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
