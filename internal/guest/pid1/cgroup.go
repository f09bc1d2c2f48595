//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io"
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
	// availableReserve stays of what is available when the workload starts. A distribution's kernel has taken 45 MiB by
	// then, of which MemTotal says nothing: under a limit that is never reached, a VM that runs out of memory reads
	// its programs from the disk again and again for a minute before the OOM killer acts.
	availableReserve = 8 << 20
	// minWorkloadMemory keeps a reserve larger than the VM from making a limit that nothing can run under.
	minWorkloadMemory = 16 << 20
)

// cgroup is the workload's cgroup.
type cgroup struct {
	fd int // of its directory, in a mount that stays writable; for clone3 too
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
	fd, err := openPrivately(cgroupRoot, "workload")
	if err != nil {
		return fmt.Errorf("open the workload's cgroup: %w", err)
	}
	b.workload = &cgroup{fd}
	total := memTotal()
	for _, c := range []struct{ file, value string }{
		{"memory.max", strconv.FormatInt(memoryMax(total, memAvailable(), b.config.MemoryReserve), 10)},
		{"memory.oom.group", "1"}, // half a workload is worse than none: the host restarts it as a whole
		{"pids.max", strconv.FormatInt(pidsMax(total, b.config.Limits.PIDs), 10)},
	} {
		if err := b.workload.set(c.file, c.value); err != nil {
			return err
		}
	}
	return nil
}

// openPrivately opens a directory of a mount by way of a copy of the mount that has no place in the file system. What
// is done to the mount later, such as making it read-only for the workload, does not change the copy.
func openPrivately(mount, dir string) (int, error) {
	own, err := unix.OpenTree(unix.AT_FDCWD, mount, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer closeFD(own) // the directory holds it
	return unix.Openat(own, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// memoryMax is the workload's limit in a VM that has total bytes of memory, of which available are not taken yet; 0 is
// not known.
func memoryMax(total, available, reserve int64) int64 {
	if reserve <= 0 {
		reserve = defaultReserve
	}
	limit := total - reserve
	if available > 0 {
		limit = min(limit, available-availableReserve)
	}
	return max(limit, minWorkloadMemory)
}

// memAvailable is what the kernel could give now, in bytes; 0 when it doesn't say.
func memAvailable() int64 {
	src, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return availableIn(string(src))
}

func availableIn(meminfo string) int64 {
	for line := range strings.Lines(meminfo) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			if kib, err := strconv.ParseInt(f[1], 10, 64); err == nil && kib < 1<<50 {
				return kib << 10
			}
		}
	}
	return 0
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

// set writes to a file of the cgroup.
func (c *cgroup) set(file, value string) error {
	fd, err := unix.Openat(c.fd, file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "workload/" + file, Err: err}
	}
	defer closeFD(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("set %s of cgroup workload to %s: %w", file, value, err)
	}
	return nil
}

// maxCgroupFile is more than any file of a cgroup has.
const maxCgroupFile = 64 << 10

// read returns the text of a file of the cgroup.
func (c *cgroup) read(file string) (string, error) {
	fd, err := unix.Openat(c.fd, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: "workload/" + file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxCgroupFile))
	return string(text), err
}

// killAll kills every process in the cgroup.
func (c *cgroup) killAll() error { return c.set("cgroup.kill", "1") }

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
	src, err := c.read(file)
	if err != nil {
		return 0, err
	}
	return counterIn(src, key)
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
