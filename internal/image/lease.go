package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// ErrNotFound means that the store does not have an image.
var ErrNotFound = errors.New("image is not in the store")

// A LeaseSpec says for whom and for how long a lease is.
type LeaseSpec struct {
	Owner string // who gives it up: one word, such as "agent"
	Kind  string // one word, such as "instance"
	Name  string // what the image is held for, for people
	// Process makes the lease end with this process at the latest, also when it is killed. Any other lease is
	// durable, and stays until Release or until it expires.
	Process bool
	Expires time.Time // zero for never
}

// A Lease keeps an image from being collected: its layers, the metadata over them, its pack disk and its
// record, those that are there and those that are still to come.
type Lease struct {
	ID       string    `json:"id"`
	Owner    string    `json:"owner"`
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Image    string    `json:"image"` // digest of its manifest
	DiffIDs  []string  `json:"diff_ids"`
	Metadata string    `json:"metadata"` // its file's name, since another version of the converter has another
	Taken    time.Time `json:"taken_at"`
	Expires  time.Time `json:"expires_at,omitzero"`
	Process  string    `json:"process,omitempty"` // the directory in tmp whose lock the holder has

	// Pending is what a pull is going to need at least, of layers that were not there when it began.
	Pending map[string]int64 `json:"pending,omitempty"` // bytes, by diffID
}

// maxLease is above 128 layers and what they are pending for.
const maxLease = 256 << 10

// Lease holds an image from now on, whether or not it is complete yet. Manifest and config are those that Pull
// gets; with nil, the image must be in the store, and the error wraps ErrNotFound when it isn't. The same owner,
// kind, name and image give the same lease again, except for leases of a process.
//
// Whoever wants to use an image takes a lease, looks it up after that, and pulls it if it is not there: what a
// collection has taken before the lease is then missed, and it takes nothing afterwards.
func (s *Store) Lease(ctx context.Context, spec LeaseSpec, manifestDigest string, manifest, config []byte) (*Lease, error) {
	fail := func(err error) (*Lease, error) {
		return nil, fmt.Errorf("hold image %s: %w", quote(manifestDigest), err)
	}
	parsed, err := s.spec(manifestDigest, manifest, config)
	if err != nil {
		return fail(err)
	}
	l, err := s.hold(ctx, spec, parsed)
	if err != nil {
		return fail(err)
	}
	return l, nil
}

// spec checks the documents of an image, which are those of its record when there are none.
func (s *Store) spec(manifestDigest string, manifest, config []byte) (*spec, error) {
	if manifest == nil {
		r, err := s.readRecord(manifestDigest)
		if err == nil && r == nil {
			err = ErrNotFound
		}
		if err != nil {
			return nil, err
		}
		manifest, config = r.Manifest, r.Config
	}
	return parseSpec(manifestDigest, manifest, config, s.limits)
}

// hold makes a lease of the checked image.
func (s *Store) hold(ctx context.Context, spec LeaseSpec, img *spec) (*Lease, error) {
	id := identity(img.diffIDs)
	l := &Lease{
		Owner: spec.Owner, Kind: spec.Kind, Name: spec.Name, Image: img.digest,
		DiffIDs: img.diffIDs, Metadata: filepath.Base(s.metadataPath(id)),
		Taken: time.Now().UTC(), Expires: spec.Expires,
	}
	if spec.Process {
		l.Process = filepath.Base(s.temp)
		l.ID = fmt.Sprintf("%s-%d", l.Process, s.leases.Add(1))
	} else {
		sum := sha256.Sum256([]byte(strings.Join([]string{l.Owner, l.Kind, l.Name, l.Image}, "\x00")))
		l.ID = hex.EncodeToString(sum[:16])
	}
	err := s.keepLease(ctx, l)
	if outOfSpace(err) && s.collectAll(ctx) > 0 {
		err = s.keepLease(ctx, l)
	}
	if err != nil {
		return nil, fmt.Errorf("write lease: %w", err)
	}
	s.touch(img.digest)
	return l, nil
}

func (s *Store) keepLease(ctx context.Context, l *Lease) error {
	unlock, err := s.lockStore(ctx, syscall.LOCK_SH)
	if err != nil {
		return err
	}
	defer unlock()
	if l.Process == "" && s.hasLease(l) {
		return nil // without waiting for the disk
	}
	return s.writeLease(l)
}

