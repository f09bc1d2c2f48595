// Package eventlogtest is the contract of eventlog.Engine as tests, and an engine that fails on demand. Every
// engine runs the suite, the one in memory included, so that what is tested on it holds on the others.
package eventlogtest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// A Store is one place where an engine keeps a log.
type Store struct {
	// Engine makes a new engine on the store. The suite opens one at a time.
	Engine func() eventlog.Engine
	// Steal makes another owner take the store over while an engine is open.
	Steal func(t *testing.T)
}

// Run runs the suite. Each test gets an empty store from newStore.
func Run(t *testing.T, newStore func(t *testing.T) Store) {
	for _, tc := range []struct {
		name string
		test func(t *testing.T, s Store)
	}{
		{"RoundTrip", testRoundTrip},
		{"Bounds", testBounds},
		{"BigEvents", testBigEvents},
		{"Conflict", testConflict},
		{"ConflictInRequest", testConflictInRequest},
		{"Idempotency", testIdempotency},
		{"IdempotencyConcurrent", testIdempotencyConcurrent},
		{"Find", testFind},
		{"ConcurrentWriters", testConcurrentWriters},
		{"WatchFromAnywhere", testWatchFromAnywhere},
		{"WatchSlow", testWatchSlow},
		{"WatchEnds", testWatchEnds},
		{"ReadIsBounded", testReadIsBounded},
		{"Clock", testClock},
		{"Validate", testValidate},
		{"OnCommit", testOnCommit},
		{"Replay", testReplay},
		{"Extends", testExtends},
		{"Fenced", testFenced},
		{"CommitLostAnswer", testCommitLostAnswer},
		{"CommitRefused", testCommitRefused},
		{"CommitUnknowable", testCommitUnknowable},
		{"CommitBroken", testCommitBroken},
		{"CallerLeaves", testCallerLeaves},
		{"Close", testClose},
		{"EngineAllOrNothing", testEngineAllOrNothing},
		{"EngineScan", testEngineScan},
	} {
		t.Run(tc.name, func(t *testing.T) { tc.test(t, newStore(t)) })
	}
}

// Faulty is an engine whose calls a test can take over. A nil func passes the call on.
type Faulty struct {
	eventlog.Engine
	// OnCommit stands for Commit; commit is the real one.
	OnCommit func(events []eventlog.Event, commit func() error) error
	// OnHead stands for Head.
	OnHead func(head func() (eventlog.Head, error)) (eventlog.Head, error)
}

// Commit implements eventlog.Engine.
func (f *Faulty) Commit(ctx context.Context, events []eventlog.Event) error {
	if f.OnCommit == nil {
		return f.Engine.Commit(ctx, events)
	}
	return f.OnCommit(events, func() error { return f.Engine.Commit(ctx, events) })
}

// Head implements eventlog.Engine.
func (f *Faulty) Head(ctx context.Context) (eventlog.Head, error) {
	if f.OnHead == nil {
		return f.Engine.Head(ctx)
	}
	return f.OnHead(func() (eventlog.Head, error) { return f.Engine.Head(ctx) })
}

// deadline is how long a test waits for what must come.
const deadline = 30 * time.Second

func open(t *testing.T, e eventlog.Engine, opts eventlog.Options) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Open(t.Context(), e, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

// reopen closes l and opens the store again.
func reopen(t *testing.T, l *eventlog.Log, s Store, opts eventlog.Options) *eventlog.Log {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, s.Engine(), opts)
}

// event is an Append to stream with nothing special about it.
func event(stream string, expect uint64) eventlog.Append {
	return eventlog.Append{
		Stream: stream, Expect: expect, Type: "thing.happened", TypeVersion: 1, Actor: "user:ada",
		Payload: []byte(fmt.Sprintf(`{"stream":%q}`, stream)),
	}
}

// fill appends n events to streams of their own, many in each request.
func fill(t *testing.T, l *eventlog.Log, n int) {
	t.Helper()
	for n > 0 {
		k := min(n, 500)
		appends := make([]eventlog.Append, k)
		for i := range appends {
			appends[i] = event(fmt.Sprintf("fill/%d", i), eventlog.AnyVersion)
		}
		mustAppend(t, l, appends...)
		n -= k
	}
}

func mustAppend(t *testing.T, l *eventlog.Log, appends ...eventlog.Append) eventlog.Receipt {
	t.Helper()
	r, err := l.Append(t.Context(), appends...)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return r
}

func readAll(t *testing.T, l *eventlog.Log) []eventlog.Event {
	t.Helper()
	var events []eventlog.Event
	for e, err := range l.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// verify checks the whole log as it is read, and that it ends at its head.
func verify(t *testing.T, l *eventlog.Log) {
	t.Helper()
	head, err := eventlog.Verify(t.Context(), l.Read(t.Context(), 0), l.Genesis())
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	if want := l.Head(); head != want {
		t.Errorf("verified up to %v, want %v", head, want)
	}
}

func wantSeq(t *testing.T, l *eventlog.Log, want uint64) {
	t.Helper()
	if got := l.Head().Seq; got != want {
		t.Errorf("head: got event %d, want %d", got, want)
	}
}
