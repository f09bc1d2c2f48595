package eventlogtest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

func testClock(t *testing.T, s Store) {
	var now atomic.Int64
	opts := eventlog.Options{Now: func() time.Time { return time.Unix(0, now.Load()) }}
	l := open(t, s.Engine(), opts)
	for _, at := range []int64{1000, 1000, 500, 2000} {
		now.Store(at)
		mustAppend(t, l, event("a", eventlog.AnyVersion))
	}
	now.Store(1)
	l = reopen(t, l, s, opts)
	mustAppend(t, l, event("a", eventlog.AnyVersion), event("a", eventlog.AnyVersion))
	want := []int64{1000, 1001, 1002, 2000, 2001, 2002}
	for i, e := range readAll(t, l) {
		if e.Time != want[i] {
			t.Errorf("event %d: got time %d, want %d", e.Seq, e.Time, want[i])
		}
	}
	verify(t, l)
}

func testValidate(t *testing.T, s Store) {
	why := errors.New("poison")
	var next uint64 = 1 // what the hook folds must have no gap either
	opts := eventlog.Options{Validate: func(events []eventlog.Event) error {
		for i, e := range events {
			if e.Seq != next+uint64(i) {
				return errors.New("out of order")
			}
			if e.Hash == (eventlog.Hash{}) || e.Time == 0 {
				return errors.New("incomplete")
			}
			if e.Type == "poison" {
				return why
			}
		}
		next += uint64(len(events))
		return nil
	}}
	l := open(t, s.Engine(), opts)
	poison := event("b", 0)
	poison.Type, poison.IdempotencyKey = "poison", "k"
	_, err := l.Append(t.Context(), poison)
	var rejected *eventlog.RejectedError
	if !errors.As(err, &rejected) || !errors.Is(err, why) {
		t.Errorf("got %v, want a RejectedError with the hook's error", err)
	}
	// A rejected request takes nobody with it, and its key, version and seqs are free.
	var wg sync.WaitGroup
	var bad, good atomic.Int64
	for i := range 200 {
		wg.Go(func() {
			a := event("c", eventlog.AnyVersion)
			if i%4 == 0 {
				a.Type = "poison"
			}
			if _, err := l.Append(t.Context(), a); errors.As(err, new(*eventlog.RejectedError)) {
				bad.Add(1)
			} else if err == nil {
				good.Add(1)
			}
		})
	}
	wg.Wait()
	if bad.Load() != 50 || good.Load() != 150 {
		t.Errorf("got %d rejected and %d appended, want 50 and 150", bad.Load(), good.Load())
	}
	poison.Type = "fine"
	if r := mustAppend(t, l, poison); r.First != 151 || r.Repeated {
		t.Errorf("receipt: got %+v, want event 151", r)
	}
	verify(t, l)
}

func testOnCommit(t *testing.T, s Store) {
	var folded atomic.Uint64
	var l *eventlog.Log
	opts := eventlog.Options{OnCommit: func(events []eventlog.Event) {
		if head := l.Head().Seq; head >= events[0].Seq {
			t.Errorf("event %d was visible (head %d) before the hook", events[0].Seq, head)
		}
		for _, e := range events {
			if e.Seq != folded.Load()+1 {
				t.Errorf("event %d after %d", e.Seq, folded.Load())
			}
			folded.Store(e.Seq)
		}
	}}
	l = open(t, s.Engine(), opts)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			r, err := l.Append(t.Context(), event("a", eventlog.AnyVersion))
			if err != nil {
				t.Error(err)
			}
			if f := folded.Load(); f < r.Last {
				t.Errorf("answered for event %d with the hook at %d", r.Last, f)
			}
		})
	}
	wg.Wait()
}
