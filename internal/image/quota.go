package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Quota bounds the room that a store takes. The zero value sets no bound.
type Quota struct {
	Bytes   int64 `json:"bytes"`   // that the files of the store may have in all; 0 for any number
	Reserve int64 `json:"reserve"` // that a pull leaves free on the file system, for whatever else is on it
}

// NoQuota is a Quota.Bytes that nothing reaches, for who wants no bound where another process has set one.
const NoQuota = math.MaxInt64

// ErrNoSpace means that there is no room for an image, also after a collection.
var ErrNoSpace = errors.New("no room for the image")

// A SpaceError says why there is no room. It wraps ErrNoSpace.
type SpaceError struct {
	Need    int64 // bytes that the pull needs at least, or needed next
	Used    int64 // that the store has, with what pulls are bringing in now
	Held    int64 // of those, held by leases
	Free    int64 // on the file system
	Quota   Quota
	Holders []string // what holds images: "agent: 3 instance", sorted
	Err     error    // what the system said, if it was the one to refuse
}

func (e *SpaceError) Error() string {
	var why string
	fix := "free space on the disk"
	switch {
	case e.Quota.Bytes > 0 && e.Used+e.Need > e.Quota.Bytes:
		why = fmt.Sprintf("it needs at least %s, and the store has %s of its quota of %s", size(e.Need), size(e.Used), size(e.Quota.Bytes))
		fix = "raise the quota"
	case e.Err == nil:
		why = fmt.Sprintf("it needs at least %s, and the file system has %s free", size(e.Need), size(e.Free))
		if e.Quota.Reserve > 0 {
			why += fmt.Sprintf(", of which %s are kept in reserve", size(e.Quota.Reserve))
		}
	default:
		why = fmt.Sprintf("the disk is full: what could be removed was, and the %s that are free now are not enough", size(e.Free))
	}
	if e.Held > 0 {
		why += fmt.Sprintf("; %s are held (%s)", size(e.Held), strings.Join(e.Holders, ", "))
		fix += ", or stop what holds images"
	}
	return ErrNoSpace.Error() + ": " + why + ": " + fix
}

func (e *SpaceError) Unwrap() []error { return []error{ErrNoSpace, e.Err} }

// size writes bytes so that two numbers that differ look different.
func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 10<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 10<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%d bytes", n)
}

func outOfSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// admit makes room for a pull, or refuses it before its first byte. What layers take uncompressed is in no
// manifest, so it counts what they take at least; room says the rest while they come in.
func (s *Store) admit(ctx context.Context, l *Lease, img *spec) error {
	l.Pending = map[string]int64{}
	for i, d := range img.diffIDs {
		if !exists(s.path("layers", strings.TrimPrefix(d, digestPrefix)+".tar")) {
			l.Pending[d] = img.blobs[i].Size
		}
	}
	if len(l.Pending) == 0 {
		return nil
	}
	if s.quota == (Quota{}) {
		// Without bounds there are no promises either, only the disk.
		if free, err := s.free(); err != nil || free >= sum(l.Pending) {
			return err
		}
	}
	return s.makeRoom(ctx, func(inv *inventory) (int64, int64) {
		others, all := inv.pending(l), maps.Clone(inv.pending(l))
		maps.Copy(all, l.Pending)
		return sum(all) - sum(others), max(0, sum(others)-inv.temp)
	}, func() error { return s.writeLease(l) })
}

// makeRoom collects what it takes and calls admitted under the store's lock, or says why there is no room. need
// gives the bytes that are wanted, and those that others have been promised and have not written yet.
func (s *Store) makeRoom(ctx context.Context, need func(*inventory) (want, promised int64), admitted func() error) error {
	unlock, err := s.lockStore(ctx, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	inv, err := s.inventory()
	if err != nil {
		return err
	}
	want, promised := need(inv)
	used := inv.bytes() + inv.temp
	free, err := s.free()
	if err != nil {
		return err
	}
	if missing := s.missing(want, used+promised, free-promised); missing > 0 {
		report, trash, err := s.collectLocked(inv, GCOptions{Need: missing})
		if trash != "" {
			err = errors.Join(err, os.RemoveAll(trash))
		}
		if err != nil {
			return err
		}
		used -= report.Freed
		if free, err = s.free(); err != nil {
			return err
		}
		if s.missing(want, used+promised, free-promised) > 0 {
			return s.spaceError(want, used+promised, free, nil)
		}
	}
	if admitted == nil {
		return nil
	}
	return admitted()
}

// Over is how many bytes must go for the store to be within its quota, and to leave the reserve free.
func (s *Store) Over() (int64, error) {
	room, err := s.quick()
	if err != nil {
		return 0, fmt.Errorf("measure image store: %w", err)
	}
	return max(0, -room), nil
}

// missing is how many bytes must go before there is room for n more.
func (s *Store) missing(n, used, free int64) int64 {
	missing := n + s.quota.Reserve - free
	if s.quota.Bytes > 0 {
		missing = max(missing, used+n-s.quota.Bytes)
	}
	return missing
}

// free is what the file system has left for this user.
func (s *Store) free() (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", s.dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// pending is what all pulls but that of l are bringing in: layers that are not there yet, each once.
func (inv *inventory) pending(l *Lease) map[string]int64 {
	all := map[string]int64{}
	for _, other := range inv.leases {
		if l != nil && other.ID == l.ID {
			continue
		}
		for d, bytes := range other.Pending {
			if _, there := inv.files["layers/"+strings.TrimPrefix(d, digestPrefix)+".tar"]; !there {
				all[d] = max(all[d], bytes)
			}
		}
	}
	return all
}

func sum(m map[string]int64) int64 {
	var n int64
	for _, v := range m {
		n += v
	}
	return n
}
