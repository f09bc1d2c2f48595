package eventlog

import (
	"context"
	"fmt"
)

// ask hands a request to the writer and waits for what it says.
func (l *Log) ask(ctx context.Context, r *request) (result, error) {
	select {
	case <-l.leads:
	default:
		return result{}, l.cannotLead()
	}
	// None of these may take the request even when the queue has room.
	select {
	case <-l.stopping:
		return result{}, l.endError()
	case <-l.failed:
		return result{}, l.Err()
	case <-ctx.Done():
		return result{}, fmt.Errorf("append: %w", context.Cause(ctx))
	default:
	}
	select {
	case l.queue <- r:
	case <-l.stopped:
		return result{}, l.endError()
	case <-ctx.Done():
		return result{}, fmt.Errorf("append: wait for the writer: %w", context.Cause(ctx))
	}
	select {
	case res := <-r.done:
		return res, res.err
	case <-l.stopped:
		// The writer may have answered as its last act.
		select {
		case res := <-r.done:
			return res, res.err
		default:
			return result{}, l.endError()
		}
	case <-ctx.Done():
		if r.state.CompareAndSwap(waiting, abandoned) {
			return result{}, fmt.Errorf("append: wait for the writer: %w", context.Cause(ctx))
		}
		return result{}, fmt.Errorf("append: %w: %w", ErrUnknown, context.Cause(ctx))
	}
}

// endError is why the writer does not run anymore.
func (l *Log) endError() error {
	if err := l.Err(); err != nil {
		return err
	}
	return ErrClosed
}

// receipt tells a caller what became of its request, which had the idempotency key.
func (l *Log) receipt(ctx context.Context, res result, key string) (Receipt, error) {
	rec := Receipt{First: res.span.first, Last: res.span.last, Hash: res.hash, Repeated: res.repeated}
	if !res.repeated {
		return rec, nil
	}
	e, err := l.event(ctx, rec.Last)
	if err != nil {
		return Receipt{}, fmt.Errorf("append: read the event of the repeated request: %w", err)
	}
	if e.IdempotencyKey != key {
		return Receipt{}, fmt.Errorf("append: idempotency keys %q and %q can't be told apart: choose another", key, e.IdempotencyKey)
	}
	rec.Hash = e.Hash
	return rec, nil
}

// Find returns the first event of the request that was appended with the idempotency key, if there was one. Requests
// that were handed to Append before have been answered when it returns. Its errors are those of Append.
func (l *Log) Find(ctx context.Context, key string) (e Event, found bool, err error) {
	res, err := l.ask(ctx, &request{find: key, done: make(chan result, 1)})
	if err != nil || !res.repeated {
		return Event{}, false, err
	}
	if e, err = l.event(ctx, res.span.first); err != nil {
		return Event{}, false, fmt.Errorf("find the request with the idempotency key %q: %w", key, err)
	}
	return e, e.IdempotencyKey == key, nil
}
