//go:build linux

package pid1

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// toleratedOff is how far the clock may be off. An emulated timer wanders less in the minute from one Time to the next,
// and a jump does a workload more harm: it can see time go backward.
const toleratedOff = 50 * time.Millisecond

// What a clock can say. Anything else is a host's mistake, which must not make certificates and timers of the workload
// wrong by centuries.
var (
	earliestTime = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
	latestTime   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()
)

// followClock sets the clock to now, which was true at the moment heard since the boot, when it is off by more than is
// tolerated, and returns how far it was ahead.
func followClock(now int64, heard time.Duration) (time.Duration, error) {
	if now < earliestTime || now > latestTime {
		return 0, fmt.Errorf("set clock: %d ns since 1970 can't be the time", now)
	}
	now += int64(sinceBoot() - heard)
	var is unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &is); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	off := time.Duration(is.Nano() - now)
	if off.Abs() <= toleratedOff {
		return off, nil
	}
	ts := unix.NsecToTimespec(now)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return off, fmt.Errorf("set clock: %w", err)
	}
	return off, nil
}

// setTime answers a Time. What can't be the time gets no answer.
func (c *control) setTime(m guest.Time) {
	off, err := followClock(m.Now, sinceBoot())
	if err != nil {
		logf(logError, "%v", err)
		return
	}
	c.trySend(guest.Clock{ID: m.ID, Off: int64(off)})
}
