package eventlog

import (
	"context"
	"crypto/ed25519"
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

	// Follow opens the log without being the one that appends. Its events are tailed, with OnCommit called
	// for each transaction that others commit, until the engine lets this log lead (see Leads).
	Follow bool
	// Poll is how often a follower looks; 100 ms when 0.
	Poll time.Duration

	// Key signs checkpoints: about every CheckpointEvery events (1000 when 0), after a minute when there are
	// fewer, and when Checkpoint is called. There are none without it.
	Key             ed25519.PrivateKey
	CheckpointEvery int
	// Fold is asked for the state's hash in checkpoints and for its copy in Dir; it may be nil.
	Fold Fold
	// Dir is where a copy of what Open learns from the events is kept, so that the next one need not read
	// them all. It is written behind, belongs to this log, and may be deleted at any time. No copy when empty.
	Dir string
	// Warn is told what went wrong with the copy and with checkpoints, which costs time and no event; may be nil.
	Warn func(error)

	// SkipVerify trusts the stored hashes at Open instead of computing them again. Gaps are still found.
	SkipVerify bool
}

// A Log is an open event log. Its methods may be called by many goroutines.
type Log struct {
	engine Engine
	opts   Options
	id     LogID

	queue    chan *request
	leads    chan struct{}   // closed when this log may append
	lost     <-chan struct{} // the engine's; set before leads is closed
	stopping chan struct{}   // closed by Close
	stopped  chan struct{}   // closed when the writer goroutine has ended
	closing  sync.Once
	closeErr error

	// scans is held for reading while the engine is scanned, for writing by Close.
	scans  sync.RWMutex
	closed bool // guarded by scans

	tail tail

	caughtUp atomic.Pointer[time.Time] // of a log that follows

	failed  chan struct{} // closed after failure is set
	failure atomic.Pointer[error]

	w writer // owned by the writer goroutine

	keeping   keeper
	derivedAt uint64 // the seq of the derived copy that Open used; 0 for none
}

// Open opens the log in engine, reads what is stored, and starts its writer. The log owns the engine from now
// on, and closes it also when Open fails.
//
// The error wraps ErrHeld when another owner has the store and the options do not say to follow it, and is a
// *RegressionError when the store has lost events that the copy in Options.Dir knows.
func Open(ctx context.Context, engine Engine, opts Options) (*Log, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Queue <= 0 {
		opts.Queue = 1024
	}
	if opts.Poll <= 0 {
		opts.Poll = 100 * time.Millisecond
	}
	if opts.CheckpointEvery <= 0 {
		opts.CheckpointEvery = 1000
	}
	info, err := engine.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	openStored.Hit()
	l := &Log{
		engine:   engine,
		opts:     opts,
		id:       info.ID,
		queue:    make(chan *request, opts.Queue),
		leads:    make(chan struct{}),
		stopping: make(chan struct{}),
		stopped:  make(chan struct{}),
		failed:   make(chan struct{}),
	}
	if err := l.begin(ctx, info.Head); err != nil {
		return nil, errors.Join(fmt.Errorf("open event log: %w", err), engine.Close())
	}
	openLoaded.Hit()
	// Requests in the queue outlive whoever opened the log; Close ends the writer.
	go l.run(context.WithoutCancel(ctx))
	l.keep(context.WithoutCancel(ctx))
	return l, nil
}

// begin takes the ownership, unless this log is to follow, and learns what is stored.
func (l *Log) begin(ctx context.Context, head Head) error {
	if l.opts.Follow {
		l.saw(time.Now())
		return l.load(ctx, head)
	}
	lost, err := l.engine.Lead(ctx)
	if err != nil {
		return err
	}
	openLeads.Hit()
	// What an earlier owner committed after Open had looked is there now, and is all of it.
	if head, err = l.engine.Head(ctx); err != nil {
		return err
	}
	l.lost = lost
	if err := l.load(ctx, head); err != nil {
		return err
	}
	close(l.leads)
	return nil
}

// run is the writer goroutine.
func (l *Log) run(ctx context.Context) {
	defer close(l.stopped)
	select {
	case <-l.leads:
	default:
		if !l.follow(ctx) {
			return
		}
		close(l.leads)
	}
	l.write(ctx)
}

// load learns what is stored up to head, from the copy where there is one and from the events after it.
func (l *Log) load(ctx context.Context, head Head) error {
	known, err := l.restore(ctx, head)
	if err != nil {
		return err
	}
	l.derivedAt = known.head.Seq
	v := &verifier{head: known.head, time: known.time, versions: known.versions, noHashes: l.opts.SkipVerify}
	l.w = writer{keys: make(map[keyID]span), older: known.keys}
	check, err := l.engine.LastCheckpoint(ctx)
	if err != nil {
		return err
	}
	if check.Seq > head.Seq {
		return &RegressionError{Seen: check.Head(), Have: head}
	}
	for events, err := range l.chunks(ctx, v.head.Seq, head.Seq) {
		if err != nil {
			return err
		}
		// The state is compared where it was signed, so a chunk ends there.
		for len(events) > 0 {
			n := len(events)
			if first := events[0].Seq; first <= check.Seq && check.Seq-first < uint64(n) {
				n = int(check.Seq-first) + 1
			}
			if err := l.learn(v, events[:n]); err != nil {
				return err
			}
			if v.head.Seq == check.Seq {
				if err := l.compare(&check, v.head); err != nil {
					return err
				}
			}
			events = events[n:]
		}
	}
	if v.head != head {
		return fmt.Errorf("verify: the store says that its head is event %d %s, but its events end with %d %s", head.Seq, head.Hash, v.head.Seq, v.head.Hash)
	}
	l.w.head, l.w.time, l.w.versions = v.head, v.time, v.versions
	l.tail.init(v.head)
	return nil
}

// learn verifies events that are stored and lets the caller fold them.
func (l *Log) learn(v *verifier, events []Event) error {
	for i := range events {
		if err := v.next(&events[i]); err != nil {
			return fmt.Errorf("verify: %w", err)
		}
		l.w.remember(&events[i])
	}
	if l.opts.Replay != nil {
		if err := l.opts.Replay(events); err != nil {
			return fmt.Errorf("replay up to event %d: %w", v.head.Seq, err)
		}
	}
	return nil
}

// compare holds a stored checkpoint against the log as it was then: the chain, and what it is folded into.
func (l *Log) compare(c *Checkpoint, head Head) error {
	if err := c.Verify(l.id); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if c.Head() != head {
		return fmt.Errorf("verify: %w", &RegressionError{Seen: c.Head(), Have: head})
	}
	if l.opts.Fold == nil || c.StateVersion != l.opts.Fold.Version() {
		return nil
	}
	if _, state := l.opts.Fold.Freeze(); state.Hash() != c.State {
		return fmt.Errorf("verify: the events up to %d fold into another state than when their checkpoint was signed, by the same version of the fold: it is not deterministic, and nothing may be decided from it", c.Seq)
	}
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
		closeBefore.Hit()
		l.keeping.stop()
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
