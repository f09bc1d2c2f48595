package eventlog

import "context"

// An Engine stores events. It decides nothing: the Log gives it complete events in order.
//
// One goroutine calls Open, Lead, Commit and Close, never at the same time; the other methods may be called by
// many at once, also while Commit runs.
type Engine interface {
	// Open connects to the store, creating it when it is not there, and says what is in it. It may read from
	// then on, and not write.
	Open(ctx context.Context) (Info, error)

	// Lead makes this engine the only one that may write: after it has returned, no earlier owner can commit
	// anymore, its Commit fails with ErrFenced. The error wraps ErrHeld when somebody else has the store
	// and may be alive; nothing has changed then, and it may be tried again. lost is closed when the engine
	// learns that it was replaced; it is nil in engines that learn so from Commit alone.
	Lead(ctx context.Context) (lost <-chan struct{}, err error)

	// Commit stores events in one transaction, all or none, and returns nil only when they are durable.
	// Their seqs follow the stored head without a gap.
	//
	// An error that wraps ErrFenced means that nothing was stored and this owner will never store again.
	// One that wraps ErrBroken means that the storage can't be trusted until the process has started anew.
	// After any other error the outcome is what Head then says.
	Commit(ctx context.Context, events []Event) error

	// Head is the last stored event. Once it has returned, a Commit that failed before can't take effect
	// anymore: an engine that talks to a server must make sure of that first.
	Head(ctx context.Context) (Head, error)

	// Scan calls fn with each stored event whose seq is greater than after, in order, until fn returns
	// false. The event is fn's to keep. Callers stop after a bounded amount: a scan may hold resources
	// of the store.
	Scan(ctx context.Context, after uint64, fn func(Event) bool) error

	// SaveCheckpoint stores a checkpoint of a stored event, in place of one that the event has. Only the
	// owner may.
	SaveCheckpoint(ctx context.Context, c Checkpoint) error

	// LastCheckpoint is the one with the greatest seq, or the zero Checkpoint when there is none.
	LastCheckpoint(ctx context.Context) (Checkpoint, error)

	// Close gives the store up. Scans in progress are ended or waited for.
	Close() error
}

// A Waker is an engine that hints that somebody else has committed: followers look at once, and would have
// looked a little later without it.
type Waker interface{ Wake() <-chan struct{} }

// Info is what an Engine knows of its store when it is opened.
type Info struct {
	ID   LogID
	Head Head // the genesis hash of ID with seq 0 when the log is empty
}
