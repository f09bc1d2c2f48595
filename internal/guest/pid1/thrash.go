//go:build linux

package pid1

import (
	"errors"
	"os"
	"strconv"
	"time"
)

// A workload whose own memory grows to its limit leaves no room for its programs, which are read from the disk page by
// page and dropped again. As long as there is a page to drop, the kernel takes that for progress, and calls no OOM
// killer: measured on Linux 6.12, between 2 s and more than a minute of standing still, with no bound.
const (
	// thrashInterval is the time from one look at the counters to the next.
	thrashInterval = time.Second
	// thrashLooks is how many looks have to find thrashing: a burst at the limit can pass. One that doesn't halves
	// the count, since a busy host may have given the guest little of that second.
	thrashLooks = 10
	// A workload is near its limit when it lacks less than 1/nearLimit of it.
	nearLimit = 16
	// Its page cache is tiny when it is less than 1/tinyCache of the limit.
	tinyCache = 32
	// thrashTurns is how many times the page cache has to be read anew from one look to the next. Measured were 60 to 400
	// times a second, on an emulated processor.
	thrashTurns = 8
)

// memoryUse is what a look at the workload's cgroup finds, in bytes but for the last.
type memoryUse struct {
	current, limit int64
	cache          int64 // pages of files that a disk has too
	refaults       int64 // pages that were read again soon after they had been dropped; a counter
}

// thrashWatch decides from looks at the memory, one after the other, whether a workload thrashes.
type thrashWatch struct {
	last     memoryUse
	looked   bool // last is one
	thrashed int  // looks that found it, less for those that did not
}

// look takes what was found and tells whether the workload has thrashed for long.
func (w *thrashWatch) look(now memoryUse, pageSize int64) bool {
	reread := (now.refaults - w.last.refaults) * pageSize
	thrashes := w.looked && now.limit > 0 &&
		now.limit-now.current < now.limit/nearLimit &&
		now.cache < now.limit/tinyCache &&
		// A cache of which nothing is left counts as one page.
		reread >= thrashTurns*max(now.cache, pageSize)
	w.last, w.looked = now, true
	if !thrashes {
		w.thrashed /= 2
		return false
	}
	w.thrashed++
	return w.thrashed >= thrashLooks
}

// endThrashing has the kernel's OOM killer end a workload that stands still for lack of memory.
func (b *Boot) endThrashing() {
	var watch thrashWatch
	for range time.Tick(thrashInterval) {
		use, ok := b.workload.memoryUse()
		if !ok {
			continue
		}
		if watch.look(use, int64(os.Getpagesize())) {
			logf(logError, "for %d s and more the workload has done little but read its programs again, with %d KiB of %d left for them: asking for the OOM killer",
				thrashLooks*int(thrashInterval/time.Second), use.cache>>10, use.limit>>10)
			b.workload.callOOMKiller(use)
			watch = thrashWatch{}
		}
	}
}

// memoryUse looks at the memory; not ok where the kernel doesn't count it, or there is no limit.
func (c *cgroup) memoryUse() (memoryUse, bool) {
	use := memoryUse{current: c.amount("memory.current"), limit: c.amount("memory.max")}
	if use.current <= 0 || use.limit <= 0 {
		return use, false
	}
	text, err := c.read("memory.stat")
	if err != nil {
		return use, false
	}
	file, fileErr := counterIn(text, "file")
	shmem, shmemErr := counterIn(text, "shmem") // counts as file too, and can't be dropped
	refaults, refaultErr := counterIn(text, "workingset_refault_file")
	use.cache, use.refaults = file-shmem, refaults
	return use, errors.Join(fileErr, shmemErr, refaultErr) == nil
}

// callOOMKiller lowers the limit to half of what is in use. None of that can be dropped, so the kernel has no progress
// left to hope for and calls its OOM killer, which chooses, counts and tells of its victim as ever. Afterwards the
// limit is what it was, for a workload that is more than its memory.
func (c *cgroup) callOOMKiller(use memoryUse) {
	kills := c.oomKills()
	if err := c.set("memory.max", strconv.FormatInt(use.current/2, 10)); err != nil {
		logf(logError, "%v", err)
	}
	if err := waitFor(endTimeout, func() (bool, error) {
		return c.oomKills() > kills, errors.New("the OOM killer has ended nothing")
	}); err != nil {
		logf(logError, "%v", err)
	}
	if err := c.set("memory.max", strconv.FormatInt(use.limit, 10)); err != nil {
		logf(logError, "%v", err)
	}
}
