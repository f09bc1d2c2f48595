package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func (e *Engine) readHead(ctx context.Context, c querier) (eventlog.Head, error) {
	var seq int64
	var hash []byte
	err := c.QueryRow(ctx, `SELECT seq, hash FROM pinnace_event ORDER BY seq DESC LIMIT 1`).Scan(&seq, &hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return eventlog.Head{Hash: eventlog.Genesis(e.id)}, nil
	}
	if err != nil {
		return eventlog.Head{}, fmt.Errorf("PostgreSQL: read the head: %w", err)
	}
	if len(hash) != len(eventlog.Hash{}) {
		return eventlog.Head{}, fmt.Errorf("event %d: hash of %d bytes", seq, len(hash))
	}
	return eventlog.Head{Seq: uint64(seq), Hash: eventlog.Hash(hash)}, nil
}

// scanRows is how many events one query asks for. A query without a limit would have all of the log sent, even
// when fn stops after one.
const scanRows = 1024

// Scan implements eventlog.Engine.
func (e *Engine) Scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) error {
	for {
		n, last, err := e.scan(ctx, after, fn)
		if err != nil {
			return fmt.Errorf("PostgreSQL: read events after %d: %w", after, err)
		}
		if n < scanRows {
			return nil
		}
		after = last
	}
}

// scan reads one query's worth; n is less than scanRows when there is nothing more to do.
func (e *Engine) scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) (n int, last uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	rows, err := e.pool.Query(ctx, `SELECT seq, stream, ver, type, tv, at, actor, coalesce(idem, ''), data, hash FROM pinnace_event
		WHERE seq > $1 ORDER BY seq LIMIT $2`, int64(after), scanRows)
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var ev eventlog.Event
		var seq, version int64
		var typeVersion int32
		var hash []byte
		if err := rows.Scan(&seq, &ev.Stream, &version, &ev.Type, &typeVersion, &ev.Time, &ev.Actor, &ev.IdempotencyKey, &ev.Payload, &hash); err != nil {
			return 0, 0, err
		}
		if seq < 1 || version < 1 || typeVersion < 0 || typeVersion > 0xffff || len(hash) != len(ev.Hash) || len(ev.Payload) > eventlog.MaxPayload {
			return 0, 0, fmt.Errorf("event %d: ver, tv, hash or data is out of range", seq)
		}
		ev.Seq, ev.Version, ev.TypeVersion, ev.Hash = uint64(seq), uint64(version), uint16(typeVersion), eventlog.Hash(hash)
		n, last = n+1, ev.Seq
		if !fn(ev) {
			return 0, 0, nil
		}
	}
	return n, last, rows.Err()
}

// LastCheckpoint implements eventlog.Engine.
func (e *Engine) LastCheckpoint(ctx context.Context) (eventlog.Checkpoint, error) {
	var c eventlog.Checkpoint
	var seq, version int64
	var hash, state, key, sig []byte
	err := e.pool.QueryRow(ctx, `SELECT seq, hash, at, state_version, state, key, sig FROM pinnace_checkpoint ORDER BY seq DESC LIMIT 1`).
		Scan(&seq, &hash, &c.Time, &version, &state, &key, &sig)
	if errors.Is(err, pgx.ErrNoRows) {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("PostgreSQL: read the last checkpoint: %w", err)
	}
	if seq < 1 || version < 0 || version > 1<<32-1 || len(hash) != len(c.Hash) || len(state) != len(c.State) || len(key) != len(c.Key) || len(sig) != len(c.Signature) {
		return c, fmt.Errorf("PostgreSQL: the checkpoint of event %d is damaged", seq)
	}
	c.Seq, c.StateVersion = uint64(seq), uint32(version)
	c.Hash, c.State, c.Key, c.Signature = eventlog.Hash(hash), eventlog.Hash(state), [32]byte(key), [64]byte(sig)
	return c, nil
}
