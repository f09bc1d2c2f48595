package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Process is a process that may not be the caller's child, held by a pidfd, which no other process can take over.
// Its methods may be called concurrently.
type Process struct {
	file   *os.File
	pid    int
	closed atomic.Bool
}

// OpenChild opens a child of the caller that is not reaped yet.
func OpenChild(pid int) (*Process, error) {
	p, err := openProcess(pid, func() (bool, error) { return true, nil })
	if err == nil && p == nil {
		err = fmt.Errorf("open process %d: it is gone", pid)
	}
	return p, err
}

// openProcess opens the process pid if it is the right one. It returns nil when it is not, or is gone.
func openProcess(pid int, right func() (bool, error)) (*Process, error) {
	// The pidfd comes first: what is checked after it was opened is true of the process that it holds.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	// With this the runtime's poller waits for it, instead of a thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("open process %d: %w", pid, err), unix.Close(fd))
	}
	p := &Process{file: os.NewFile(uintptr(fd), "process "+strconv.Itoa(pid)), pid: pid}
	ok, err := right()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		ok, err = false, nil
	}
	if !ok || err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.pid }

// Close lets go of the process, and ends every Wait.
func (p *Process) Close() {
	p.closed.Store(true)
	_ = p.file.Close()
}

// Kill sends SIGKILL. A process that has ended needs none, and one that was let go of gets none.
func (p *Process) Kill() error {
	conn, err := p.file.SyscallConn()
	if err != nil {
		if p.closed.Load() {
			return nil
		}
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	var sent error
	err = conn.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if sent != nil && !errors.Is(sent, unix.ESRCH) {
		err = errors.Join(err, sent)
	}
	if err != nil && !p.closed.Load() {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return nil
}

// Wait returns when the process has ended, whether it is reaped or not, or when ctx is done.
func (p *Process) Wait(ctx context.Context) error {
	// A deadline that has passed wakes the poller.
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	var polled error
	err = conn.Read(func(fd uintptr) bool {
		gone, err := exited(int(fd), 0)
		polled = err
		return gone || err != nil
	})
	switch {
	case polled != nil:
		return fmt.Errorf("wait for process %d: %w", p.pid, polled)
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return nil
}

// gone tells whether the process has ended, and waits for that up to patience.
func (p *Process) gone(patience time.Duration) (gone bool, err error) {
	conn, err := p.file.SyscallConn()
	if err != nil {
		return false, err
	}
	controlErr := conn.Control(func(fd uintptr) { gone, err = exited(int(fd), patience) })
	return gone, errors.Join(controlErr, err)
}

// exited tells whether the process behind the pidfd has ended, and waits for that up to patience.
func exited(pidfd int, patience time.Duration) (bool, error) {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("wait for a process: %w", err)
	}
	return n > 0, nil
}

// Fields of /proc/PID/stat behind the command's name.
const (
	statParent = 1
	statTicks  = 19
)

// startTicks reads the start time of a process.
func startTicks(pid int) (uint64, error) { return statField(pid, statTicks) }

// parentOf reads the parent of a process.
func parentOf(pid int) (int, error) {
	n, err := statField(pid, statParent)
	return int(n), err
}

func statField(pid, field int) (uint64, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The second field is the command's name in parentheses and may contain anything, so count from its end.
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, fmt.Errorf("%s has no command name", path)
	}
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) <= statTicks {
		return 0, fmt.Errorf("%s has %d fields after the name", path, len(fields))
	}
	n, err := strconv.ParseUint(fields[field], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// CoreLimit is the limit of core dumps (RLIMIT_CORE) that monitors get: a core would hold the guest's memory, or what
// went to the guest. A limit of 0 keeps no core from a program that core_pattern pipes them to; 1 does, as the kernel
// uses it to find dumps of such a program itself (do_coredump), and it is too small for a file.
const CoreLimit = 1
