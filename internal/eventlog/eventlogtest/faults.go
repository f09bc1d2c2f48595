package eventlogtest

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

var errInjected = errors.New("injected")

// wantFailed checks that the log has failed for good because of cause, and says so to everybody.
func wantFailed(t *testing.T, l *eventlog.Log, err, cause error) {
	t.Helper()
	if !errors.Is(err, eventlog.ErrFailed) || !errors.Is(err, cause) {
		t.Errorf("append: got %v, want ErrFailed because of %v", err, cause)
	}
	select {
	case <-l.Failed():
	case <-time.After(deadline):
		t.Fatal("Failed is not closed")
	}
	if !errors.Is(l.Err(), cause) {
		t.Errorf("Err: got %v, want %v", l.Err(), cause)
	}
	if _, err := l.Append(t.Context(), event("later", 0)); !errors.Is(err, eventlog.ErrFailed) {
		t.Errorf("append to a failed log: got %v, want ErrFailed", err)
	}
	for _, err := range l.Watch(t.Context(), l.Head().Seq) {
		if !errors.Is(err, eventlog.ErrFailed) {
			t.Errorf("watch of a failed log: got %v, want ErrFailed", err)
		}
	}
}

func testFenced(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	mustAppend(t, l, event("a", 0))
	s.Steal(t)
	_, err := l.Append(t.Context(), event("a", 1))
	wantFailed(t, l, err, eventlog.ErrFenced)
	wantSeq(t, l, 1)
	wantSeq(t, reopen(t, l, s, eventlog.Options{}), 1)
}

// testCommitLostAnswer: the transaction was committed, but the engine could not say so.
func testCommitLostAnswer(t *testing.T, s Store) {
	f := &Faulty{Engine: s.Engine()}
	var committed uint64
	l := open(t, f, eventlog.Options{
		OnCommit: func(events []eventlog.Event) { committed += uint64(len(events)) },
		Discard:  func(uint64) { t.Error("discarded what was committed") },
	})
	f.OnCommit = func(_ []eventlog.Event, commit func() error) error {
		return errors.Join(commit(), errInjected)
	}
	for i := range uint64(3) {
		mustAppend(t, l, event("a", i))
	}
	if committed != 3 {
		t.Errorf("OnCommit saw %d events, want 3", committed)
	}
	verify(t, reopen(t, l, s, eventlog.Options{}))
}

// testCommitRefused: nothing was committed; the log goes on from where it was.
func testCommitRefused(t *testing.T, s Store) {
	f := &Faulty{Engine: s.Engine()}
	var refuse atomic.Bool
	var discarded []uint64
	f.OnCommit = func(_ []eventlog.Event, commit func() error) error {
		if refuse.Load() {
			return errInjected
		}
		return commit()
	}
	var provisional uint64
	l := open(t, f, eventlog.Options{
		Validate: func(events []eventlog.Event) error {
			provisional += uint64(len(events))
			return nil
		},
		Discard: func(after uint64) {
			discarded = append(discarded, after)
			provisional = after
		},
	})
	mustAppend(t, l, event("a", 0))
	refuse.Store(true)
	lost := []eventlog.Append{event("a", 1), event("new", 0)}
	lost[0].IdempotencyKey = "k"
	if _, err := l.Append(t.Context(), lost...); !errors.Is(err, eventlog.ErrNotCommitted) || !errors.Is(err, errInjected) {
		t.Errorf("got %v, want ErrNotCommitted with the cause", err)
	}
	wantSeq(t, l, 1)
	refuse.Store(false)
	r := mustAppend(t, l, lost...)
	if r.First != 2 || r.Last != 3 || r.Repeated {
		t.Errorf("receipt: got %+v, want events 2 and 3", r)
	}
	if len(discarded) != 1 || discarded[0] != 1 || provisional != 3 {
		t.Errorf("discarded after %v with the hook at %d, want [1] and 3", discarded, provisional)
	}
	if l.Err() != nil {
		t.Errorf("the log failed: %v", l.Err())
	}
	verify(t, reopen(t, l, s, eventlog.Options{}))
}

