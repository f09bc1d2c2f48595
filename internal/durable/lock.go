package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ErrLocked means that another process owns the directory.
var ErrLocked = errors.New("in use by another process")

// A DirLock is the ownership of one directory, held until Unlock or until the process ends.
type DirLock struct {
	f *os.File
}

// Lock takes the ownership of dir, which must exist. It does not wait: when another process has it, the
// error wraps ErrLocked and names that process.
func Lock(dir string) (*DirLock, error) {
	path := filepath.Join(dir, ".lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder := holderOf(path)
		closeErr := f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("%s is %w%s", dir, ErrLocked, holder), closeErr)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), closeErr)
	}
	// The number is a hint for the message above; the lock itself is what counts, so a failure to write
	// it is not one of the lock.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &DirLock{f: f}, nil
}

// Unlock gives the directory up.
func (l *DirLock) Unlock() error {
	return l.f.Close()
}

// holderOf says who holds the lock at path, or nothing when that is unknown.
func holderOf(path string) string {
	b, err := os.ReadFile(path)
	pid := strings.TrimSpace(string(b))
	if err != nil || pid == "" {
		return ""
	}
	return " (pid " + pid + ")"
}
