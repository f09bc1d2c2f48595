//go:build linux

package pid1

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// serveStats answers the host's questions while the workload runs.
func (b *Boot) serveStats() {
	for question := range b.control.stats {
		stats := b.stats()
		stats.ID = question.ID
		b.control.trySend(stats)
	}
}

// stats are what the workload uses. What a kernel doesn't count is 0.
func (b *Boot) stats() guest.Stats {
	s := guest.Stats{
		MemoryBytes: b.workload.amount("memory.current"), MemoryPeakBytes: b.workload.amount("memory.peak"),
		MemoryMaxBytes: b.workload.amount("memory.max"),
		PIDs:           b.workload.amount("pids.current"), PIDsMax: b.workload.amount("pids.max"),
		OOMKills: b.workload.oomKills(),
	}
	if n, err := b.workload.counter("cpu.stat", "usage_usec"); err == nil {
		s.CPUMicros = n
	}
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err == nil {
		s.DiskBytes = int64(fs.Blocks) * fs.Bsize
		s.DiskUsedBytes = s.DiskBytes - int64(fs.Bfree)*fs.Bsize
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		s.Load1Milli, s.Load5Milli, s.Load15Milli = loadMilli(info.Loads[0]), loadMilli(info.Loads[1]), loadMilli(info.Loads[2])
	}
	return s
}

// loadMilli turns a load average of sysinfo(2), a fixed-point number with 16 bits behind the point, into thousandths.
func loadMilli(load uint64) int64 { return int64(load * 1000 >> 16) }

// amount reads a file of the cgroup that holds one number. "max" is none, and 0.
func (c *cgroup) amount(file string) int64 {
	text, err := c.read(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
