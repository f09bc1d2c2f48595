package eventlog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
)

// A request is one call of Append or Find on its way through the writer.
type request struct {
	appends []Append
	// find is an idempotency key to look for, of a request that appends nothing.
	find string
	// state decides between the caller that leaves and the writer that begins.
	state atomic.Int32
	done  chan result // of capacity 1, written once by the writer

	result result // owned by the writer until it is sent
}

const (
	waiting int32 = iota
	taken
	abandoned
)

type result struct {
	span     span
	hash     Hash // unset when repeated
	repeated bool
	err      error
}

// A span is where the events of one request are.
type span struct{ first, last uint64 }

// A keyID stands for an idempotency key in memory. The key itself is compared in the stored event.
type keyID [16]byte

func keyIDOf(key string) keyID {
	sum := sha256.Sum256([]byte(key))
	return keyID(sum[:16])
}

// Append appends events in one piece, all or none, next to each other. When it returns nil they are
// durable, folded (Options.OnCommit has run) and visible to readers.
//
// The idempotency key of the first Append is the whole request's; the others carry the same or none. When
// the log has that key already, nothing is appended, and the receipt is the one of the first time,
// whatever the rest of the request says. Keys are one name space for the whole log and are kept for ever, so
// callers put what makes them unique into them.
//
// Errors: *ConflictError, *RejectedError and ErrNotCommitted mean that nothing was appended, as does the
// context's own error; ErrUnknown, that ctx ended while the transaction was on its way; ErrFailed that the
// log has ended for good.
func (l *Log) Append(ctx context.Context, appends ...Append) (Receipt, error) {
	if err := checkRequest(appends); err != nil {
		return Receipt{}, err
	}
	r := &request{appends: slices.Clone(appends), done: make(chan result, 1)}
	for i := range r.appends {
		a := &r.appends[i]
		// The caller may use its buffer again, and watchers see ours for long. Never nil: an empty payload
		// is not a missing one.
		a.Payload = append(make([]byte, 0, len(a.Payload)), a.Payload...)
		a.IdempotencyKey = r.appends[0].IdempotencyKey
	}
	res, err := l.ask(ctx, r)
	if err != nil {
		return Receipt{}, err
	}
	return l.receipt(ctx, res, appends[0].IdempotencyKey)
}

// Bounds of one transaction; a single request may be larger than the second.
const (
	batchEvents = 1024
	batchBytes  = 4 << 20
)

// maxYields is how often the writer gives way to callers before it commits less than the last time.
const maxYields = 3

// A writer is what the writer goroutine knows: the head and what hangs on it, including the events that
// are being committed. When a commit fails, undo and newKeys lead back to what is stored.
type writer struct {
	head     Head
	time     int64
	versions map[string]uint64 // of every stream
	keys     map[keyID]span    // of the idempotency keys that are not in older
	older    keySlab

	// before is how many requests the last transaction had, and yields how often the writer gave way for this one.
	before, yields int

	// The transaction that is being put together.
	requests []*request
	events   []Event
	bytes    int
	undo     []streamVersion
	newKeys  []keyID
	chain    chain
}

type streamVersion struct {
	stream  string
	version uint64
}

// write answers requests until the log is closed or has failed.
func (l *Log) write(ctx context.Context) {
	for {
		select {
		case <-l.stopping:
			return
		case <-l.lost:
			_ = l.fail(ErrFenced)
			return
		case r := <-l.queue:
			if !l.commit(ctx, r) {
				return
			}
		}
	}
}

// commit puts r and the requests that wait behind it into one transaction, commits it, and answers them. It
// returns false when the log has failed.
func (l *Log) commit(ctx context.Context, r *request) bool {
	w := &l.w
	base, baseTime := w.head, w.time
	for r != nil {
		if r.state.CompareAndSwap(waiting, taken) {
			batchTaken.Hit()
			w.requests = append(w.requests, r)
			l.plan(r)
		}
		r = nil
		if len(w.events) < batchEvents && w.bytes < batchBytes {
			r = l.next()
		}
	}
	var err error
	if len(w.events) > 0 {
		batchPlanned.Hit()
		err = l.store(ctx, base)
	}
	if err == nil {
		if len(w.events) > 0 {
			l.publish(w.events)
		}
	} else {
		w.head, w.time = base, baseTime
		w.rewind(0)
		for _, id := range w.newKeys {
			delete(w.keys, id)
		}
		if l.opts.Discard != nil {
			l.opts.Discard(base.Seq)
		}
	}
	for i, r := range w.requests {
		if err != nil {
			// Conflicts and repetitions were found against events that are void, so they are void too.
			r.result = result{err: err}
		}
		r.done <- r.result
		if i == 0 {
			answerFirst.Hit()
		}
	}
	answerAll.Hit()
	w.reset()
	return l.Err() == nil
}

// next gives the request that waits in the queue, if there is one. Callers that were answered just now are on their way
// back with their next ones, unless nobody lets them run: without giving way the first of them would be committed
// alone, and all others would wait for two syncs.
func (l *Log) next() *request {
	for {
		select {
		case r := <-l.queue:
			return r
		default:
		}
		if len(l.w.requests) >= l.w.before || l.w.yields == maxYields {
			return nil
		}
		l.w.yields++
		runtime.Gosched()
	}
}

