package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// Sweep removes the jails that no living process owns, which is what a crash of an earlier one leaves, and ends
// the monitors of machines below root that have no record by which anybody could adopt them. It returns how many jails
// it removed. Call it after adopting what there is to adopt, and before starting machines below root.
func (d *Driver) Sweep(ctx context.Context, root string) (int, error) {
	dirs, err := filepath.Glob(filepath.Join(d.opts.JailDir, "*", "vm-*"))
	if err != nil {
		return 0, err
	}
	removed := 0
	var errs []error
	for _, dir := range dirs {
		was, err := sweepJail(ctx, dir, root)
		if err != nil {
			errs = append(errs, fmt.Errorf("clean up jail %s: %w", filepath.Base(dir), err))
		}
		if was {
			removed++
		}
	}
	return removed, errors.Join(errs...)
}

func sweepJail(ctx context.Context, dir, root string) (bool, error) {
	owner, err := tryClaim(dir)
	if err != nil {
		return false, err
	}
	if owner != nil {
		defer owner.Close()
	} else if lost, err := isLost(dir, root); !lost || err != nil {
		return false, err
	}
	if err := endInmates(ctx, filepath.Join(dir, "root")); err != nil {
		return false, err
	}
	return true, os.RemoveAll(dir)
}

// isLost tells whether the jail's machine is below root and nobody can know of it.
func isLost(dir, root string) (bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, ownerName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	_, machine, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), "\n")
	if filepath.Dir(machine) != filepath.Clean(root) {
		return false, nil
	}
	r, err := vm.ReadRecord(machine)
	return err != nil || r.Jail != dir, nil
}

// tryClaim locks the jail at dir, or returns nothing when it has an owner or is gone. One that is being made loses
// its race with its maker's own claim, which then fails.
func tryClaim(dir string) (*os.File, error) {
	owner, err := os.OpenFile(filepath.Join(dir, ownerName), os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(owner.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return owner, nil
	}
	owner.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, fmt.Errorf("see whose it is: %w", err)
}

// endInmates kills the processes whose root directory is root. Only a monitor of this jail can have it.
func endInmates(ctx context.Context, root string) error {
	jail, err := os.Stat(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	links, err := filepath.Glob("/proc/[0-9]*/root")
	if err != nil {
		return err
	}
	for _, link := range links {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link)))
		if err != nil {
			continue
		}
		if err := endInmate(ctx, pid, jail); err != nil {
			return fmt.Errorf("end process %d: %w", pid, err)
		}
	}
	return nil
}

func endInmate(ctx context.Context, pid int, jail os.FileInfo) error {
	// The pidfd comes first: what is checked after it was opened is true of the process that it holds.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil // gone, or a thread
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	at, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil || !os.SameFile(at, jail) {
		return nil //nolint:nilerr // whose root can't be seen is no monitor of the caller's, or has ended
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int((50 * time.Millisecond).Milliseconds()))
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return ctx.Err()
}
