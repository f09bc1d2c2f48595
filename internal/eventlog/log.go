package eventlog

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Options of a Log. The zero value is usable.
type Options struct {
	// Now is the clock; time.Now when nil. It only labels events. When it stands still or steps back, events
	// get the time of the one before plus a nanosecond.
	Now func() time.Time

	// Replay is called by Open with all stored events in order, in chunks, so that the caller folds them in
	// the same pass in which the log learns and verifies them. An error ends Open.
	Replay func(events []Event) error

	// Validate is asked about each request before it is committed, with its events as they would be
	// stored, in the order in which they would be. An error rejects that request alone (the caller gets a
	// *RejectedError), and the next request may get the same seqs; so a hook that returns an error must
	// have changed nothing.
	//
	// What the hook accepted is not committed yet. A caller that folds in the hook keeps that provisional
	// state apart from the one that readers see, and advances the latter in OnCommit. When a commit
	// fails, Discard is called and the provisional state must go back to what was committed.
	//
	// All hooks but Replay are called by the writer goroutine, one at a time; they must not append to
	// the log or close it. Replay, Validate and OnCommit may keep the events but not the slice.
	Validate func(events []Event) error

	// OnCommit is called with the events of one transaction after they are durable, in order, before the
	// log's head moves, watchers see them or their callers are answered. What the hook made visible is
	// therefore there for whoever has a receipt.
	OnCommit func(events []Event)

	// Discard is called when events that Validate accepted were not committed: all with a seq greater than
	// after are void.
	Discard func(after uint64)

	// Queue is how many requests may wait for the writer; 1024 when 0. When it is full, Append waits.
	Queue int

	// SkipVerify trusts the stored hashes at Open instead of computing them again. Gaps are still found.
	SkipVerify bool
}

// A Log is an open event log. Its methods may be called by many goroutines.
type Log struct {
	engine Engine
	opts   Options
	id     LogID

	queue    chan *request
	stopping chan struct{} // closed by Close
	stopped  chan struct{} // closed when the writer goroutine has ended
	closing  sync.Once
	closeErr error

	// scans is held for reading while the engine is scanned, for writing by Close.
	scans  sync.RWMutex
	closed bool // guarded by scans

	tail tail

	failed  chan struct{} // closed after failure is set
	failure atomic.Pointer[error]

	w writer // owned by the writer goroutine
}

// Open opens the log in engine, reads it once from the first event to the last, and starts its writer. The
// log owns the engine from now on, and closes it also when Open fails.
func Open(ctx context.Context, engine Engine, opts Options) (*Log, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Queue <= 0 {
		opts.Queue = 1024
	}
	info, err := engine.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	l := &Log{
		engine:   engine,
		opts:     opts,
		id:       info.ID,
		queue:    make(chan *request, opts.Queue),
		stopping: make(chan struct{}),
		stopped:  make(chan struct{}),
		failed:   make(chan struct{}),
	}
	if err := l.load(ctx, info); err != nil {
		return nil, errors.Join(fmt.Errorf("open event log: %w", err), engine.Close())
	}
	// Requests in the queue outlive whoever opened the log; Close ends the writer.
	go l.write(context.WithoutCancel(ctx))
	return l, nil
}

// load learns what is stored.
func (l *Log) load(ctx context.Context, info Info) error {
	v := newVerifier(Genesis(info.ID))
	v.noHashes = l.opts.SkipVerify
	keys := make(map[keyID]span)
	for events, err := range l.chunks(ctx, 0, info.Head.Seq) {
		if err != nil {
			return err
		}
		for i := range events {
			if err := v.next(&events[i]); err != nil {
				return fmt.Errorf("verify: %w", err)
			}
			if k := events[i].IdempotencyKey; k != "" {
				id := keyIDOf(k)
				s, ok := keys[id]
				if !ok {
					s.first = events[i].Seq
				}
				s.last = events[i].Seq
				keys[id] = s
			}
		}
		if l.opts.Replay != nil {
			if err := l.opts.Replay(events); err != nil {
				return fmt.Errorf("replay up to event %d: %w", v.head.Seq, err)
			}
		}
	}
	if v.head != info.Head {
		return fmt.Errorf("verify: the store says that its head is event %d %s, but its events end with %d %s", info.Head.Seq, info.Head.Hash, v.head.Seq, v.head.Hash)
	}
	l.w = writer{head: v.head, time: v.time, versions: v.versions, keys: keys}
	l.tail.init(v.head)
	return nil
}

// ID is the log's own, for all its life.
func (l *Log) ID() LogID { return l.id }

// Genesis is the hash before the first event.
func (l *Log) Genesis() Hash { return Genesis(l.id) }

// Head is the last event that is committed and visible.
func (l *Log) Head() Head { return l.tail.head() }

// Failed is closed when the log has failed for good; Err then says why. The process is to end: what
// became of the last appends is known only after the log was opened anew.
func (l *Log) Failed() <-chan struct{} { return l.failed }

// Err is why the log failed, wrapping ErrFailed, or nil.
func (l *Log) Err() error {
	if p := l.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail ends the log for good. It is called by the writer goroutine only.
func (l *Log) fail(cause error) error {
	err := fmt.Errorf("%w: %w", ErrFailed, cause)
	l.failure.Store(&err)
	close(l.failed)
	return err
}

// Close waits for the transaction in progress, answers those who wait with ErrClosed, ends readers and
// watchers with ErrClosed and closes the engine. More calls do nothing and return what the first did.
func (l *Log) Close() error {
	l.closing.Do(func() {
		close(l.stopping)
		<-l.stopped
		l.scans.Lock()
		defer l.scans.Unlock()
		l.closed = true
		if err := l.engine.Close(); err != nil {
			l.closeErr = fmt.Errorf("close event log: %w", err)
		}
	})
	return l.closeErr
}