// publish makes committed events visible.
func (l *Log) publish(events []Event) {
	if l.opts.OnCommit != nil {
		l.opts.OnCommit(events)
	}
	commitFolded.Hit()
	l.tail.publish(events)
	commitPublished.Hit()
}

// reset forgets the transaction, keeping the memory but nothing that it points to.
func (w *writer) reset() {
	w.before, w.yields = len(w.requests), 0
	clear(w.requests)
	clear(w.events)
	clear(w.undo)
	w.requests, w.events, w.bytes = w.requests[:0], w.events[:0], 0
	w.undo, w.newKeys = w.undo[:0], w.newKeys[:0]
}

// plan adds the events of r to the transaction, or leaves the reason why not in its result.
func (l *Log) plan(r *request) {
	w := &l.w
	if r.find != "" {
		r.result.span, r.result.repeated = w.span(keyIDOf(r.find))
		return
	}
	key := r.appends[0].IdempotencyKey
	var id keyID
	if key != "" {
		id = keyIDOf(key)
		if s, ok := w.span(id); ok {
			r.result = result{span: s, repeated: true}
			return
		}
	}
	head, time := w.head, w.time
	firstEvent, firstUndo := len(w.events), len(w.undo)
	if err := l.extend(r.appends); err != nil {
		w.rewind(firstUndo)
		clear(w.events[firstEvent:])
		w.events = w.events[:firstEvent]
		w.head, w.time = head, time
		r.result = result{err: err}
		return
	}
	for i := range r.appends {
		w.bytes += len(r.appends[i].Payload)
	}
	s := span{first: head.Seq + 1, last: w.head.Seq}
	if key != "" {
		w.keys[id] = s
		w.newKeys = append(w.newKeys, id)
	}
	r.result = result{span: s, hash: w.head.Hash}
}

// extend moves the provisional head over appends; the caller takes it back when that fails.
func (l *Log) extend(appends []Append) error {
	w := &l.w
	first := len(w.events)
	now := l.opts.Now().UnixNano()
	for i := range appends {
		a := &appends[i]
		have := w.versions[a.Stream]
		if a.Expect != AnyVersion && a.Expect != have {
			return &ConflictError{Stream: a.Stream, Want: a.Expect, Have: have}
		}
		w.undo = append(w.undo, streamVersion{a.Stream, have})
		w.versions[a.Stream] = have + 1
		w.time = max(now, w.time+1)
		e := Event{
			Seq: w.head.Seq + 1, Stream: a.Stream, Version: have + 1, Type: a.Type, TypeVersion: a.TypeVersion,
			Time: w.time, Actor: a.Actor, IdempotencyKey: a.IdempotencyKey, Payload: a.Payload,
		}
		e.Hash = w.chain.hash(w.head.Hash, &e)
		w.head = Head{Seq: e.Seq, Hash: e.Hash}
		w.events = append(w.events, e)
	}
	if l.opts.Validate != nil {
		if err := l.opts.Validate(w.events[first:len(w.events):len(w.events)]); err != nil {
			return &RejectedError{Cause: err}
		}
	}
	return nil
}

// span finds the events of an idempotency key.
func (w *writer) span(id keyID) (span, bool) {
	if s, ok := w.keys[id]; ok {
		return s, true
	}
	return w.older.find(id)
}

// rewind takes stream versions back to where undo had n entries.
func (w *writer) rewind(n int) {
	for _, u := range slices.Backward(w.undo[n:]) {
		if u.version == 0 {
			delete(w.versions, u.stream)
		} else {
			w.versions[u.stream] = u.version
		}
	}
	clear(w.undo[n:])
	w.undo = w.undo[:n]
}

// store commits the transaction. When the engine reports an error, it is asked what it has: the outcome is
// never guessed. An error means that nothing of the transaction is stored, or that the log has failed.
func (l *Log) store(ctx context.Context, base Head) error {
	commitBefore.Hit()
	cause := l.engine.Commit(ctx, l.w.events)
	commitAfter.Hit()
	if cause == nil {
		return nil
	}
	if errors.Is(cause, ErrFenced) || errors.Is(cause, ErrBroken) {
		return l.fail(fmt.Errorf("commit events %d to %d: %w", base.Seq+1, l.w.head.Seq, cause))
	}
	stored, err := l.engine.Head(ctx)
	switch {
	case err != nil:
		return l.fail(fmt.Errorf("commit events %d to %d: %w; look up what became of them: %w", base.Seq+1, l.w.head.Seq, cause, err))
	case stored == l.w.head:
		return nil
	case stored == base:
		return fmt.Errorf("%w: %w", ErrNotCommitted, cause)
	default:
		return l.fail(fmt.Errorf("commit events %d to %d: %w; the store's head is now event %d %s, which this writer did not write", base.Seq+1, l.w.head.Seq, cause, stored.Seq, stored.Hash))
	}
}

// event reads one committed event.
func (l *Log) event(ctx context.Context, seq uint64) (Event, error) {
	for events, err := range l.chunks(ctx, seq-1, seq) {
		if err != nil {
			return Event{}, err
		}
		return events[0], nil
	}
	return Event{}, fmt.Errorf("event %d is not in the log", seq)
}

// remember learns the idempotency key of an event that is stored.
func (w *writer) remember(e *Event) {
	if e.IdempotencyKey == "" {
		return
	}
	id := keyIDOf(e.IdempotencyKey)
	s, ok := w.span(id)
	if !ok {
		s.first = e.Seq
	}
	s.last = e.Seq
	w.keys[id] = s
}
