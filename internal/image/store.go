package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// Files are readable for everybody who can reach the store, since machines run under ids of their own; the
// directory above decides who can. Nobody writes to a finished file.
const (
	dirPerm  = 0o755
	filePerm = 0o444
)

// Options of a store. The zero value is right for an agent.
type Options struct {
	Limits  Limits
	Workers int   // layers that one Pull works on at a time; 0 means one per CPU, at least 4
	Quota   Quota // the zero value takes that of who opened the store with one last
}

// A Store is a directory of images. Any number of processes may use it at the same time, and any of them
// may be killed at any moment: see the package comment.
type Store struct {
	dir     string
	limits  Limits
	workers int
	quota   Quota
	temp    string // this process's directory for unfinished files
	lock    *durable.DirLock
	flights flights
	leases  atomic.Uint64 // counts those of this process, for their names

	memo     memo
	patience time.Duration // how long a confined process may stand still
}

// Open opens the store in dir, which it makes if it is missing, and removes what killed processes left
// unfinished.
func Open(dir string) (*Store, error) {
	return OpenWith(dir, Options{})
}

// OpenWith is Open with options.
func OpenWith(dir string, opts Options) (*Store, error) {
	s := &Store{dir: dir, limits: opts.Limits.withDefaults(), workers: opts.Workers, quota: opts.Quota, patience: patience}
	if s.workers <= 0 {
		s.workers = max(4, runtime.NumCPU())
	}
	for _, sub := range []string{"layers", "metadata", "packs", "images", "leases", "quarantine", "tmp"} {
		if err := durable.MkdirAll(filepath.Join(dir, sub), dirPerm); err != nil {
			return nil, fmt.Errorf("open image store %s: %w", dir, err)
		}
	}
	if err := s.agreeOnQuota(); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	err := s.takeTemp()
	if outOfSpace(err) {
		err = s.squeezeIn()
	}
	if err != nil {
		return nil, fmt.Errorf("open image store %s: %w", dir, err)
	}
	s.layBallast()
	return s, nil
}

// squeezeIn is takeTemp on a disk where not even a directory fits. What nobody holds would have to go for whatever
// comes next; where that is nothing, the ballast goes, so that the store can be opened to make room in it.
func (s *Store) squeezeIn() error {
	if _, err := s.collect(context.Background(), GCOptions{}); err != nil {
		return err
	}
	err := s.takeTemp()
	if !outOfSpace(err) {
		return err
	}
	for i := range ballastFiles {
		if err := os.Remove(s.ballast(i)); ignoreMissing(err) != nil {
			return err
		}
	}
	return s.takeTemp()
}

// Ballast are files that take room for as long as nobody needs it badly.
const (
	ballastFiles = 4
	ballastBytes = 32 << 10
)

func (s *Store) ballast(i int) string { return filepath.Join(s.dir, fmt.Sprintf("ballast.%d", i)) }

// layBallast makes the ballast that is not there. A disk without room for it is no reason to fail, and whether it
// is there after a power cut does not matter.
func (s *Store) layBallast() {
	for i := range ballastFiles {
		if exists(s.ballast(i)) {
			continue
		}
		if err := os.WriteFile(s.ballast(i), make([]byte, ballastBytes), filePerm); err != nil {
			_ = os.Remove(s.ballast(i))
			return
		}
	}
}

// Close gives up what Open took. It must not be called while something else is; images stay usable.
func (s *Store) Close() error {
	return errors.Join(s.releaseAll(), os.RemoveAll(s.temp), s.lock.Unlock())
}

// takeTemp makes the directory of this process and removes those of processes that are gone: the ones
// whose lock can be had. One lock over all of tmp keeps a new directory from being taken for such a one
// before its owner has locked it.
func (s *Store) takeTemp() (err error) {
	tmp := filepath.Join(s.dir, "tmp")
	guard, err := s.guardTemp()
	if err != nil {
		return err
	}
	defer guard.Close()
	if err := s.sweepTemp(); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(tmp, "process-")
	if err != nil {
		return err
	}
	if s.lock, err = durable.Lock(temp); err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	s.temp = temp
	return nil
}

// sweepTemp removes what processes that are gone left unfinished. The caller has the guard.
func (s *Store) sweepTemp() error {
	entries, err := os.ReadDir(s.path("tmp", ""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || s.path("tmp", e.Name()) == s.temp {
			continue
		}
		if err := removeIfLeft(s.path("tmp", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// guardTemp takes the lock over all of tmp, until the file is closed.
func (s *Store) guardTemp() (*os.File, error) {
	guard, err := os.OpenFile(s.path("tmp", ".guard"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(guard.Fd()), syscall.LOCK_EX); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", guard.Name(), err), guard.Close())
	}
	return guard, nil
}

// removeIfLeft removes a directory of unfinished files unless its process is alive.
func removeIfLeft(dir string) error {
	lock, err := durable.Lock(dir)
	if errors.Is(err, durable.ErrLocked) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), lock.Unlock())
}

// create opens an unfinished file.
func (s *Store) create() (*os.File, error) {
	return durable.CreateTemp(s.temp, filePerm)
}

// write puts b under its final name.
func (s *Store) write(path string, b []byte) error {
	f, err := s.create()
	if err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), durable.Discard(f))
	}
	return durable.Commit(f, path)
}

func (s *Store) path(kind, name string) string {
	return filepath.Join(s.dir, kind, name)
}
