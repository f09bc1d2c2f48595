package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/failpoint"
)

var (
	leaseClaimed = failpoint.New("postgres.lead.claimed")
	leaseSettled = failpoint.New("postgres.head.settled")
	commitBefore = failpoint.New("postgres.commit.before")
	commitAfter  = failpoint.New("postgres.commit.after")
	signedBefore = failpoint.New("postgres.checkpoint.before")
	signedAfter  = failpoint.New("postgres.checkpoint.after")
)

// commitSQL is a transaction of its own: the lease is checked, renewed and locked in the statement that
// inserts, which is one round trip. That the stored log ends where the events go on is checked, too: behind a
// proxy this connection can outlive a failover to a replica which has the same lease and lacks events.
const commitSQL = `WITH held AS (
	UPDATE pinnace_lease SET until = clock_timestamp() + $2 WHERE one = 1 AND epoch = $1
	AND (SELECT coalesce(max(seq), 0) FROM pinnace_event) = ($3::bigint[])[1] - 1 RETURNING 1
) INSERT INTO pinnace_event (seq, stream, ver, type, tv, at, actor, idem, data, hash)
SELECT e.seq, e.stream, e.ver, e.type, e.tv, e.at, e.actor, nullif(e.idem, ''), e.data, e.hash FROM held, unnest($3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::integer[], $8::bigint[], $9::text[], $10::text[], $11::bytea[], $12::bytea[])
	AS e (seq, stream, ver, type, tv, at, actor, idem, data, hash)`

// column is one of the columns of the events of a commit.
func column[T any](events []eventlog.Event, of func(*eventlog.Event) T) []T {
	values := make([]T, len(events))
	for i := range events {
		values[i] = of(&events[i])
	}
	return values
}

// columns are the events of a commit, turned by a right angle, in the order of commitSQL.
func columns(events []eventlog.Event) []any {
	type event = eventlog.Event
	return []any{
		column(events, func(e *event) int64 { return int64(e.Seq) }),
		column(events, func(e *event) string { return e.Stream }),
		column(events, func(e *event) int64 { return int64(e.Version) }),
		column(events, func(e *event) string { return e.Type }),
		column(events, func(e *event) int32 { return int32(e.TypeVersion) }),
		column(events, func(e *event) int64 { return e.Time }),
		column(events, func(e *event) string { return e.Actor }),
		column(events, func(e *event) string { return e.IdempotencyKey }),
		column(events, func(e *event) []byte {
			if e.Payload == nil {
				return []byte{} // nil would be NULL
			}
			return e.Payload
		}),
		column(events, func(e *event) []byte { return e.Hash[:] }),
	}
}

// Commit implements eventlog.Engine.
func (e *Engine) Commit(ctx context.Context, events []eventlog.Event) error {
	// A cancelled commit would be one more way not to know what became of it.
	ctx = context.WithoutCancel(ctx)
	l := e.held()
	if l.epoch == 0 || l.unknown {
		return errors.New("PostgreSQL: this engine does not lead")
	}
	if err := e.connectWriter(ctx); err != nil {
		// Nothing was sent, but the one before may have been; and a database that is away is waited for, as after any
		// other failure.
		e.hold(lease{l.epoch, true})
		return fmt.Errorf("PostgreSQL: connect: %w", err)
	}
	commitBefore.Hit()
	tag, err := e.writer.Exec(ctx, commitSQL, append([]any{l.epoch, e.opts.TTL}, columns(events)...)...)
	commitAfter.Hit()
	switch {
	case err == nil && tag.RowsAffected() == int64(len(events)):
		poke(e.notify)
		return nil
	case err == nil && tag.RowsAffected() == 0:
		e.lose()
		return fmt.Errorf("PostgreSQL: %w: the lease has another epoch than %d, or the log does not end with event %d", eventlog.ErrFenced, l.epoch, events[0].Seq-1)
	case err == nil:
		return fmt.Errorf("PostgreSQL: %w: %d of %d events were stored", eventlog.ErrBroken, tag.RowsAffected(), len(events))
	case fenced(err):
		e.lose()
		return fmt.Errorf("PostgreSQL: %w: %w", eventlog.ErrFenced, err)
	}
	e.hold(lease{l.epoch, true})
	if e.writer.IsClosed() {
		e.writer = nil
	}
	return fmt.Errorf("PostgreSQL: commit: %w", err)
}

// connectWriter makes the connection for commits, on which a commit is durable when it returns.
func (e *Engine) connectWriter(ctx context.Context) error {
	if e.writer != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, e.pool.Config().ConnConfig)
	if err != nil {
		return err
	}
	// Stricter settings stay as they are. "local" would lose commits that the replica has yet to get.
	_, err = c.Exec(ctx, `SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local')`)
	if err != nil {
		return errors.Join(err, c.Close(ctx))
	}
	e.writer = c
	return nil
}

// Head implements eventlog.Engine. After a failed commit it waits for a database that is away, for a while: the
// outcome is looked up, not guessed.
func (e *Engine) Head(ctx context.Context) (eventlog.Head, error) {
	l := e.held()
	if !l.unknown {
		return e.readHead(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, e.opts.LookUp)
	defer cancel()
	for {
		err := e.settle(ctx, l.epoch)
		if err == nil {
			return e.readHead(ctx)
		}
		if errors.Is(err, eventlog.ErrFenced) {
			return eventlog.Head{}, fmt.Errorf("PostgreSQL: %w", err)
		}
		select {
		case <-ctx.Done():
			return eventlog.Head{}, fmt.Errorf("PostgreSQL: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// SaveCheckpoint implements eventlog.Engine.
func (e *Engine) SaveCheckpoint(ctx context.Context, c eventlog.Checkpoint) error {
	signedBefore.Hit()
	tag, err := e.pool.Exec(ctx, `INSERT INTO pinnace_checkpoint (seq, hash, at, state_version, state, key, sig)
		SELECT $1, $2, $3, $4, $5, $6, $7 FROM pinnace_lease WHERE epoch = $8 AND EXISTS (SELECT 1 FROM pinnace_event WHERE seq = $1 AND hash = $2)
		ON CONFLICT (seq) DO UPDATE SET hash = excluded.hash, at = excluded.at, state_version = excluded.state_version, state = excluded.state, key = excluded.key, sig = excluded.sig`,
		int64(c.Seq), c.Hash[:], c.Time, int64(c.StateVersion), c.State[:], c.Key[:], c.Signature[:], e.held().epoch)
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	signedAfter.Hit()
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("PostgreSQL: checkpoint of event %d: %w, or there is no such event", c.Seq, eventlog.ErrFenced)
	}
	return nil
}
