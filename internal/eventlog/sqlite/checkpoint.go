package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// checkpointBytes is after how much was committed the write-ahead log is copied back.
	checkpointBytes = 4 << 20
	// walPages is the length of the write-ahead log from which on commits are held up for one checkpoint.
	// SQLite begins the file anew only when a commit finds all of it copied, and under a steady load a
	// checkpoint beside the commits never gets that far.
	walPages = 32 << 20 / pageSize
)

// A checkpointer copies the write-ahead log back into the file, beside the commits.
type checkpointer struct {
	pending atomic.Int64 // bytes committed since the last checkpoint began
	wake    chan struct{}
	short   atomic.Bool // the write-ahead log is to be extended
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

func (c *checkpointer) start(e *Engine) {
	ctx, cancel := context.WithCancel(context.Background())
	c.wake = make(chan struct{}, 1)
	c.cancel = cancel
	c.done.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.wake:
			}
			if c.short.Swap(false) {
				if err := e.extend(); err != nil {
					return
				}
			}
			if c.pending.Load() < checkpointBytes {
				continue
			}
			c.pending.Store(0)
			if err := e.checkpoint(ctx); err != nil {
				return
			}
		}
	})
}

// committed counts what was committed, and wakes the checkpointer when it is enough, or when the write-ahead log is
// short.
func (c *checkpointer) committed(bytes int, short bool) {
	if short {
		c.short.Store(true)
	}
	if c.pending.Add(int64(bytes)) >= checkpointBytes || short {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// stop ends the checkpointer and waits for it.
func (c *checkpointer) stop() {
	if c.cancel != nil {
		c.cancel()
		c.done.Wait()
	}
}

// checkpoint copies back what it can without waiting for anybody, and everything when the write-ahead log
// has become long. It returns an error when there must be no other one.
func (e *Engine) checkpoint(ctx context.Context) error {
	pages, err := e.copyBack(ctx)
	if err != nil || pages < walPages {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	_, err = e.copyBack(ctx)
	return err
}

// copyBack runs one checkpoint and says how many pages the write-ahead log has.
func (e *Engine) copyBack(ctx context.Context) (pages int64, err error) {
	if p := e.broken.Load(); p != nil {
		return 0, *p
	}
	copyBackBefore.Hit()
	var busy, length, copied sql.NullInt64
	err = e.copier.QueryRowContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &length, &copied)
	if err == nil {
		copyBackAfter.Hit()
		return length.Int64, nil
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if se, ok := errors.AsType[*sqlite.Error](err); ok {
		switch se.Code() & 0xff {
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL:
			// Nothing was lost: what was not copied is still in the write-ahead log.
			return 0, nil
		}
	}
	// Trying again could find that a sync succeeds whose pages the kernel has already dropped, and the
	// write-ahead log, the only good copy, would be overwritten.
	return 0, e.breakDown(fmt.Errorf("checkpoint: %w", err))
}
