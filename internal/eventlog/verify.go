package eventlog

import (
	"context"
	"fmt"
	"iter"
)

// A VerifyError names the first event that is not what the chain says.
type VerifyError struct {
	Seq    uint64 // where the event should have been, which is not always what it says of itself
	Reason string
}

func (e *VerifyError) Error() string {
	return fmt.Sprintf("event %d: %s", e.Seq, e.Reason)
}

// Verify reads events from the first on and checks that seqs have no gap, that every stream's versions
// have none, that times increase, and that every hash follows from the one before, beginning with genesis.
// It returns the head up to which all is well, and a *VerifyError for the first event that is not.
//
// A log that was cut at its end is well by itself: compare the head with one that was seen before.
func Verify(ctx context.Context, events iter.Seq2[Event, error], genesis Hash) (Head, error) {
	v := newVerifier(genesis)
	for e, err := range events {
		if err != nil {
			return v.head, fmt.Errorf("read after event %d: %w", v.head.Seq, err)
		}
		if err := ctx.Err(); err != nil {
			return v.head, err
		}
		if err := v.next(&e); err != nil {
			return v.head, err
		}
	}
	return v.head, nil
}

// A verifier checks events one by one. It is also how Open learns what the log holds.
type verifier struct {
	head     Head
	time     int64
	versions map[string]uint64
	noHashes bool // trust the stored hashes
	chain    chain
}

func newVerifier(genesis Hash) *verifier {
	return &verifier{head: Head{Hash: genesis}, versions: make(map[string]uint64)}
}

func (v *verifier) next(e *Event) error {
	want := v.head.Seq + 1
	bad := func(format string, args ...any) error {
		return &VerifyError{Seq: want, Reason: fmt.Sprintf(format, args...)}
	}
	if e.Seq != want {
		return bad("missing: the next stored event is %d", e.Seq)
	}
	if !v.noHashes {
		if h := v.chain.hash(v.head.Hash, e); h != e.Hash {
			return bad("hash is %s, but its content and the event before it give %s", e.Hash, h)
		}
	}
	// An intact chain can still hold what no writer of ours would have written.
	if have := v.versions[e.Stream]; e.Version != have+1 {
		return bad("version %d of stream %q follows version %d", e.Version, e.Stream, have)
	}
	if e.Time <= v.time {
		return bad("time %d is not after %d, the time of the event before it", e.Time, v.time)
	}
	if err := checkFields(e.Stream, e.Type, e.Actor, e.IdempotencyKey, e.Payload); err != nil {
		return bad("%v", err)
	}
	v.head = Head{Seq: e.Seq, Hash: e.Hash}
	v.time = e.Time
	v.versions[e.Stream] = e.Version
	return nil
}
