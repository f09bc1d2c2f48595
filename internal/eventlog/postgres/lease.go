package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// A lease is what an engine knows of its own.
type lease struct {
	epoch   int64 // 0 while it does not lead
	unknown bool  // a commit failed, and may still take effect
}

func (e *Engine) held() lease {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.lease
}

// hold replaces what is known, and gives what was.
func (e *Engine) hold(l lease) (was lease) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was, e.lease = e.lease, l
	return was
}

// Lead implements eventlog.Engine. The update waits for a commit of the holder before that is in progress; one
// that comes later finds another epoch.
func (e *Engine) Lead(ctx context.Context) (<-chan struct{}, error) {
	var epoch int64
	err := e.pool.QueryRow(ctx, `UPDATE pinnace_lease SET epoch = epoch + 1, holder = $1, until = clock_timestamp() + $2
		WHERE one = 1 AND until < clock_timestamp() RETURNING epoch`, e.opts.Holder, e.opts.TTL).Scan(&epoch)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, e.heldBy(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: claim the lease: %w", err)
	}
	leaseClaimed.Hit()
	e.hold(lease{epoch: epoch})
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := e.cancel
	e.cancel = func() { cancel(); stop() }
	e.done.Go(func() { e.renew(background) })
	e.done.Go(func() { e.hint(background) })
	return e.lost, nil
}

func (e *Engine) heldBy(ctx context.Context) error {
	var holder string
	var left time.Duration
	err := e.pool.QueryRow(ctx, `SELECT holder, greatest(until - clock_timestamp(), '0') FROM pinnace_lease`).Scan(&holder, &left)
	if err != nil {
		return fmt.Errorf("PostgreSQL: read the lease: %w", err)
	}
	return fmt.Errorf("PostgreSQL: %w: %s leads, for %s more unless it renews that", eventlog.ErrHeld, holder, left.Round(time.Millisecond))
}

// renew keeps the lease of a leader that has nothing to commit.
func (e *Engine) renew(ctx context.Context) {
	tick := time.NewTicker(e.opts.TTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		epoch := e.held().epoch
		limited, cancel := context.WithTimeout(ctx, e.opts.TTL/3)
		tag, err := e.pool.Exec(limited, `UPDATE pinnace_lease SET until = clock_timestamp() + $2 WHERE epoch = $1`, epoch, e.opts.TTL)
		cancel()
		// A lease that could not be renewed may still be ours: the next commit will tell.
		if err == nil && e.held().epoch == epoch && tag.RowsAffected() == 0 {
			e.lose()
			return
		}
	}
}

func (e *Engine) lose() { e.loseOnce.Do(func() { close(e.lost) }) }

// settle makes sure that a commit whose outcome is unknown is over: under a new epoch, which waits for its
// transaction when it runs, and stores nothing of it when it has yet to.
func (e *Engine) settle(ctx context.Context, epoch int64) error {
	var next int64
	err := e.pool.QueryRow(ctx, `UPDATE pinnace_lease SET epoch = epoch + 1, until = clock_timestamp() + $2 WHERE epoch = $1 RETURNING epoch`, epoch, e.opts.TTL).Scan(&next)
	if errors.Is(err, pgx.ErrNoRows) {
		// Either somebody else leads, or the answer to an earlier try was lost. Both are found out by who holds.
		err = e.pool.QueryRow(ctx, `SELECT epoch FROM pinnace_lease WHERE holder = $1 AND epoch = $2`, e.opts.Holder, epoch+1).Scan(&next)
		if errors.Is(err, pgx.ErrNoRows) {
			e.lose()
			return eventlog.ErrFenced
		}
	}
	if err != nil {
		return err
	}
	leaseSettled.Hit()
	e.hold(lease{epoch: next})
	return nil
}

// Wake implements eventlog.Waker.
func (e *Engine) Wake() <-chan struct{} { return e.wake }

// listen passes on hints that somebody else has committed. Without it followers are a little later.
func (e *Engine) listen(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := e.pool.Acquire(ctx)
		if err == nil {
			// The connection is not for others anymore.
			c := conn.Hijack()
			if _, err = c.Exec(ctx, "LISTEN "+channel); err == nil {
				for err == nil {
					if _, err = c.WaitForNotification(ctx); err == nil {
						poke(e.wake)
					}
				}
			}
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			_ = c.Close(closing)
			cancel()
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// hint tells followers of commits, beside them: a transaction that notifies takes a lock of the whole server.
func (e *Engine) hint(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.notify:
			_, _ = e.pool.Exec(ctx, "NOTIFY "+channel)
		}
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
