package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// maxHolder bounds what a lock file says of its holder.
const maxHolder = 256

// A Hold is the right to use one volume, which nobody else has meanwhile. It is a lock of an open file description
// (F_OFD_SETLK of fcntl(2)): whoever else has the file, because it was inherited, has the hold too, and it ends with the
// last of them. So it outlives the process that took it when what uses the volume does.
type Hold struct {
	ID string

	store *Store
	lock  *os.File
}

// Hold takes a volume for who, a name for people that the next one who asks will read. The error wraps ErrNotFound or
// ErrHeld.
func (s *Store) Hold(id, who string) (*Hold, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	lock, err := s.lock(id)
	if errors.Is(err, unix.EAGAIN) {
		by := s.holder(id)
		if by == "" {
			return nil, fmt.Errorf("volume %s %w", id, ErrHeld)
		}
		return nil, fmt.Errorf("volume %s %w: %s", id, ErrHeld, by)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFound(id)
	}
	if err != nil {
		return nil, fmt.Errorf("hold volume %s: %w", id, err)
	}
	// What it says is for messages; the lock itself is what counts.
	if err := lock.Truncate(0); err == nil {
		_, _ = lock.WriteAt([]byte(who[:min(len(who), maxHolder)]+"\n"), 0)
	}
	return &Hold{ID: id, store: s, lock: lock}, nil
}

// lock locks the lock file of a volume, and makes sure that it still is the one of that volume afterwards: it may have
// been removed, or removed and made again.
func (s *Store) lock(id string) (*os.File, error) {
	for {
		f, err := os.OpenFile(s.path(id, lockName), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		whole := unix.Flock_t{Type: unix.F_WRLCK}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		held, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		there, err := os.Stat(s.path(id, lockName))
		if err == nil && os.SameFile(held, there) {
			return f, nil
		}
		f.Close()
		if err != nil {
			return nil, err
		}
	}
}

// heldBy names who holds a volume, and is empty when nobody does. It asks for the lock without taking it, so that nobody
// who looks is in the way of one who wants to hold.
func (s *Store) heldBy(id string) string {
	f, err := os.Open(s.path(id, lockName))
	if err != nil {
		return ""
	}
	defer f.Close()
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &whole); err != nil || whole.Type == unix.F_UNLCK {
		return ""
	}
	if by := s.holder(id); by != "" {
		return by
	}
	return "unknown"
}

func (s *Store) holder(id string) string {
	f, err := os.Open(s.path(id, lockName))
	if err != nil {
		return ""
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxHolder))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Lock is the open file that is locked. A process that inherits it keeps the volume held for as long as it lives.
func (h *Hold) Lock() *os.File { return h.lock }

// Path is the image.
func (h *Hold) Path() string { return h.store.path(h.ID, imageName) }

// Size is how large the volume is, in bytes.
func (h *Hold) Size() (int64, error) {
	size, _, err := sizes(h.Path())
	return size, err
}

// Grow makes the volume size bytes large, rounded up to 4 KiB, which its file system follows when it is mounted next.
// When that is what it is, nothing happens; when it is less, the error wraps ErrShrink.
func (h *Hold) Grow(size int64) error {
	size, err := checkSize(size)
	if err != nil {
		return fmt.Errorf("grow volume %s: %w", h.ID, err)
	}
	is, err := h.Size()
	switch {
	case err != nil:
		return fmt.Errorf("grow volume %s: %w", h.ID, err)
	case size == is:
		return nil
	case size < is:
		return fmt.Errorf("volume %s is %s large and cannot become %s: %w; ask for %s or more", h.ID, text(is), text(size), ErrShrink, text(is))
	}
	f, err := os.OpenFile(h.Path(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("grow volume %s: %w", h.ID, err)
	}
	err = errors.Join(f.Truncate(size), f.Sync())
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("grow volume %s to %s: %w", h.ID, text(size), err)
	}
	return nil
}

// Claim notes that the volume is somebody's from now on, also if it was imported and nobody ever said that it is wanted.
func (h *Hold) Claim() error {
	err := os.Remove(h.store.path(h.ID, unclaimedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.SyncDir(h.store.path(h.ID))
	}
	if err != nil {
		return fmt.Errorf("claim volume %s: %w", h.ID, err)
	}
	return nil
}

// Close gives up what this process has of the hold. It does no more than that when the lock was inherited.
func (h *Hold) Close() { _ = h.lock.Close() } // of a file that was not written: nothing can be lost

// text is a size for people.
func text(size int64) string {
	for _, unit := range []struct {
		bytes int64
		name  string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if size >= unit.bytes && size%unit.bytes == 0 {
			return fmt.Sprintf("%d%s", size/unit.bytes, unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", size)
}
