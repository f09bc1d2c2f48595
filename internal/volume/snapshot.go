package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// Snapshot copies a volume that nobody holds. See Hold.Snapshot.
func (s *Store) Snapshot(ctx context.Context, id, name string) error {
	h, err := s.Hold(id, "snapshot "+name)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Snapshot(ctx, name)
}

// SnapshotFrozen is Snapshot of a volume that somebody holds. The caller sees to it that nobody writes to it meanwhile.
func (s *Store) SnapshotFrozen(ctx context.Context, id, name string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	if _, err := os.Stat(s.path(id, imageName)); errors.Is(err, fs.ErrNotExist) {
		return notFound(id)
	}
	// A hold without a lock: of it only the name is used.
	return (&Hold{ID: id, store: s}).Snapshot(ctx, name)
}

// Snapshot copies the volume as it is under a name of its own: sharing its blocks where the host's file system can do
// that, else what is not a hole of it. It is there whole and on the disk, or not at all. Nobody may write to the volume
// meanwhile: whoever holds it has stopped its guest, or had the guest freeze its file system. The error wraps ErrExists
// when there is one of that name.
func (h *Hold) Snapshot(ctx context.Context, name string) error {
	if !names.MatchString(name) {
		return fmt.Errorf("%q cannot be the name of a snapshot: it is 1 to 63 of a-z, 0-9 and \"-\", and begins with no \"-\"", name)
	}
	if err := h.snapshot(ctx, name); err != nil {
		return fmt.Errorf("make snapshot %s of volume %s: %w", name, h.ID, err)
	}
	return nil
}

func (h *Hold) snapshot(ctx context.Context, name string) error {
	dir := h.store.path(h.ID, snapshotsName)
	path := h.store.path(h.ID, snapshotsName, name+imageSuffix)
	if _, err := os.Lstat(path); err == nil {
		return ErrExists
	}
	making, err := h.store.lockMaking(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer making.Close()
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	src, err := os.Open(h.Path())
	if err != nil {
		return err
	}
	defer src.Close()
	f, err := durable.CreateTemp(dir, 0o400)
	if err != nil {
		return err
	}
	if err := durable.Copy(ctx, f, src); err != nil {
		return errors.Join(err, durable.Discard(f))
	}
	return durable.Commit(f, path)
}

// RemoveSnapshot removes a snapshot. The error wraps fs.ErrNotExist when there is none of that name.
func (s *Store) RemoveSnapshot(id, name string) error {
	if err := CheckID(id); err != nil {
		return err
	}
	if !names.MatchString(name) {
		return fmt.Errorf("there is no snapshot %q: %w", name, fs.ErrNotExist)
	}
	if err := os.Remove(s.path(id, snapshotsName, name+imageSuffix)); err != nil {
		return fmt.Errorf("remove snapshot %s of volume %s: %w", name, id, err)
	}
	return durable.SyncDir(s.path(id, snapshotsName))
}
