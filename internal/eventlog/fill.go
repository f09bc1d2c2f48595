package eventlog

import (
	"context"
	"errors"
	"fmt"
	"iter"
)

// ErrNotEmpty means that a log is already where another one was to be put.
var ErrNotEmpty = errors.New("there is an event log already")

// Fill puts the events of the log id into the store of an engine, which must be made with that ID and hold
// none. They are verified as they come, and once more as they were stored. The caller closes the engine. When
// Fill fails, what the store holds is not to be used.
func Fill(ctx context.Context, to Engine, id LogID, events iter.Seq2[Event, error]) (Head, error) {
	info, err := to.Open(ctx)
	if err != nil {
		return Head{}, err
	}
	if info.ID != id || info.Head.Seq > 0 {
		return Head{}, fmt.Errorf("%w: %s with %d events", ErrNotEmpty, info.ID, info.Head.Seq)
	}
	if _, err := to.Lead(ctx); err != nil {
		return Head{}, err
	}
	v := newVerifier(Genesis(id))
	var batch []Event
	size := 0
	commit := func() error {
		if len(batch) == 0 {
			return nil
		}
		fillBefore.Hit()
		if err := to.Commit(ctx, batch); err != nil {
			return fmt.Errorf("store events %d to %d: %w", batch[0].Seq, v.head.Seq, err)
		}
		fillAfter.Hit()
		batch, size = batch[:0], 0
		return nil
	}
	for e, err := range events {
		if err != nil {
			return Head{}, err
		}
		if err := ctx.Err(); err != nil {
			return Head{}, err
		}
		if err := v.next(&e); err != nil {
			return Head{}, err
		}
		batch = append(batch, e)
		if size += len(e.Payload); len(batch) == batchEvents || size >= batchBytes {
			if err := commit(); err != nil {
				return Head{}, err
			}
		}
	}
	if err := commit(); err != nil {
		return Head{}, err
	}
	stored, err := Verify(ctx, Stored(ctx, to), Genesis(id))
	if err != nil {
		return Head{}, fmt.Errorf("verify what was stored: %w", err)
	}
	if stored != v.head {
		return Head{}, &RegressionError{Seen: v.head, Have: stored}
	}
	return stored, nil
}

// Stored gives all events of an engine that is open, in bounded pieces.
func Stored(ctx context.Context, e Engine) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		var last uint64
		for {
			n, stopped := 0, false
			err := e.Scan(ctx, last, func(ev Event) bool {
				n++
				last = ev.Seq
				stopped = !yield(ev, nil)
				return !stopped && n < chunkEvents
			})
			if stopped {
				return
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
			if n < chunkEvents {
				return
			}
		}
	}
}
