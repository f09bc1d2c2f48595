package eventlog

import (
	"context"
	"iter"
	"slices"
	"sync"
)

// Bounds of what is read from the engine at once, and of what Watch hands out at once. One event is
// always enough for a chunk.
const (
	chunkEvents = 1024
	chunkBytes  = 4 << 20
)

// Bounds of the latest events that are kept in memory for watchers.
const (
	tailEvents = 4096
	tailBytes  = 16 << 20
)

// Read gives the committed events with a seq greater than after, in order, up to the head at the time
// when the loop begins. An error is the last thing that it gives.
func (l *Log) Read(ctx context.Context, after uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for events, err := range l.chunks(ctx, after, l.Head().Seq) {
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// Watch gives the events with a seq greater than after, first those that are stored and then, without a gap
// or a repetition, those that are committed while it runs. They come in batches: whatever is there when the
// loop asks, within bounds. A slow loop costs no memory: what it has missed is read from the engine again.
//
// It ends with an error: the context's, ErrClosed, why the log failed, or a *RegressionError when after lies
// beyond the head, because then the caller has seen events that this log does not have.
func (l *Log) Watch(ctx context.Context, after uint64) iter.Seq2[[]Event, error] {
	return func(yield func([]Event, error) bool) {
		if head := l.Head(); after > head.Seq {
			yield(nil, &RegressionError{Seen: Head{Seq: after}, Have: head})
			return
		}
		for {
			if ctx.Err() != nil {
				yield(nil, context.Cause(ctx))
				return
			}
			events, upTo, changed := l.tail.after(after)
			switch {
			case len(events) > 0:
				if !yield(events, nil) {
					return
				}
				after = events[len(events)-1].Seq
			case upTo > after: // too far behind for the tail
				for events, err := range l.chunks(ctx, after, upTo) {
					if !yield(events, err) || err != nil {
						return
					}
					after = events[len(events)-1].Seq
				}
			default:
				select {
				case <-changed:
				case <-ctx.Done():
				case <-l.stopped:
					// What was published last may not have been handed out yet.
					if l.Head().Seq == after {
						yield(nil, l.endError())
						return
					}
				}
			}
		}
	}
}

// Extends says whether the log still has the head that somebody saw before: nil, a *RegressionError, or why
// that could not be read.
func (l *Log) Extends(ctx context.Context, seen Head) error {
	have := l.Head()
	switch {
	case seen.Seq > have.Seq:
		return &RegressionError{Seen: seen, Have: have}
	case seen.Seq == 0:
		have = Head{Hash: l.Genesis()}
	case seen.Seq < have.Seq:
		e, err := l.event(ctx, seen.Seq)
		if err != nil {
			return err
		}
		have = Head{Seq: e.Seq, Hash: e.Hash}
	}
	if seen != have {
		return &RegressionError{Seen: seen, Have: have}
	}
	return nil
}

// chunks reads the stored events after one seq up to another in bounded pieces, none empty. Between the
// pieces nothing of the store is held.
func (l *Log) chunks(ctx context.Context, after, upTo uint64) iter.Seq2[[]Event, error] {
	return func(yield func([]Event, error) bool) {
		for after < upTo {
			events, err := l.chunk(ctx, after, upTo)
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(events, nil) {
				return
			}
			after = events[len(events)-1].Seq
		}
	}
}

func (l *Log) chunk(ctx context.Context, after, upTo uint64) ([]Event, error) {
	l.scans.RLock()
	defer l.scans.RUnlock()
	if l.closed {
		return nil, ErrClosed
	}
	events := make([]Event, 0, min(upTo-after, chunkEvents))
	size := 0
	err := l.engine.Scan(ctx, after, func(e Event) bool {
		events = append(events, e)
		size += len(e.Payload)
		return e.Seq < upTo && len(events) < chunkEvents && size < chunkBytes
	})
	if err != nil {
		return nil, err
	}
	for i := range events {
		if want := after + uint64(i) + 1; events[i].Seq != want {
			return nil, &VerifyError{Seq: want, Reason: "missing in the store"}
		}
	}
	if len(events) == 0 {
		return nil, &VerifyError{Seq: after + 1, Reason: "missing in the store"}
	}
	return events, nil
}

// A tail holds the latest events, so that watchers who keep up read no store.
type tail struct {
	mu      sync.Mutex
	last    Head
	events  []Event // without a gap, ending with last; only ever appended to and cut at its front
	bytes   int     // of their payloads
	dropped int     // events before events[0] that the array still holds
	waste   int     // bytes of their payloads
	changed chan struct{}
}

func (t *tail) init(head Head) {
	t.last = head
	t.changed = make(chan struct{})
}

func (t *tail) head() Head {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.last
}

// publish adds events and wakes who waits.
func (t *tail) publish(events []Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.events = append(t.events, events...)
	for i := range events {
		t.bytes += len(events[i].Payload)
	}
	n := 0
	for len(t.events)-n > tailEvents || t.bytes > tailBytes {
		size := len(t.events[n].Payload)
		t.bytes -= size
		t.waste += size
		n++
	}
	t.events = t.events[n:]
	t.dropped += n
	// Watchers may be reading the array, so what was cut off is never cleared; it goes with the array.
	if t.dropped > len(t.events) || t.waste > tailBytes {
		t.events = slices.Clone(t.events)
		t.dropped, t.waste = 0, 0
	}
	last := &events[len(events)-1]
	t.last = Head{Seq: last.Seq, Hash: last.Hash}
	close(t.changed)
	t.changed = make(chan struct{})
}

// after gives the events after seq, as many as fit a chunk, or none when there are none or when they are
// not here anymore; the head's seq; and a channel that is closed when there are more.
func (t *tail) after(seq uint64) (events []Event, head uint64, changed <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	behind := t.last.Seq - seq
	if behind > 0 && behind <= uint64(len(t.events)) {
		events = t.events[uint64(len(t.events))-behind:]
		events = slices.Clip(events[:min(len(events), chunkEvents)])
	}
	return events, t.last.Seq, t.changed
}