// hasLease reports whether the lease is there already, just so.
func (s *Store) hasLease(l *Lease) bool {
	b, err := readFile(s.leasePath(l.ID), maxLease)
	var old Lease
	return err == nil && b != nil && json.Unmarshal(b, &old) == nil && old.ID == l.ID && old.Metadata == l.Metadata &&
		old.Expires.Equal(l.Expires) && slices.Equal(old.DiffIDs, l.DiffIDs)
}

// writeLease writes the file of l. One that ends with the process need not survive a power cut.
func (s *Store) writeLease(l *Lease) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if l.Process == "" {
		return s.write(s.leasePath(l.ID), append(b, '\n'))
	}
	f, err := s.create()
	if err != nil {
		return err
	}
	if _, err := f.Write(append(b, '\n')); err != nil {
		return errors.Join(err, durable.Discard(f))
	}
	if err := f.Close(); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := durable.Rename(f.Name(), s.leasePath(l.ID)); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (s *Store) leasePath(id string) string { return s.path("leases", id+".json") }

// Release gives up a lease. One that is gone already is no error. The removal is not synced: a lease that comes
// back after a power cut costs room, not an image.
func (s *Store) Release(id string) error {
	if id == "" || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") {
		return fmt.Errorf("release lease %s: not the id of a lease", quote(id))
	}
	if err := os.Remove(s.leasePath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release lease: %w", err)
	}
	return nil
}

// releaseAll gives up the leases of this process.
func (s *Store) releaseAll() error {
	paths, err := filepath.Glob(s.leasePath(filepath.Base(s.temp) + "-*"))
	for _, p := range paths {
		err = errors.Join(err, os.Remove(p))
	}
	return err
}

// Leases lists what is held, sorted by owner, kind, name and image. Leases that have expired or whose process is
// gone are not among them; the next collection removes their files.
func (s *Store) Leases() ([]Lease, error) {
	live, _, err := s.readLeases(time.Now())
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	slices.SortFunc(live, func(a, b Lease) int {
		return slices.Compare([]string{a.Owner, a.Kind, a.Name, a.Image, a.ID}, []string{b.Owner, b.Kind, b.Name, b.Image, b.ID})
	})
	return live, nil
}

// readLeases gives the leases that hold, and the files of those that don't any more. A durable lease that cannot
// be read is an error: what it holds is not known, so nothing may be collected.
func (s *Store) readLeases(now time.Time) (live []Lease, dead []string, err error) {
	entries, err := os.ReadDir(s.path("leases", ""))
	if err != nil {
		return nil, nil, err
	}
	alive := map[string]bool{filepath.Base(s.temp): true}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		path := s.leasePath(id)
		// The name says whose it is, so that a file that a power cut has emptied can go.
		if i := strings.LastIndexByte(id, '-'); i > 0 {
			process := id[:i]
			if _, known := alive[process]; !known {
				if alive[process], err = s.processAlive(process); err != nil {
					return nil, nil, err
				}
			}
			if !alive[process] {
				dead = append(dead, path)
				continue
			}
		}
		b, err := readFile(path, maxLease)
		if err != nil {
			return nil, nil, err
		}
		var l Lease
		switch {
		case b == nil && !exists(path):
			continue // given up just now
		case json.Unmarshal(b, &l) != nil || l.ID != id:
			return nil, nil, fmt.Errorf("%s is damaged, so what it holds is not known: if nothing uses images now, remove the file", path)
		case !l.Expires.IsZero() && now.After(l.Expires):
			dead = append(dead, path)
		default:
			live = append(live, l)
		}
	}
	return live, dead, nil
}

// processAlive reports whether the process that made a directory in tmp still holds its lock.
func (s *Store) processAlive(process string) (bool, error) {
	guard, err := s.guardTemp()
	if err != nil {
		return false, err
	}
	defer guard.Close()
	lock, err := durable.Lock(s.path("tmp", process))
	switch {
	case errors.Is(err, durable.ErrLocked):
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	}
	return false, lock.Unlock()
}

// lockStore waits for the lock that keeps leases and collections apart: LOCK_SH to take a lease, LOCK_EX to find
// out what is held and remove the rest. It is held for a moment only.
func (s *Store) lockStore(ctx context.Context, how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "gc.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	pause := time.Millisecond
	for {
		err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", f.Name(), err), f.Close())
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, errors.Join(fmt.Errorf("wait for %s: %w", f.Name(), context.Cause(ctx)), f.Close())
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// touch remembers that an image was used, in the time stamp of its record. Whoever may not write to the store
// does not count as a use.
func (s *Store) touch(manifestDigest string) {
	if digits, err := digestHex(manifestDigest); err == nil {
		now := time.Now()
		_ = os.Chtimes(s.path("images", digits+".json"), now, now)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
