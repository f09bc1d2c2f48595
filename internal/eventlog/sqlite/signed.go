package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// checkpointTable is made at each opening, because the first logs had a table of another shape under that
// name, which nothing was ever written to.
const checkpointTable = `CREATE TABLE IF NOT EXISTS checkpoint (
  seq           INTEGER PRIMARY KEY,
  hash          BLOB    NOT NULL,
  at            INTEGER NOT NULL,
  state_version INTEGER NOT NULL,
  state         BLOB    NOT NULL,
  key           BLOB    NOT NULL,
  sig           BLOB    NOT NULL
) STRICT`

func prepareCheckpoints(ctx context.Context, c *sql.Conn) error {
	var columns int64
	err := c.QueryRowContext(ctx, `SELECT count(*) FROM pragma_table_info('checkpoint')`).Scan(&columns)
	if err == nil && columns == 3 {
		_, err = c.ExecContext(ctx, `DROP TABLE checkpoint`)
	}
	if err == nil {
		_, err = c.ExecContext(ctx, checkpointTable)
	}
	if err != nil {
		return fmt.Errorf("table of checkpoints: %w", err)
	}
	return nil
}

// SaveCheckpoint implements eventlog.Engine.
func (e *Engine) SaveCheckpoint(ctx context.Context, c eventlog.Checkpoint) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.broken.Load(); p != nil {
		return *p
	}
	signedBefore.Hit()
	res, err := e.writer.ExecContext(context.WithoutCancel(ctx), `INSERT OR REPLACE INTO checkpoint (seq, hash, at, state_version, state, key, sig)
		SELECT ?, ?, ?, ?, ?, ?, ? FROM lease WHERE epoch = ? AND EXISTS (SELECT 1 FROM event WHERE seq = ? AND hash = ?)`,
		int64(c.Seq), c.Hash[:], c.Time, int64(c.StateVersion), c.State[:], c.Key[:], c.Signature[:], e.epoch, int64(c.Seq), c.Hash[:])
	if err != nil {
		return e.classify(err)
	}
	signedAfter.Hit()
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("checkpoint of event %d: %w, or there is no such event", c.Seq, eventlog.ErrFenced), err)
	}
	return nil
}

// LastCheckpoint implements eventlog.Engine.
func (e *Engine) LastCheckpoint(ctx context.Context) (eventlog.Checkpoint, error) {
	return lastCheckpoint(ctx, e.readers)
}

func lastCheckpoint(ctx context.Context, c querier) (eventlog.Checkpoint, error) {
	var seq, at, version int64
	var hash, state, key, sig []byte
	err := c.QueryRowContext(ctx, `SELECT seq, hash, at, state_version, state, key, sig FROM checkpoint ORDER BY seq DESC LIMIT 1`).
		Scan(&seq, &hash, &at, &version, &state, &key, &sig)
	if errors.Is(err, sql.ErrNoRows) {
		return eventlog.Checkpoint{}, nil
	}
	if err != nil {
		return eventlog.Checkpoint{}, fmt.Errorf("read the last checkpoint: %w", err)
	}
	return eventlog.StoredCheckpoint(seq, at, version, hash, state, key, sig)
}
