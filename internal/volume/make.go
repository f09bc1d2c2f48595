package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// A MissingError means that a program of e2fsprogs is not on this host.
type MissingError struct {
	Program string
	Err     error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not usable here: %v; install it with: apt-get install e2fsprogs", e.Program, e.Err)
}

func (e *MissingError) Unwrap() error { return e.Err }

// blockSize is that of the file systems.
const blockSize = 4096

// checkSize returns size rounded up to whole blocks, if there are such volumes.
func checkSize(size int64) (int64, error) {
	if size < MinSize || size > MaxSize {
		return 0, fmt.Errorf("%s is not in %s to %s", text(size), text(MinSize), text(MaxSize))
	}
	return (size + blockSize - 1) &^ (blockSize - 1), nil
}

// Create makes an empty volume of size bytes, rounded up to 4 KiB. When it returns nil, the volume is on the disk; when
// it does not, there is none. The error wraps ErrExists when there is one of that id, and is a *MissingError without
// mkfs.ext4.
func (s *Store) Create(ctx context.Context, id string, size int64) error {
	if err := CheckID(id); err != nil {
		return err
	}
	size, err := checkSize(size)
	if err == nil {
		err = s.create(ctx, id, size, func(ctx context.Context, f *os.File) error { return makeFileSystem(ctx, f.Name()) })
	}
	if err != nil {
		return fmt.Errorf("make volume %s: %w", id, err)
	}
	return nil
}

// create makes a volume that fill fills: a file of zeros of size bytes.
func (s *Store) create(ctx context.Context, id string, size int64, fill func(ctx context.Context, f *os.File) error) (err error) {
	if _, err := os.Stat(s.path(id)); err == nil {
		return ErrExists
	}
	making, err := s.lockMaking(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer making.Close()
	if err := failpoint.Hit("create", s.dir); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, durable.TempPattern)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := durable.WriteFile(filepath.Join(dir, lockName), nil, 0o600); err != nil {
		return err
	}
	f, err := durable.CreateTemp(dir, 0o600)
	if err != nil {
		return err
	}
	if err = f.Truncate(size); err == nil {
		err = fill(ctx, f)
	}
	if err != nil {
		return errors.Join(err, durable.Discard(f))
	}
	if err := durable.Commit(f, filepath.Join(dir, imageName)); err != nil {
		return err
	}
	// Over an empty directory a rename would succeed; no volume is one.
	if err := durable.Rename(dir, s.path(id)); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
			return ErrExists
		}
		return err
	}
	return durable.SyncDir(s.dir)
}

// features are spelt out, so that a volume is the same whatever the host's mke2fs.conf says, and can be read by every
// kernel that guests run and by the e2fsck of every host.
var features = strings.Join([]string{
	"none", "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg", "sparse_super",
	"large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
}, ",")

// makeFileSystem makes an empty ext4 file system with a journal in a file of zeros. It leaves the file sparse and
// nothing for the guest's kernel to write later. No space is kept back for root, and an error makes it read-only.
func makeFileSystem(ctx context.Context, file string) error {
	mkfs, err := program("mkfs.ext4")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-b", fmt.Sprint(blockSize), "-i", "16384", "-I", "256",
		"-O", features, "-e", "remount-ro", "-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", file)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MKE2FS_CONFIG=/nonexistent"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.300s", mkfs, err, out)
	}
	return nil
}

// program finds a program where Debian has it, too: the PATH of users other than root lacks /sbin.
func program(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		if p, dirErr := exec.LookPath(filepath.Join(dir, name)); dirErr == nil {
			path, err = p, nil
		}
	}
	if err != nil {
		return "", &MissingError{Program: name, Err: err}
	}
	return path, nil
}

// Remove removes a volume with everything in it, its snapshots included. The error wraps ErrNotFound, or ErrHeld.
func (s *Store) Remove(id string) error {
	h, err := s.Hold(id, "being removed")
	if err != nil {
		return err
	}
	defer h.Close()
	making, err := s.lockMaking(unix.LOCK_SH)
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	defer making.Close()
	// First it loses its name, so that there is no volume of which parts are missing.
	gone, err := os.MkdirTemp(s.dir, durable.TempPattern)
	if err == nil {
		err = durable.Rename(s.path(id), filepath.Join(gone, id))
	}
	if err == nil {
		err = durable.SyncDir(s.dir)
	}
	if err == nil {
		err = os.RemoveAll(gone)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	return nil
}
