//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"

	// defaultReserve stays out of the workload's reach, so that the kernel's OOM killer acts inside its cgroup while
	// PID 1 and the kernel still have room.
	defaultReserve = 16 << 20
	// minWorkloadMemory keeps a reserve larger than the VM from making a limit that nothing can run under.
	minWorkloadMemory = 16 << 20
)

// cgroup is the workload's cgroup.
type cgroup struct {
	dir string
	fd  int // for clone3
}

// SetUpCgroups puts PID 1 in a cgroup of its own and makes the workload's beside it, with its limits.
func (b *Boot) SetUpCgroups() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", flags, "nsdelegate,memory_recursiveprot"); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	for _, dir := range []string{"init", "workload"} {
		if err := makeDir(filepath.Join(cgroupRoot, dir)); err != nil {
			return err
		}
	}
	if err := writeControl(cgroupRoot, "init/cgroup.procs", "0"); err != nil {
		return err
	}
	available, err := os.ReadFile(cgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	for controller := range strings.FieldsSeq(string(available)) {
		if err := writeControl(cgroupRoot, "cgroup.subtree_control", "+"+controller); err != nil {
			logf(logInfo, "%v", err)
		}
	}
	dir := filepath.Join(cgroupRoot, "workload")
	total := memTotal()
	for _, c := range []struct{ file, value string }{
		{"memory.max", strconv.FormatInt(memoryMax(total, b.config.MemoryReserve), 10)},
		{"memory.oom.group", "1"}, // half a workload is worse than none: the host restarts it as a whole
		{"pids.max", strconv.FormatInt(pidsMax(total, b.config.Limits.PIDs), 10)},
	} {
		if err := writeControl(dir, c.file, c.value); err != nil {
			return err
		}
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	b.workload = &cgroup{dir: dir, fd: fd}
	return nil
}

func memoryMax(total, reserve int64) int64 {
	if reserve <= 0 {
		reserve = defaultReserve
	}
	return max(total-reserve, minWorkloadMemory)
}

// pidsMax by default allows a process for every 64 KiB: about what an idle one costs the kernel, so that a fork bomb
// ends at the limit or in the OOM killer, and never in a VM that has nothing left for PID 1.
func pidsMax(total, asked int64) int64 {
	if asked > 0 {
		return asked
	}
	return min(max(total>>16, 512), 30000)
}

func writeControl(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("set %s of cgroup %s to %s: %w", file, filepath.Base(dir), value, err)
	}
	return nil
}

// killAll kills every process in the cgroup.
func (c *cgroup) killAll() error { return writeControl(c.dir, "cgroup.kill", "1") }

// waitEmpty waits until the cgroup has no process left.
func (c *cgroup) waitEmpty(limit time.Duration) error {
	return waitFor(limit, func() (bool, error) {
		populated, err := c.counter("cgroup.events", "populated")
		if err == nil && populated > 0 {
			err = errors.New("the workload still has processes")
		}
		return err == nil, err
	})
}

// oomKills counts the processes of the cgroup that the OOM killer has killed.
func (c *cgroup) oomKills() int64 {
	n, err := c.counter("memory.events", "oom_kill")
	if err != nil {
		logf(logError, "count OOM kills: %v", err)
	}
	return n
}

func (c *cgroup) counter(file, key string) (int64, error) {
	src, err := os.ReadFile(filepath.Join(c.dir, file))
	if err != nil {
		return 0, err
	}
	return counterIn(string(src), key)
}

// counterIn finds "key n" in the text of a flat keyed file such as memory.events or /proc/vmstat.
func counterIn(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == key {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %q in there", key)
}

// guestOOMKills counts all processes of the VM that an OOM killer has killed, of whichever cgroup.
func guestOOMKills() int64 {
	src, err := os.ReadFile("/proc/vmstat")
	if err != nil {
		return 0
	}
	n, _ := counterIn(string(src), "oom_kill") // 0 where the kernel doesn't count
	return n
}
