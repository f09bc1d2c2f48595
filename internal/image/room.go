package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
)

// mayWrite says how much of a layer may be written in all, when more than it said before is wanted.
func (s *Store) mayWrite(ctx context.Context) func(want int64) (int64, error) {
	if s.quota == (Quota{}) {
		return func(int64) (int64, error) { return s.limits.LayerBytes + pieceSize, nil }
	}
	var granted int64
	return func(want int64) (int64, error) {
		if want <= granted {
			return granted, nil
		}
		room, err := s.room(ctx, want-granted)
		if err != nil {
			return 0, err
		}
		// Others write at the same time, so only a part of what is left is taken without asking.
		granted += max(want-granted, min(room/16, 64<<20))
		return granted, nil
	}
}

// room makes room for n more bytes of a layer, and says how much there is.
func (s *Store) room(ctx context.Context, n int64) (int64, error) {
	room, err := s.quick()
	if room >= n || err != nil {
		return room, err
	}
	return n, s.makeRoom(ctx, func(*inventory) (int64, int64) { return n, 0 }, nil)
}

// withRoom makes room for n bytes and calls write, which fills them: once more after a collection when the disk
// turns out to be full.
func (s *Store) withRoom(ctx context.Context, n int64, write func() error) error {
	if _, err := s.room(ctx, n); err != nil {
		return err
	}
	err := write()
	if outOfSpace(err) && s.collectAll(ctx) > 0 {
		err = write()
	}
	if !outOfSpace(err) {
		return err
	}
	free, freeErr := s.free()
	if freeErr != nil {
		return err
	}
	return s.spaceError(n, 0, free, err)
}

// quick finds out, without the store's lock and without reading a record, how much may be written.
func (s *Store) quick() (int64, error) {
	inv := &inventory{files: map[string]storedFile{}}
	if s.quota.Bytes > 0 {
		for _, kind := range fileKinds {
			if err := s.listFiles(kind, inv.files); err != nil {
				return 0, err
			}
		}
		var err error
		if inv.temp, err = s.tempBytes(); err != nil {
			return 0, err
		}
	}
	free, err := s.free()
	return -s.missing(0, inv.bytes()+inv.temp, free), err
}

// collectAll removes what nothing holds, and gives the bytes that this freed.
func (s *Store) collectAll(ctx context.Context) int64 {
	report, err := s.collect(ctx, GCOptions{})
	if err != nil {
		return 0
	}
	return report.Freed
}

// spaceError looks at what holds the store's files.
func (s *Store) spaceError(need, used, free int64, cause error) error {
	e := &SpaceError{Need: need, Used: used, Free: free, Quota: s.quota, Err: cause}
	inv, err := s.inventory()
	if err != nil {
		return errors.Join(e, err)
	}
	held, counts := map[string]bool{}, map[string]int{}
	for _, l := range inv.leases {
		counts[l.Owner+" "+l.Kind]++
		for _, name := range inv.need(l.DiffIDs, l.Metadata) {
			if f, ok := inv.files[name]; ok && !held[name] {
				held[name] = true
				e.Held += f.size
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		owner, kind, _ := strings.Cut(k, " ")
		e.Holders = append(e.Holders, fmt.Sprintf("%s: %d × %s", owner, counts[k], kind))
	}
	return e
}

// full turns what a pull failed with into a SpaceError when the disk was full, and takes the layers away again
// that only this image needs: what cannot be completed is not to fill the disk.
func (s *Store) full(ctx context.Context, own *Lease, img *spec, cause error) error {
	if !outOfSpace(cause) && !errors.Is(cause, ErrNoSpace) {
		return cause
	}
	ctx = context.WithoutCancel(ctx) // what is left behind would stay, however the caller ended
	if err := s.dropIncomplete(ctx, own, img); err != nil {
		cause = errors.Join(cause, err)
	}
	if errors.Is(cause, ErrNoSpace) {
		return cause
	}
	inv, err := s.inventory()
	if err != nil {
		return cause
	}
	free, err := s.free()
	if err != nil {
		return cause
	}
	return s.spaceError(0, inv.bytes()+inv.temp, free, cause)
}

// dropIncomplete removes the layers of an image that is not complete, unless another image or another pull needs
// them. Leases for the image itself do not count: they hold what there is, and cannot make it complete.
func (s *Store) dropIncomplete(ctx context.Context, own *Lease, img *spec) error {
	unlock, err := s.lockStore(ctx, syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	inv, err := s.inventory()
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	mark := func(names []string) {
		for _, n := range names {
			needed[n] = true
		}
	}
	for _, l := range inv.leases {
		if l.ID != own.ID && (l.Image != img.digest || l.Process != "") {
			mark(inv.need(l.DiffIDs, l.Metadata))
		}
	}
	for _, other := range inv.images {
		mark(other.needs)
	}
	var gone []string
	for _, name := range inv.need(img.diffIDs, hexIdentity(img.diffIDs)+".erofs") {
		if _, there := inv.files[name]; there && !needed[name] {
			gone = append(gone, name)
		}
	}
	trash, err := s.discard(gone)
	if trash != "" {
		err = errors.Join(err, os.RemoveAll(trash))
	}
	return err
}
