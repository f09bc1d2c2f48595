package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

const (
	columns = 10
	// insertRows is how many events one statement inserts; the cost of a statement is then spread well
	// enough, and few events are left for single ones.
	insertRows = 16
)

func insertSQL(rows int) string {
	row := "(?" + strings.Repeat(", ?", columns-1) + ")"
	return `INSERT INTO event (seq, stream, ver, type, tv, at, actor, idem, data, hash) VALUES ` +
		row + strings.Repeat(", "+row, rows-1)
}

// Commit implements eventlog.Engine.
func (e *Engine) Commit(ctx context.Context, events []eventlog.Event) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.broken.Load(); p != nil {
		return *p
	}
	// An interrupted COMMIT would be one more way not to know what became of it.
	ctx = context.WithoutCancel(ctx)
	if len(events) == 1 {
		return e.commitOne(ctx, &events[0])
	}
	if _, err := e.begin.ExecContext(ctx); err != nil {
		return e.classify(fmt.Errorf("begin: %w", err))
	}
	began.Hit()
	size, err := e.insert(ctx, events)
	if err == nil {
		insertedAll.Hit()
		_, err = e.commit.ExecContext(ctx)
		if err == nil {
			committed.Hit()
			e.copying.committed(size, e.wal.grow(size))
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	return e.classify(errors.Join(err, rollback(ctx, e.writer)))
}

// insertOneSQL is a transaction of its own: an event that comes alone waits for one statement, not for four.
const insertOneSQL = `INSERT INTO event (seq, stream, ver, type, tv, at, actor, idem, data, hash)
	SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM lease WHERE one = 1 AND epoch = ?`

// commitOne is Commit of one event.
func (e *Engine) commitOne(ctx context.Context, ev *eventlog.Event) error {
	began.Hit()
	e.args = append(appendArgs(e.args[:0], ev), e.epoch)
	defer func() { clear(e.args) }() // the payload is not ours to keep
	insertedAll.Hit()
	res, err := e.insertOne.ExecContext(ctx, e.args...)
	if err != nil {
		return e.classify(errors.Join(fmt.Errorf("insert event %d: %w", ev.Seq, err), rollback(ctx, e.writer)))
	}
	committed.Hit()
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("%w: the lease has another epoch than %d", eventlog.ErrFenced, e.epoch), err)
	}
	size := len(ev.Payload) + 256
	e.copying.committed(size, e.wal.grow(size))
	return nil
}

// appendArgs adds the columns of an event.
func appendArgs(args []any, ev *eventlog.Event) []any {
	idem := any(ev.IdempotencyKey)
	if ev.IdempotencyKey == "" {
		idem = nil
	}
	data := ev.Payload
	if data == nil {
		data = []byte{} // nil would be NULL
	}
	return append(args, int64(ev.Seq), ev.Stream, int64(ev.Version), ev.Type, int64(ev.TypeVersion),
		ev.Time, ev.Actor, idem, data, ev.Hash[:])
}

// insert adds events to the open transaction and says about how many bytes they are.
func (e *Engine) insert(ctx context.Context, events []eventlog.Event) (size int, err error) {
	var epoch int64
	if err := e.lease.QueryRowContext(ctx).Scan(&epoch); err != nil {
		return 0, fmt.Errorf("read the lease: %w", err)
	}
	if epoch != e.epoch {
		return 0, fmt.Errorf("%w: the lease has epoch %d, ours is %d", eventlog.ErrFenced, epoch, e.epoch)
	}
	checkedLease.Hit()
	defer func() { clear(e.args) }() // the payloads are not ours to keep
	for len(events) > 0 {
		stmt, n := e.insert1, 1
		if len(events) >= insertRows {
			stmt, n = e.insertN, insertRows
		}
		e.args = e.args[:0]
		for i := range n {
			ev := &events[i]
			size += len(ev.Payload) + 256
			e.args = appendArgs(e.args, ev)
		}
		if _, err := stmt.ExecContext(ctx, e.args...); err != nil {
			return 0, fmt.Errorf("insert events %d to %d: %w", events[0].Seq, events[n-1].Seq, err)
		}
		insertedSome.Hit()
		events = events[n:]
	}
	return size, nil
}

// rollback ends a transaction, if one is open: SQLite ends it by itself after some errors.
func rollback(ctx context.Context, c *sql.Conn) error {
	if _, err := c.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`); err != nil && !strings.Contains(err.Error(), "no transaction is active") {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// classify adds to err what the log has to do about it, and remembers when the file must not be written
// anymore.
func (e *Engine) classify(err error) error {
	se, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return err
	}
	switch se.Code() & 0xff {
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY:
		return e.breakDown(err)
	case sqlite3.SQLITE_CONSTRAINT:
		// The writer gives seqs without a gap, so the one that is taken was taken by somebody else.
		return fmt.Errorf("%w: %w", eventlog.ErrFenced, err)
	default:
		return err
	}
}

// breakDown makes every later commit fail.
func (e *Engine) breakDown(err error) error {
	err = fmt.Errorf("%w: %w", eventlog.ErrBroken, err)
	e.broken.CompareAndSwap(nil, &err)
	return err
}
