package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"os"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// readerChunk is how many events a Reader reads in one transaction, so that it never holds a writer's
// write-ahead log for long.
const readerChunk = 1000

// A Reader reads a log without owning it: a copy, or the file of a server that runs. It changes nothing,
// and says nothing of what is true: give Events to eventlog.Verify.
type Reader struct {
	db   *sql.DB
	path string
	id   eventlog.LogID
}

// OpenReader opens the log at path, the file itself.
func OpenReader(ctx context.Context, path string) (*Reader, error) {
	// SQLite says "unable to open database file" for everything.
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	db, err := openDB(path, true)
	if err != nil {
		return nil, fmt.Errorf("open event log %s: %w", path, err)
	}
	r := &Reader{db: db, path: path}
	err = checkFormat(ctx, db)
	if err == nil {
		r.id, err = readID(ctx, db)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open event log %s: %w", path, err), db.Close())
	}
	return r, nil
}

// ID is the log's.
func (r *Reader) ID() eventlog.LogID { return r.id }

// Events gives all events in order. An error is the last thing that it gives.
func (r *Reader) Events(ctx context.Context) iter.Seq2[eventlog.Event, error] {
	return func(yield func(eventlog.Event, error) bool) {
		var last uint64
		for {
			n, stopped := 0, false
			err := scan(ctx, r.db, last, func(e eventlog.Event) bool {
				n++
				last = e.Seq
				stopped = !yield(e, nil)
				return !stopped && n < readerChunk
			})
			if stopped {
				return
			}
			if err != nil {
				yield(eventlog.Event{}, fmt.Errorf("%s: %w", r.path, err))
				return
			}
			if n < readerChunk {
				return
			}
		}
	}
}

// LastCheckpoint is the one of the greatest seq, or the zero one when there is none.
func (r *Reader) LastCheckpoint(ctx context.Context) (eventlog.Checkpoint, error) {
	return lastCheckpoint(ctx, r.db)
}

// Close closes the file.
func (r *Reader) Close() error { return r.db.Close() }
