package eventlogtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// watch reads from l until it has seen upTo, and fails the test on a gap, a repetition or an error.
func watch(ctx context.Context, t *testing.T, l *eventlog.Log, after, upTo uint64) {
	t.Helper()
	for events, err := range l.Watch(ctx, after) {
		if err != nil {
			t.Errorf("watch after %d: %v", after, err)
			return
		}
		if len(events) == 0 {
			t.Errorf("watch after %d: an empty batch", after)
		}
		for _, e := range events {
			if e.Seq != after+1 {
				t.Errorf("watch: event %d came after event %d", e.Seq, after)
				return
			}
			after = e.Seq
		}
		if after >= upTo {
			return
		}
	}
}

func testWatchFromAnywhere(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	fill(t, l, 100)
	l = reopen(t, l, s, eventlog.Options{}) // so that the first ones are not in memory
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	const writers, each = 8, 100
	const total = 100 + writers*each
	var wg sync.WaitGroup
	for after := uint64(0); after <= 100; after += 5 {
		wg.Go(func() { watch(ctx, t, l, after, total) })
	}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if _, err := l.Append(ctx, event(fmt.Sprint(w), uint64(i))); err != nil {
					t.Error(err)
					return
				}
				if i%20 == 0 {
					at := l.Head().Seq
					wg.Go(func() { watch(ctx, t, l, at, total) })
				}
			}
		})
	}
	wg.Wait()
}

func testWatchSlow(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	fill(t, l, 10)
	var last uint64
	for events, err := range l.Watch(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if last == 0 {
			// While this loop is at its first batch, more is appended than any tail holds.
			fill(t, l, 9_000)
		}
		for _, e := range events {
			if e.Seq != last+1 {
				t.Fatalf("event %d came after event %d", e.Seq, last)
			}
			last = e.Seq
		}
		if last == 9_010 {
			break
		}
	}
	if last != 9_010 {
		t.Errorf("watch ended after event %d, want 9010", last)
	}
}

func testWatchEnds(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	fill(t, l, 3)
	end := func(ctx context.Context, after uint64) error {
		for _, err := range l.Watch(ctx, after) {
			if err != nil {
				return err
			}
		}
		return errors.New("watch ended without an error")
	}
	var regression *eventlog.RegressionError
	if err := end(t.Context(), 4); !errors.As(err, &regression) || regression.Have != l.Head() {
		t.Errorf("after an event that is not there: got %v, want a RegressionError", err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if err := end(ctx, 0); !errors.Is(err, why) {
		t.Errorf("cancelled before: got %v, want the cause", err)
	}
	ctx, cancel = context.WithCancelCause(t.Context())
	ended := make(chan error)
	go func() { ended <- end(ctx, 3) }()
	cancel(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("cancelled while it waits: got %v, want the cause", err)
	}
	go func() { ended <- end(t.Context(), 3) }()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, eventlog.ErrClosed) {
		t.Errorf("closed while it waits: got %v, want ErrClosed", err)
	}
	for _, err := range l.Read(t.Context(), 0) {
		if !errors.Is(err, eventlog.ErrClosed) {
			t.Errorf("read of a closed log: got %v, want ErrClosed", err)
		}
	}
}

func testReadIsBounded(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	fill(t, l, 2_500) // several chunks
	n := 0
	for e, err := range l.Read(t.Context(), 7) {
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 && e.Seq != 8 {
			t.Errorf("first event: got %d, want 8", e.Seq)
		}
		if n%500 == 0 {
			fill(t, l, 1) // what comes later is not part of this reading
		}
		n++
	}
	if n != 2_493 {
		t.Errorf("read %d events, want 2493", n)
	}
	for e, err := range l.Read(t.Context(), l.Head().Seq) {
		t.Errorf("read after the head: got event %d, %v, want nothing", e.Seq, err)
	}
	for _, err := range l.Read(t.Context(), 0) {
		if err != nil {
			t.Error(err)
		}
		break // must leave nothing open, or closing the log would not end
	}
}

func testExtends(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	heads := []eventlog.Head{l.Head()}
	for range 3 {
		fill(t, l, 1)
		heads = append(heads, l.Head())
	}
	for _, h := range heads {
		if err := l.Extends(t.Context(), h); err != nil {
			t.Errorf("head %d: %v", h.Seq, err)
		}
		h.Hash[31] ^= 1
		var regression *eventlog.RegressionError
		if err := l.Extends(t.Context(), h); !errors.As(err, &regression) {
			t.Errorf("head %d with another hash: got %v, want a RegressionError", h.Seq, err)
		}
	}
	if err := l.Extends(t.Context(), eventlog.Head{Seq: 4, Hash: heads[3].Hash}); err == nil {
		t.Error("extends a head that it does not reach")
	}
}

func testReplay(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	fill(t, l, 1_500)
	var last uint64
	l = reopen(t, l, s, eventlog.Options{Replay: func(events []eventlog.Event) error {
		for _, e := range events {
			if e.Seq != last+1 {
				return fmt.Errorf("event %d after %d", e.Seq, last)
			}
			last = e.Seq
		}
		return nil
	}})
	if last != 1_500 {
		t.Errorf("replayed up to event %d, want 1500", last)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	why := errors.New("unknown type")
	_, err := eventlog.Open(t.Context(), s.Engine(), eventlog.Options{Replay: func([]eventlog.Event) error { return why }})
	if !errors.Is(err, why) {
		t.Errorf("open with a replay that fails: got %v, want its error", err)
	}
	wantSeq(t, open(t, s.Engine(), eventlog.Options{SkipVerify: true}), 1_500) // the failed one let go
}
