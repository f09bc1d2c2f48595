// Package volume keeps the volumes of one host: ext4 images in a directory, which are made, grown, copied and removed
// here, and held by one machine at a time.
//
// What is in a volume was written by guests, so the host never mounts one and believes nothing that its file system
// says: no label, no UUID and no number leads anywhere, and the two programs that look at more than that (mkfs.ext4 at a
// file that is all zeros, e2fsck at one that a guest has written) are given one file, e2fsck under an identity that has
// nothing else. Growing the file system, mounting it and giving it an owner are the guest's business.
//
// Layout, below the store's directory:
//
//	<id>/volume.ext4            the image, sparse; its length is the size of the volume
//	<id>/lock                   locked as long as somebody holds the volume; says who
//	<id>/snapshots/<name>.ext4  copies
//	<id>/unclaimed              there until a volume that was imported is claimed, by its first instance
//	.tmp-*                      volumes and snapshots that were being made, or removed
//	.making                     locked shared while one is made or removed
//
// A volume gets its name when it is whole and on the disk. A crash leaves a directory .tmp-*, which the next Open
// removes unless somebody is at work just then. Growing is one step of the file system. Several processes can use one
// store: what they do to one volume is ordered by its lock.
//
// Images are sparse, and may promise more than the disk has. When it is full, the guest that writes gets an I/O error,
// its file system becomes read-only, and its workload sees that; nothing stands still without saying why.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// Bounds of a volume's size in bytes.
const (
	MinSize = 64 << 20
	MaxSize = 16 << 40 // ext4 with blocks of 4 KiB and block numbers of 32 bits
)

// Errors that callers tell apart. They are wrapped in ones that name the volume.
var (
	ErrNotFound = errors.New("there is no such volume on this host")
	ErrExists   = errors.New("exists already")
	ErrHeld     = errors.New("is held by another instance")
	ErrShrink   = errors.New("volumes only grow")
)

// names are what ids of volumes and names of snapshots look like: they become names of files.
var names = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// CheckID tells whether id can name a volume.
func CheckID(id string) error {
	if !names.MatchString(id) {
		return fmt.Errorf("%q cannot be the id of a volume: it is 1 to 63 of a-z, 0-9 and \"-\", and begins with no \"-\"", id)
	}
	return nil
}

const (
	imageName     = "volume.ext4"
	lockName      = "lock"
	snapshotsName = "snapshots"
	makingName    = ".making"
	imageSuffix   = ".ext4"
	unclaimedName = "unclaimed"
)

// A Store is the volumes below one directory. Its methods may be called concurrently.
type Store struct{ dir string }

// Open opens the store in dir, which is created when missing, and removes what a crash has left half made.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the store of volumes: %w", err)
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open the store of volumes: remove what was not finished: %w", err)
	}
	return s, nil
}

// sweep removes what nobody finished, unless somebody may be about to.
func (s *Store) sweep() error {
	making, err := s.lockMaking(unix.LOCK_EX | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer making.Close()
	for _, pattern := range []string{s.dir, filepath.Join(s.dir, "*", snapshotsName)} {
		left, globErr := filepath.Glob(filepath.Join(pattern, durable.TempPattern+"*"))
		err = errors.Join(err, globErr)
		for _, path := range left {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// lockMaking takes the lock of those who make temporary files, until it is closed.
func (s *Store) lockMaking(how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, makingName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *Store) path(id string, more ...string) string {
	return filepath.Join(append([]string{s.dir, id}, more...)...)
}

// Info is what is known of a volume without looking into it.
type Info struct {
	ID string
	// Size is how large it is for its guest, in bytes.
	Size int64
	// Allocated is what it takes of the host's disk, in bytes, without its snapshots.
	Allocated int64
	// Used is how much of it is in use by the last count that its file system has written down, which it does when it
	// is unmounted: a hint, made by a guest, from 0 to Size. -1 when it says nothing.
	Used int64
	// HeldBy names who holds it, and is empty when nobody does.
	HeldBy    string
	Snapshots []Snapshot
	// Unclaimed is when it was imported, as long as it was never claimed; otherwise it is zero.
	Unclaimed time.Time
}

// Snapshot is a copy of a volume.
type Snapshot struct {
	Name string
	// Path is the file that it is, an ext4 image.
	Path            string
	Size, Allocated int64
}

// List returns all volumes, by id.
func (s *Store) List() ([]Info, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var all []Info
	for _, e := range entries {
		if !names.MatchString(e.Name()) {
			continue
		}
		info, err := s.Stat(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // it has just gone
		}
		if err != nil {
			return nil, err
		}
		all = append(all, info)
	}
	return all, nil
}

// Stat tells what is known of one volume.
func (s *Store) Stat(id string) (Info, error) {
	if err := CheckID(id); err != nil {
		return Info{}, err
	}
	size, allocated, err := sizes(s.path(id, imageName))
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, notFound(id)
	}
	if err != nil {
		return Info{}, fmt.Errorf("look at volume %s: %w", id, err)
	}
	info := Info{ID: id, Size: size, Allocated: allocated, Used: -1}
	if super, err := readSuper(s.path(id, imageName)); err == nil {
		info.Used = super.used(size)
	}
	info.HeldBy = s.heldBy(id)
	if mark, err := os.Lstat(s.path(id, unclaimedName)); err == nil {
		info.Unclaimed = mark.ModTime()
	}
	info.Snapshots, err = s.snapshots(id)
	return info, err
}

func (s *Store) snapshots(id string) ([]Snapshot, error) {
	entries, err := os.ReadDir(s.path(id, snapshotsName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the snapshots of volume %s: %w", id, err)
	}
	var all []Snapshot
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), imageSuffix)
		if !ok || !names.MatchString(name) {
			continue
		}
		path := s.path(id, snapshotsName, e.Name())
		size, allocated, err := sizes(path)
		if err != nil {
			return nil, fmt.Errorf("look at snapshot %s of volume %s: %w", name, id, err)
		}
		all = append(all, Snapshot{Name: name, Path: path, Size: size, Allocated: allocated})
	}
	return all, nil
}

// Usage is what all volumes and their snapshots take of the host's disk, in bytes, and what they promise to guests.
// Blocks that a snapshot shares with its volume are counted for both.
func (s *Store) Usage() (allocated, promised int64, err error) {
	all, err := s.List()
	for _, v := range all {
		allocated, promised = allocated+v.Allocated, promised+v.Size
		for _, snap := range v.Snapshots {
			allocated += snap.Allocated
		}
	}
	return allocated, promised, err
}

// sizes are the length of a file and what it takes of the disk.
func sizes(path string) (size, allocated int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Size, st.Blocks * 512, nil
}

func notFound(id string) error { return fmt.Errorf("volume %s: %w", id, ErrNotFound) }
