package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// RecordName is the name of a machine's record in its Dir.
const RecordName = "machine.json"

// A Record identifies the process of a machine's monitor beyond doubt: a process id alone is used again by
// the kernel, the id together with the time at which the process started in this boot of the host is not.
type Record struct {
	ID     string `json:"id"`
	Driver string `json:"driver"`
	PID    int    `json:"pid"`
	// StartTicks is when the process started, in the kernel's clock ticks since boot.
	StartTicks uint64 `json:"start_ticks"`
	// BootID is the host's /proc/sys/kernel/random/boot_id.
	BootID    string    `json:"boot_id"`
	Dir       string    `json:"dir"`
	Cgroup    string    `json:"cgroup,omitempty"`
	StartedAt time.Time `json:"started_at"`
}

// NewRecord describes the process pid, which must be a child of the caller that is not reaped yet.
func NewRecord(driver string, spec Spec, pid int, startedAt time.Time) (Record, error) {
	ticks, err := startTicks(pid)
	if err != nil {
		return Record{}, err
	}
	boot, err := HostBootID()
	if err != nil {
		return Record{}, err
	}
	return Record{
		ID: spec.ID, Driver: driver, PID: pid, StartTicks: ticks, BootID: boot,
		Dir: spec.Dir, Cgroup: spec.Cgroup, StartedAt: startedAt,
	}, nil
}

// Write puts the record into its Dir, durably.
func (r Record) Write() error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(r.Dir, RecordName), append(b, '\n'), 0o600)
}

// RemoveRecord removes the record from dir. One that is not there is no error.
func RemoveRecord(dir string) error {
	if err := os.Remove(filepath.Join(dir, RecordName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// HostBootID tells this boot of the host from every other.
func HostBootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Sweep ends the machines that an earlier process of this program left behind: those with a record in a
// directory directly below root. It returns the records of those that it killed. A record and the machine's
// cgroup are removed once its process is proven gone. It must not run while somebody starts machines below root.
func Sweep(ctx context.Context, root string) ([]Record, error) {
	paths, err := filepath.Glob(filepath.Join(root, "*", RecordName))
	if err != nil {
		return nil, err
	}
	var killed []Record
	var errs []error
	for _, path := range paths {
		r, was, err := sweepOne(ctx, path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if was {
			killed = append(killed, r)
		}
	}
	return killed, errors.Join(errs...)
}

func sweepOne(ctx context.Context, path string) (Record, bool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Record{}, false, err
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return Record{}, false, fmt.Errorf("read machine record %s: %w", path, err)
	}
	was, err := KillStale(ctx, r)
	if err != nil {
		return r, was, fmt.Errorf("end machine %s: %w", r.ID, err)
	}
	if r.Cgroup != "" {
		if err := removeCgroup(r.Cgroup); err != nil {
			return r, was, fmt.Errorf("clean up after machine %s: %w", r.ID, err)
		}
	}
	return r, was, RemoveRecord(filepath.Dir(path))
}

func removeCgroup(name string) error {
	hierarchy, err := cgroup.Find()
	if errors.Is(err, cgroup.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	return hierarchy.Remove(name)
}

// KillStale ends the process that r identifies and waits until it is gone. It tells whether there was one
// to kill; a process that only has the same id is left alone.
func KillStale(ctx context.Context, r Record) (bool, error) {
	boot, err := HostBootID()
	if err != nil {
		return false, err
	}
	if r.PID <= 1 || r.BootID != boot {
		return false, nil
	}
	// The pidfd comes first: what is checked after it was opened is true of the process that it holds.
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open process %d: %w", r.PID, err)
	}
	defer func() { _ = unix.Close(fd) }()
	ticks, err := startTicks(r.PID)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || (err == nil && ticks != r.StartTicks) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if gone, err := exited(fd, 0); gone || err != nil {
		return false, err // a zombie that its parent has yet to reap
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return false, nil
		}
		return false, fmt.Errorf("kill process %d: %w", r.PID, err)
	}
	return true, awaitExit(ctx, fd)
}

// awaitExit returns when the process behind the pidfd has ended.
func awaitExit(ctx context.Context, pidfd int) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if gone, err := exited(pidfd, 50*time.Millisecond); gone || err != nil {
			return err
		}
	}
}

// exited tells whether the process behind the pidfd has ended, and waits for that up to patience.
func exited(pidfd int, patience time.Duration) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait for a process: %w", err)
	}
	return n > 0, nil
}

// startTicks reads the start time of a process from /proc/PID/stat.
func startTicks(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the command's name in parentheses and may contain anything, so count from its end:
	// the start time is field 22 of the line, the 20th after the name.
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, fmt.Errorf("/proc/%d/stat has no command name", pid)
	}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	ticks, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("start time in /proc/%d/stat: %w", pid, err)
	}
	return ticks, nil
}
