// Package durable writes files that are there whole or not at all, and are still there after the power went.
//
// A file is written beside its place, synced, renamed, and then the directory that names it is synced:
// without the last step the name can be gone after a crash although rename returned. A failed sync is
// final. The kernel may have dropped the dirty pages already, so trying again can report success for
// bytes that never reached the disk (see "Can Applications Recover from fsync Failures?", USENIX ATC
// 2020); callers give up what they were doing instead.
//
// The package knows nothing of what is in the files.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// TempPattern is how the names of files begin that are not finished yet. They never become visible under
// a final name, so whoever owns a directory may remove those that a crash left behind.
const TempPattern = ".tmp-"

// WriteFile puts data at path with permissions perm. When it returns nil, the file and its name are on
// the disk; when it does not, path holds what it held before.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	f, err := CreateTemp(filepath.Dir(path), perm)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, Discard(f))
	}
	return Commit(f, path)
}

// CreateTemp opens a new file in dir under a temporary name, for Commit or Discard to finish.
func CreateTemp(dir string, perm fs.FileMode) (*os.File, error) {
	if err := failpoint.Hit("create", dir); err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(dir, TempPattern+"*")
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(perm); err != nil {
		return nil, errors.Join(err, Discard(f))
	}
	return f, nil
}

// RemoveTemps removes the files directly in dir that nobody finished. Nobody may be writing there.
func RemoveTemps(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, TempPattern+"*"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// Commit syncs f, gives it the name path, which must be on the same file system, and syncs the directory.
// It closes f in every case and removes it when it fails before the rename.
func Commit(f *os.File, path string) error {
	if err := failpoint.Hit("sync", path); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", f.Name(), err), Discard(f))
	}
	if err := f.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", f.Name(), err), Discard(f))
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(filepath.Dir(path))
}

// Discard closes f and removes it.
func Discard(f *os.File) error {
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Rename gives a file another name. The name is durable after SyncDir.
func Rename(from, to string) error {
	if err := failpoint.Hit("rename", to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// SyncDir makes the names in dir durable.
func SyncDir(dir string) error {
	if err := failpoint.Hit("sync directory", dir); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync directory %s: %w", dir, err), d.Close())
	}
	return d.Close()
}

// MkdirAll creates path and the parents that are missing, each with permissions perm, and makes their
// names durable.
func MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	if info, err := os.Stat(path); err == nil {
		if !info.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: path, Err: errors.New("exists and is not a directory")}
		}
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("mkdir", path); err != nil {
		return err
	}
	if err := os.Mkdir(path, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return SyncDir(parent)
}
