package eventlog

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

const (
	// derivedEvents and derivedPart are how much may come after the derived copy before it is written again:
	// a start then reads at most a tenth of the log.
	derivedEvents = 8192
	derivedPart   = 10
	// checkpointAge is how long an event waits for a checkpoint when few come.
	checkpointAge = time.Minute
)

// A keeper writes behind what the commits do not wait for: checkpoints and the derived copy.
type keeper struct {
	cancel context.CancelFunc // nil when there is nothing to keep
	done   sync.WaitGroup

	// Owned by the keeper's goroutine.
	signed   uint64 // the seq of the last checkpoint
	signedAt time.Time
	saved    uint64 // the seq of the derived copy
}

// keep starts the keeper.
func (l *Log) keep(ctx context.Context) {
	if l.opts.Key == nil && l.opts.Dir == "" {
		return
	}
	k := &l.keeping
	ctx, k.cancel = context.WithCancel(ctx)
	k.signedAt = time.Now()
	if last, err := l.engine.LastCheckpoint(ctx); err == nil {
		k.signed = last.Seq
	}
	k.saved = l.derivedAt
	k.done.Go(func() {
		tick := time.NewTicker(10 * l.opts.Poll)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.keepUp(ctx, false)
			case <-ctx.Done():
				// What ends the keeper is that the log is closed in order.
				if l.Err() == nil {
					l.keepUp(context.WithoutCancel(ctx), true)
				}
				return
			}
		}
	})
}

func (k *keeper) stop() {
	if k.cancel != nil {
		k.cancel()
		k.done.Wait()
	}
}

// keepUp writes what has become due. Errors cost a fast start or a signature and nothing else, so they are
// told and tried again.
func (l *Log) keepUp(ctx context.Context, last bool) {
	k := &l.keeping
	head := l.Head().Seq
	if l.opts.Key != nil && head > k.signed && (last || head-k.signed >= uint64(l.opts.CheckpointEvery) || time.Since(k.signedAt) >= checkpointAge) {
		switch c, err := l.Checkpoint(ctx); {
		case err == nil:
			k.signed, k.signedAt = c.Seq, time.Now()
		case !errors.Is(err, ErrFollowing) && ctx.Err() == nil:
			l.warn(err)
		}
	}
	due := max(derivedEvents, k.saved/derivedPart)
	if last {
		due = derivedEvents / 8
	}
	if l.opts.Dir == "" || head < k.saved+due {
		return
	}
	derivedBefore.Hit()
	seq, err := l.saveDerived(ctx)
	if err != nil {
		if ctx.Err() == nil {
			l.warn(err)
		}
		return
	}
	derivedAfter.Hit()
	k.saved = seq
}

// saveDerived brings the derived copy up to the state of now, by what came since the copy that is there.
func (l *Log) saveDerived(ctx context.Context) (uint64, error) {
	seq := l.Head().Seq
	var state []byte
	if l.opts.Fold != nil {
		at, frozen := l.opts.Fold.Freeze()
		b, err := frozen.Encode()
		if err != nil {
			return 0, err
		}
		seq, state = at, b
	}
	d, err := l.readDerived()
	if err != nil || d.head.Seq > seq {
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			l.warn(err)
		}
		d = &derived{head: Head{Hash: l.Genesis()}, versions: make(map[string]uint64)}
	}
	newer := writer{keys: make(map[keyID]span), older: d.keys}
	for events, err := range l.chunks(ctx, d.head.Seq, seq) {
		if err != nil {
			return 0, err
		}
		for i := range events {
			e := &events[i]
			d.head, d.time = Head{Seq: e.Seq, Hash: e.Hash}, e.Time
			d.versions[e.Stream] = e.Version
			newer.remember(e)
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	d.keys, d.state = d.keys.with(newer.keys), state
	return seq, l.writeDerived(d)
}
