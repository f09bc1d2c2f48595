package eventlogtest

import (
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// openEngine opens an engine without a log.
func openEngine(t *testing.T, s Store) (eventlog.Engine, eventlog.Info) {
	t.Helper()
	e := s.Engine()
	info, err := e.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Lead(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e, info
}

// chained makes n events that follow head.
func chained(head eventlog.Head, n int) []eventlog.Event {
	events := make([]eventlog.Event, n)
	for i := range events {
		e := &events[i]
		*e = eventlog.Event{Seq: head.Seq + 1, Stream: "s", Version: head.Seq + 1, Type: "t", Time: int64(head.Seq + 1), Payload: []byte("x")}
		e.Hash = eventlog.ChainHash(head.Hash, e)
		head = eventlog.Head{Seq: e.Seq, Hash: e.Hash}
	}
	return events
}

func testEngineAllOrNothing(t *testing.T, s Store) {
	e, info := openEngine(t, s)
	if want := (eventlog.Head{Hash: eventlog.Genesis(info.ID)}); info.Head != want {
		t.Errorf("head of an empty store: got %v, want %v", info.Head, want)
	}
	if err := e.Commit(t.Context(), chained(info.Head, 40)); err != nil {
		t.Fatal(err)
	}
	head, err := e.Head(t.Context())
	if err != nil || head.Seq != 40 {
		t.Fatalf("head: got %v, %v, want event 40", head, err)
	}
	// The last one of this transaction takes a seq that is taken.
	events := chained(head, 40)
	events[39].Seq = 40
	if err := e.Commit(t.Context(), events); err == nil {
		t.Fatal("a seq was stored twice")
	}
	if got, err := e.Head(t.Context()); err != nil || got != head {
		t.Errorf("after a failed commit: got head %v, %v, want %v", got, err, head)
	}
}

func testEngineScan(t *testing.T, s Store) {
	e, info := openEngine(t, s)
	const n = 37 // not a multiple of what any statement inserts
	if err := e.Commit(t.Context(), chained(info.Head, n)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ after, stop, first, last uint64 }{
		{0, n, 1, n},
		{0, 1, 1, 1},
		{36, n, 37, 37},
		{5, 9, 6, 9},
		{n, n, 0, 0},
		{1 << 40, n, 0, 0},
	} {
		var first, last uint64
		err := e.Scan(t.Context(), tc.after, func(ev eventlog.Event) bool {
			if first == 0 {
				first = ev.Seq
			} else if ev.Seq != last+1 {
				t.Errorf("event %d after %d", ev.Seq, last)
			}
			last = ev.Seq
			return ev.Seq < tc.stop
		})
		if err != nil || first != tc.first || last != tc.last {
			t.Errorf("scan after %d: got events %d to %d, %v, want %d to %d", tc.after, first, last, err, tc.first, tc.last)
		}
	}
}
