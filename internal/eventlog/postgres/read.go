package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

func (e *Engine) readHead(ctx context.Context) (eventlog.Head, error) {
	var seq int64
	var hash []byte
	err := e.pool.QueryRow(ctx, `SELECT seq, hash FROM pinnace_event ORDER BY seq DESC LIMIT 1`).Scan(&seq, &hash)
	if errors.Is(err, pgx.ErrNoRows) {
		return eventlog.Head{Hash: eventlog.Genesis(e.id)}, nil
	}
	if err != nil {
		return eventlog.Head{}, fmt.Errorf("PostgreSQL: read the head: %w", err)
	}
	return eventlog.StoredHead(seq, hash)
}

// scanRows is how many events one query asks for. A query without a limit would have all of the log sent, even
// when fn stops after one.
const scanRows = 1024

// errEnough ends a scan that found what it was for.
var errEnough = errors.New("enough")

// Scan implements eventlog.Engine.
func (e *Engine) Scan(ctx context.Context, after uint64, fn func(eventlog.Event) bool) error {
	for n := scanRows; n == scanRows; {
		rows, _ := e.pool.Query(ctx, `SELECT seq, stream, ver, type, tv, at, actor, coalesce(idem, ''), data, hash FROM pinnace_event
			WHERE seq > $1 ORDER BY seq LIMIT $2`, int64(after), scanRows) // the error comes with the rows
		var row eventlog.Event
		var seq, version, typeVersion int64
		var hash []byte
		n = 0
		_, err := pgx.ForEachRow(rows, []any{&seq, &row.Stream, &version, &row.Type, &typeVersion, &row.Time, &row.Actor, &row.IdempotencyKey, &row.Payload, &hash}, func() error {
			ev, err := eventlog.StoredEvent(row, seq, version, typeVersion, hash)
			if err != nil {
				return err
			}
			if n, after = n+1, ev.Seq; !fn(ev) {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("PostgreSQL: read events after %d: %w", after, err)
		}
	}
	return nil
}

// LastCheckpoint implements eventlog.Engine.
func (e *Engine) LastCheckpoint(ctx context.Context) (eventlog.Checkpoint, error) {
	var seq, at, version int64
	var hash, state, key, sig []byte
	err := e.pool.QueryRow(ctx, `SELECT seq, hash, at, state_version, state, key, sig FROM pinnace_checkpoint ORDER BY seq DESC LIMIT 1`).
		Scan(&seq, &hash, &at, &version, &state, &key, &sig)
	if errors.Is(err, pgx.ErrNoRows) {
		return eventlog.Checkpoint{}, nil
	}
	if err != nil {
		return eventlog.Checkpoint{}, fmt.Errorf("PostgreSQL: read the last checkpoint: %w", err)
	}
	return eventlog.StoredCheckpoint(seq, at, version, hash, state, key, sig)
}
