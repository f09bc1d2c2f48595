package agent

import (
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
)

// TestGuestIsAttended checks that a guest is told the time and asked how it fares, again and again and by the next
// agent as well, and that the last answer is at hand.
func TestGuestIsAttended(t *testing.T) {
	var mu sync.Mutex
	times, questions := 0, 0
	l := newLab(t)
	l.runs("api", playing(guesttest.Workload{Heard: func(m guest.Message) {
		mu.Lock()
		defer mu.Unlock()
		switch m := m.(type) {
		case guest.Time:
			if off := time.Since(time.Unix(0, m.Now)); off.Abs() > time.Minute {
				t.Errorf("the guest was told a time that is off by %v", off)
			}
			times++
		case guest.AskStats:
			questions++
		}
	}}))
	l.start()
	l.deploy("api-1", l.app("api"))
	for round := range 2 {
		if round > 0 {
			l.next()
			l.awaitState("api-1", stateReady)
		}
		mu.Lock()
		times, questions = 0, 0
		mu.Unlock()
		var last latestStats
		attended := func() bool {
			l.agent.mu.Lock()
			inst := l.agent.instances["api-1"]
			l.agent.mu.Unlock()
			inst.mu.Lock()
			last = inst.stats
			inst.mu.Unlock()
			mu.Lock()
			defer mu.Unlock()
			return times > 1 && questions > 1 && !last.at.IsZero()
		}
		for deadline := time.Now().Add(30 * time.Second); !attended(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: the guest heard %d times and %d questions; last answer %+v", round, times, questions, last)
			}
		}
		if s := last.stats; s.PIDs != 1 || s.MemoryMaxBytes == 0 || s.MemoryBytes > s.MemoryMaxBytes {
			t.Errorf("round %d: statistics %+v", round, s)
		}
	}
	l.stop("api-1")
	l.awaitEnd("api-1")
}
