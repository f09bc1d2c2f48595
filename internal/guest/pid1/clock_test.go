//go:build linux

package pid1

import (
	"math"
	"testing"
)

// TestFollowClock tries only what is refused: the clock is this machine's. TestGuest sets that of a VM.
func TestFollowClock(t *testing.T) {
	for _, now := range []int64{math.MinInt64, -1, 0, 1, earliestTime - 1, latestTime + 1, math.MaxInt64} {
		if _, err := followClock(now, sinceBoot()); err == nil {
			t.Errorf("%d was taken for the time", now)
		}
	}
}

func TestLoadMilli(t *testing.T) {
	for load, want := range map[uint64]int64{0: 0, 1 << 16: 1000, 3 << 15: 1500, 655: 9} {
		if got := loadMilli(load); got != want {
			t.Errorf("load %d: got %d, want %d", load, got, want)
		}
	}
}
