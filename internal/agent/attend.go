package agent

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// clockOff is how far a guest's clock may have been off without a word in the log.
const clockOff = time.Second

// latestStats is what a guest has said last of what its workload uses.
type latestStats struct {
	at    time.Time // zero while it has said nothing in this attempt
	stats guest.Stats
	// cpuMilli is how much of a processor it used between the last two times; -1 before the second.
	cpuMilli int64
}

// next is what is known once a guest has said something more.
func (l latestStats) next(now time.Time, s guest.Stats) latestStats {
	n := latestStats{at: now, stats: s, cpuMilli: -1}
	if passed := now.Sub(l.at); !l.at.IsZero() && passed > 0 && s.CPUMicros >= l.stats.CPUMicros {
		n.cpuMilli = int64(float64(s.CPUMicros-l.stats.CPUMicros) / float64(passed.Microseconds()+1) * 1000)
	}
	return n
}

// usage is what reports say of it; nil while there is nothing to say.
func (l latestStats) usage() *pinnacev1.Usage {
	if l.at.IsZero() {
		return nil
	}
	s := l.stats
	return &pinnacev1.Usage{
		At: timestamppb.New(l.at), MemoryBytes: s.MemoryBytes, MemoryPeakBytes: s.MemoryPeakBytes, MemoryMaxBytes: s.MemoryMaxBytes,
		CpuMicros: s.CPUMicros, Pids: s.PIDs, PidsMax: s.PIDsMax, DiskBytes: s.DiskBytes, DiskUsedBytes: s.DiskUsedBytes,
		Load1Milli: s.Load1Milli, OomKills: s.OOMKills, CpuMilli: l.cpuMilli,
	}
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
	t.stats = t.stats.next(time.Now(), stats)
}
