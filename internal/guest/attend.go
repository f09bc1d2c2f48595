package guest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// CanAttend in Hello.Can says that the guest answers Time and AskStats.
const CanAttend = "attend"

// ErrNotAttended means that the guest's init is too old to be told the time, or asked for statistics.
var ErrNotAttended = errors.New("the guest's init is of a version that answers no such question")

// Time tells the guest what the time is.
type Time struct {
	ID  uint64 `json:"id"`
	Now int64  `json:"now_unix_ns"` // the host's clock
}

// Clock answers a Time, when the guest's clock is right.
type Clock struct {
	ID  uint64 `json:"id"`
	Off int64  `json:"off_ns"` // how far the guest's clock was ahead of the host's; negative when it was behind
}

// AskStats asks for Stats.
type AskStats struct {
	ID uint64 `json:"id"`
}

// Stats is what the workload uses and may use, its commands included. Amounts are of the workload's cgroup, those of the
// disk of its root file system.
type Stats struct {
	ID              uint64 `json:"id"`
	MemoryBytes     int64  `json:"memory_bytes"`      // with the page cache that is charged to it
	MemoryPeakBytes int64  `json:"memory_peak_bytes"` // the most since its start
	MemoryMaxBytes  int64  `json:"memory_max_bytes"`  // where the OOM killer comes in
	CPUMicros       int64  `json:"cpu_us"`            // processor time since its start
	PIDs            int64  `json:"pids"`              // processes and threads
	PIDsMax         int64  `json:"pids_max"`
	DiskBytes       int64  `json:"disk_bytes"`
	DiskUsedBytes   int64  `json:"disk_used_bytes"`
	Load1Milli      int64  `json:"load1_milli"` // load averages of the VM, in thousandths
	Load5Milli      int64  `json:"load5_milli"`
	Load15Milli     int64  `json:"load15_milli"`
	OOMKills        int64  `json:"oom_kills"` // processes that the OOM killer has ended
}

// maxAmount is more than any machine has of anything, and what every reader of JSON can count to.
const maxAmount = 1 << 53

func (s *Stats) check() error {
	for _, n := range []int64{
		s.MemoryBytes, s.MemoryPeakBytes, s.MemoryMaxBytes, s.CPUMicros, s.PIDs, s.PIDsMax, s.DiskBytes, s.DiskUsedBytes,
		s.Load1Milli, s.Load5Milli, s.Load15Milli, s.OOMKills,
	} {
		if n < 0 || n > maxAmount {
			return fmt.Errorf("an amount of %d", n)
		}
	}
	if s.DiskUsedBytes > s.DiskBytes {
		return errors.New("more of the disk is used than there is")
	}
	return nil
}

const (
	maxAsked = 8 // questions that wait for an answer
	// A Time is taken for stale when its answer takes so long: the guest may have been paused before it read it.
	staleTime = time.Second
	timeTries = 3
)

// SetClock makes the guest's clock follow the host's, and returns how far it was off: ahead when positive. A guest that
// was paused reads a Time that is old; the answer to that is late, and the time is sent again.
func (h *Host) SetClock(ctx context.Context) (time.Duration, error) {
	var off time.Duration
	for try := range timeTries {
		sent := time.Now()
		answer, err := ask(ctx, h, func(id uint64) Message { return Time{ID: id, Now: time.Now().UnixNano()} })
		if err != nil {
			return 0, fmt.Errorf("set the guest's clock: %w", err)
		}
		clock, ok := answer.(Clock)
		if !ok {
			return 0, fmt.Errorf("set the guest's clock: %w: the answer is %T", ErrProtocol, answer)
		}
		if try == 0 {
			off = time.Duration(clock.Off)
		}
		if time.Since(sent) < staleTime {
			return off, nil
		}
	}
	return off, fmt.Errorf("set the guest's clock: no answer within %v in %d tries, so it may be off by as much", staleTime, timeTries)
}

// Stats asks the guest what its workload uses. Guests answer while the workload runs: bound it with ctx. What a guest
// says is its own word.
func (h *Host) Stats(ctx context.Context) (Stats, error) {
	answer, err := ask(ctx, h, func(id uint64) Message { return AskStats{ID: id} })
	if err != nil {
		return Stats{}, fmt.Errorf("ask the guest for statistics: %w", err)
	}
	stats, ok := answer.(Stats)
	if !ok {
		return Stats{}, fmt.Errorf("ask the guest for statistics: %w: the answer is %T", ErrProtocol, answer)
	}
	return stats, nil
}

// ask sends a question and waits for the answer with its number.
func ask(ctx context.Context, h *Host, question func(id uint64) Message) (Message, error) {
	if err := h.wait(ctx, h.helloc); err != nil {
		return nil, err
	}
	answer := make(chan Message, 1)
	h.mu.Lock()
	if !slices.Contains(h.hello.Can, CanAttend) {
		h.mu.Unlock()
		return nil, ErrNotAttended
	}
	if len(h.asked) >= maxAsked {
		h.mu.Unlock()
		return nil, fmt.Errorf("%d questions wait for an answer already", maxAsked)
	}
	h.nextExec++
	id := h.nextExec
	h.asked[id] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.asked, id)
		h.mu.Unlock()
	}()
	if err := h.send(question(id)); err != nil {
		return nil, err
	}
	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-h.done:
		return nil, h.closedErr()
	}
}

// answered is called with mu held. An answer to what nobody has asked, or has given up asking, is dropped.
func (h *Host) answered(id uint64, m Message) {
	if answer, ok := h.asked[id]; ok {
		delete(h.asked, id)
		answer <- m
	}
}
