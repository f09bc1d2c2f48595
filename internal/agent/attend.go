package agent

import (
	"context"
	"errors"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// clockOff is how far a guest's clock may have been off without a word in the log.
const clockOff = time.Second

// latestStats is what a guest has said last of what its workload uses.
type latestStats struct {
	at    time.Time // zero while it has said nothing in this attempt
	stats guest.Stats
}

// beginAttending attends to the guest in the background, until end is called, which returns when that has stopped.
func (t *attempt) beginAttending(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	t.mu.Lock()
	t.stats = latestStats{}
	t.mu.Unlock()
	go func() {
		defer close(done)
		t.attend(ctx)
	}()
	return func() {
		cancel()
		<-done
	}
}

// attend keeps the guest's clock right and asks it what its workload uses, until ctx is done or the conversation with
// the guest is over. That neither works says nothing of the workload: guests of older versions answer to nothing here.
func (t *attempt) attend(ctx context.Context) {
	clock := time.NewTimer(0)
	defer clock.Stop()
	stats := time.NewTimer(0)
	defer stats.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.guest.Done():
			return
		case <-clock.C:
			t.setClock(ctx)
			clock.Reset(t.agent.timing.clock)
		case <-stats.C:
			t.askStats(ctx)
			stats.Reset(t.agent.timing.stats)
		}
	}
}

func (t *attempt) setClock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, t.agent.timing.answer)
	defer cancel()
	off, err := t.guest.SetClock(ctx)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, guest.ErrClosed), errors.Is(err, guest.ErrNotAttended):
	case err != nil:
		t.log.Debug("set the guest's clock", "err", err)
	case off.Abs() > clockOff:
		t.log.Info("the guest's clock was wrong and is set", "ahead", off)
	}
}

func (t *attempt) askStats(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, t.agent.timing.answer)
	defer cancel()
	stats, err := t.guest.Stats(ctx)
	if err != nil {
		t.log.Debug("ask the guest for statistics", "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats = latestStats{time.Now(), stats}
}
