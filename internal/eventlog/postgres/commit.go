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
// inserts, which is one round trip.
const commitSQL = `WITH held AS (
	UPDATE pinnace_lease SET until = clock_timestamp() + $2 WHERE one = 1 AND epoch = $1 RETURNING 1
) INSERT INTO pinnace_event (seq, stream, ver, type, tv, at, actor, idem, data, hash)
SELECT e.* FROM held, unnest($3::bigint[], $4::text[], $5::bigint[], $6::text[], $7::integer[], $8::bigint[], $9::text[], $10::text[], $11::bytea[], $12::bytea[]) AS e`

// columns are the events of a commit, turned by a right angle.
type columns struct {
	seq, ver, at       []int64
	tv                 []int32
	stream, typ, actor []string
	idem               []*string
	data, hash         [][]byte
}

func (c *columns) fill(events []eventlog.Event) {
	*c = columns{
		c.seq[:0], c.ver[:0], c.at[:0], c.tv[:0], c.stream[:0], c.typ[:0], c.actor[:0], c.idem[:0], c.data[:0], c.hash[:0],
	}
	for i := range events {
		e := &events[i]
		c.seq, c.ver, c.at = append(c.seq, int64(e.Seq)), append(c.ver, int64(e.Version)), append(c.at, e.Time)
		c.tv, c.stream, c.typ = append(c.tv, int32(e.TypeVersion)), append(c.stream, e.Stream), append(c.typ, e.Type)
		var idem *string
		if e.IdempotencyKey != "" {
			idem = &e.IdempotencyKey
		}
		data := e.Payload
		if data == nil {
			data = []byte{} // nil would be NULL
		}
		c.actor, c.idem, c.data, c.hash = append(c.actor, e.Actor), append(c.idem, idem), append(c.data, data), append(c.hash, e.Hash[:])
	}
}

// Commit implements eventlog.Engine.
func (e *Engine) Commit(ctx context.Context, events []eventlog.Event) error {
	// A cancelled commit would be one more way not to know what became of it.
	ctx = context.WithoutCancel(ctx)
	e.mu.Lock()
	epoch, unknown := e.epoch, e.unknown
	e.mu.Unlock()
	if epoch == 0 || unknown {
		return errors.New("PostgreSQL: this engine does not lead")
	}
	if err := e.connectWriter(ctx); err != nil {
		// Nothing was sent, but the one before may have been; and a database that is away is waited for, as after any
		// other failure.
		e.failed()
		return fmt.Errorf("PostgreSQL: connect: %w", err)
	}
	c := &e.batch
	c.fill(events)
	defer func() { clear(c.data); clear(c.idem); clear(c.hash) }() // the payloads are not ours to keep
	commitBefore.Hit()
	tag, err := e.writer.Exec(ctx, commitSQL, epoch, e.opts.TTL, c.seq, c.stream, c.ver, c.typ, c.tv, c.at, c.actor, c.idem, c.data, c.hash)
	commitAfter.Hit()
	switch {
	case err == nil && tag.RowsAffected() == int64(len(events)):
		poke(e.notify)
		return nil
	case err == nil && tag.RowsAffected() == 0:
		e.lose()
		return fmt.Errorf("PostgreSQL: %w: the lease has another epoch than %d", eventlog.ErrFenced, epoch)
	case err == nil:
		return fmt.Errorf("PostgreSQL: %w: %d of %d events were stored", eventlog.ErrBroken, tag.RowsAffected(), len(events))
	case fenced(err):
		e.lose()
		return fmt.Errorf("PostgreSQL: %w: %w", eventlog.ErrFenced, err)
	}
	e.failed()
	if e.writer.IsClosed() {
		e.writer = nil
	}
	return fmt.Errorf("PostgreSQL: commit: %w", err)
}

// failed makes Head look up what became of the last commit.
func (e *Engine) failed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unknown = true
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
	e.mu.Lock()
	epoch, unknown := e.epoch, e.unknown
	e.mu.Unlock()
	if !unknown {
		return e.readHead(ctx, e.pool)
	}
	ctx, cancel := context.WithTimeout(ctx, e.opts.LookUp)
	defer cancel()
	for {
		err := e.settle(ctx, epoch)
		if err == nil {
			return e.readHead(ctx, e.pool)
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
	e.mu.Lock()
	epoch := e.epoch
	e.mu.Unlock()
	signedBefore.Hit()
	tag, err := e.pool.Exec(ctx, `INSERT INTO pinnace_checkpoint (seq, hash, at, state_version, state, key, sig)
		SELECT $1, $2, $3, $4, $5, $6, $7 FROM pinnace_lease WHERE epoch = $8 AND EXISTS (SELECT 1 FROM pinnace_event WHERE seq = $1 AND hash = $2)
		ON CONFLICT (seq) DO UPDATE SET hash = excluded.hash, at = excluded.at, state_version = excluded.state_version, state = excluded.state, key = excluded.key, sig = excluded.sig`,
		int64(c.Seq), c.Hash[:], c.Time, int64(c.StateVersion), c.State[:], c.Key[:], c.Signature[:], epoch)
	if err != nil {
		return fmt.Errorf("PostgreSQL: %w", err)
	}
	signedAfter.Hit()
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("PostgreSQL: checkpoint of event %d: %w, or there is no such event", c.Seq, eventlog.ErrFenced)
	}
	return nil
}
