package sqlite

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// A commit that makes the write-ahead log longer has to make its new length durable too, which costs about as
// much again as its bytes. So the file is extended in larger steps ahead of the commits, up to the length after
// which it begins anew; what is behind the last frame is nothing to SQLite, which reads frames as long as their
// checksums hold.
const (
	walStep = 4 << 20
	walMost = walPages*(pageSize+walFrame) + 2*walStep
	// walFrame is the header of a page in the write-ahead log.
	walFrame = 24
)

// wal is how far the write-ahead log got.
type wal struct {
	used int64 // about what was written since the file is open, guarded by the engine's mu
	size int64 // of the file as far as it was extended, guarded by the engine's mu
}

// grow counts what a commit wrote and tells whether the file is soon too short. Counting on after the file began
// anew only extends it earlier.
func (w *wal) grow(bytes int) (short bool) {
	w.used += int64(bytes/pageSize+3) * (pageSize + walFrame)
	return w.size < walMost && w.used > 128<<10 && w.used > w.size-walStep/4
}

// extend makes the file longer by a step. No commit runs meanwhile. It is an optimisation: where it can't be
// done, commits are slower.
func (e *Engine) extend() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.broken.Load(); p != nil {
		return *p
	}
	f, err := os.OpenFile(e.path+"-wal", os.O_WRONLY, 0)
	if err != nil {
		return nil //nolint:nilerr // There is none until the first commit.
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() >= walMost {
		e.wal.size = walMost
		return nil //nolint:nilerr // As above.
	}
	zeros := make([]byte, 1<<20)
	size := info.Size()
	for end := min(size+walStep, walMost); size < end; {
		n, err := f.WriteAt(zeros[:min(int64(len(zeros)), end-size)], size)
		size += int64(n)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			// The room is for events. What was taken is given back.
			_ = f.Truncate(info.Size())
			e.wal.size = walMost
			return nil
		}
		if err != nil {
			return e.breakDown(err)
		}
	}
	// A sync that fails may have been one of frames that are committed.
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return e.breakDown(err)
	}
	e.wal.size = size
	return nil
}