// testCommitUnknowable: the outcome can't be looked up, or is one that nobody can explain.
func testCommitUnknowable(t *testing.T, s Store) {
	l := open(t, s.Engine(), eventlog.Options{})
	fill(t, l, 2)
	for _, onHead := range []func(func() (eventlog.Head, error)) (eventlog.Head, error){
		func(func() (eventlog.Head, error)) (eventlog.Head, error) { return eventlog.Head{}, errInjected },
		func(func() (eventlog.Head, error)) (eventlog.Head, error) { return eventlog.Head{Seq: 1}, nil },
	} {
		f := &Faulty{Engine: s.Engine()}
		f.OnCommit = func([]eventlog.Event, func() error) error { return errInjected }
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, f, eventlog.Options{})
		f.OnHead = onHead // ordered before its use by the append
		_, err := l.Append(t.Context(), event("a", 0))
		wantFailed(t, l, err, errInjected)
	}
	verify(t, reopen(t, l, s, eventlog.Options{}))
}

// testCommitBroken: after a failed sync nothing is looked up, because the answer may be a lie.
func testCommitBroken(t *testing.T, s Store) {
	f := &Faulty{Engine: s.Engine()}
	l := open(t, f, eventlog.Options{})
	f.OnHead = func(func() (eventlog.Head, error)) (eventlog.Head, error) {
		t.Error("a broken store was asked for its head")
		return eventlog.Head{}, nil
	}
	f.OnCommit = func(_ []eventlog.Event, commit func() error) error {
		return errors.Join(commit(), eventlog.ErrBroken)
	}
	_, err := l.Append(t.Context(), event("a", 0))
	wantFailed(t, l, err, eventlog.ErrBroken)
	wantSeq(t, l, 0) // it may be stored, but nobody was told that it is
	f.OnHead = nil
	verify(t, reopen(t, l, s, eventlog.Options{}))
}

func testCallerLeaves(t *testing.T, s Store) {
	f := &Faulty{Engine: s.Engine()}
	entered, release := make(chan struct{}), make(chan struct{})
	f.OnCommit = func(_ []eventlog.Event, commit func() error) error {
		entered <- struct{}{}
		<-release
		return commit()
	}
	l := open(t, f, eventlog.Options{Queue: 1})
	why := errors.New("the caller has gone")
	call := func(a eventlog.Append) (leave func(), result chan error) {
		ctx, cancel := context.WithCancelCause(t.Context())
		result = make(chan error, 1)
		go func() {
			_, err := l.Append(ctx, a)
			result <- err
		}()
		return func() { cancel(why) }, result
	}
	first := event("a", 0)
	first.IdempotencyKey = "k"
	leaveFirst, firstResult := call(first)
	<-entered // its transaction is on its way
	leaveFirst()
	if err := <-firstResult; !errors.Is(err, eventlog.ErrUnknown) || !errors.Is(err, why) {
		t.Errorf("while committing: got %v, want ErrUnknown", err)
	}
	// One waits in the queue and one for room in it.
	for range 2 {
		leave, result := call(event("b", 0))
		leave()
		if err := <-result; errors.Is(err, eventlog.ErrUnknown) || !errors.Is(err, why) {
			t.Errorf("while waiting: got %v, want the cause alone", err)
		}
	}
	f.OnCommit = nil // ordered before its next use by the channel
	close(release)
	r := mustAppend(t, l, first)
	if !r.Repeated || r.First != 1 {
		t.Errorf("again with the same key: got %+v, want the receipt of event 1", r)
	}
	wantSeq(t, l, 1)
}

func testClose(t *testing.T, s Store) {
	f := &Faulty{Engine: s.Engine()}
	entered, release := make(chan struct{}), make(chan struct{})
	f.OnCommit = func(_ []eventlog.Event, commit func() error) error {
		close(entered)
		<-release
		return commit()
	}
	l := open(t, f, eventlog.Options{})
	results := make(chan error, 2)
	go func() {
		_, err := l.Append(t.Context(), event("a", 0))
		results <- err
	}()
	<-entered
	closed := make(chan error)
	go func() { closed <- l.Close() }()
	close(release)
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if err := <-results; err != nil {
		t.Errorf("the transaction in progress: %v", err)
	}
	if _, err := l.Append(t.Context(), event("a", 1)); !errors.Is(err, eventlog.ErrClosed) {
		t.Errorf("append to a closed log: got %v, want ErrClosed", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	wantSeq(t, open(t, s.Engine(), eventlog.Options{}), 1)
}
