package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// ErrNotFound means that a store has no such sealed bytes, ErrDamaged that it has others under their name.
var (
	ErrNotFound = errors.New("the sealed bytes are not in the store")
	ErrDamaged  = errors.New("the sealed bytes are not those that were stored")
)

// MaxSealed is the largest that sealed bytes are, in bytes.
const MaxSealed = MaxPlain + 64<<10

// A Store keeps sealed bytes by their digest. Its methods may be called concurrently. What it is given is sealed
// already: a store that leaks gives nothing away but how much there is.
type Store interface {
	// Put returns when the bytes are durable. They are the same for the same digest, so that it may be called again.
	Put(ctx context.Context, sealed []byte) (digest string, err error)
	// Get returns bytes that have the digest, or an error that wraps ErrNotFound or ErrDamaged.
	Get(ctx context.Context, digest string) ([]byte, error)
	// Remove returns when the bytes are gone; that there are none is no error.
	Remove(ctx context.Context, digest string) error
	// List returns all that is stored, in no order.
	List(ctx context.Context) ([]Entry, error)
	Close() error
}

// An Entry is a thing that is stored.
type Entry struct {
	Digest string
	// At is when it was stored last.
	At time.Time
}

// A Dir is a Store in a directory: one file for each, named by its digest, readable by the owner only.
type Dir struct{ path string }

var _ Store = (*Dir)(nil)

const sealedSuffix = ".age"

// OpenDir opens a store in a directory, which is made when there is none. What a crash left half written is removed.
func OpenDir(path string) (*Dir, error) {
	if err := durable.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("open the store of secrets: %w", err)
	}
	return &Dir{path}, durable.RemoveTemps(path)
}

// ReadDir is OpenDir for a directory that may be another process's: nothing is made and nothing is removed.
func ReadDir(path string) *Dir { return &Dir{path} }

func (d *Dir) file(digest string) (string, error) {
	if !ValidDigest(digest) {
		return "", fmt.Errorf("%q is no digest of sealed bytes", digest)
	}
	return filepath.Join(d.path, strings.TrimPrefix(digest, digestPrefix)+sealedSuffix), nil
}

// Put implements Store.
func (d *Dir) Put(_ context.Context, sealed []byte) (string, error) {
	digest := Digest(sealed)
	path, err := d.file(digest)
	if err != nil {
		return "", err
	}
	return digest, durable.WriteFile(path, sealed, 0o600)
}

// Get implements Store.
func (d *Dir) Get(_ context.Context, digest string) ([]byte, error) {
	path, err := d.file(digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", digest, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sealed, err := io.ReadAll(io.LimitReader(f, MaxSealed+1))
	if err != nil {
		return nil, err
	}
	return sealed, Verify(digest, sealed)
}

// Verify says whether bytes are those that a digest names.
func Verify(digest string, sealed []byte) error {
	if len(sealed) > MaxSealed || Digest(sealed) != digest {
		return fmt.Errorf("%s: %w", digest, ErrDamaged)
	}
	return nil
}

// Remove implements Store.
func (d *Dir) Remove(_ context.Context, digest string) error {
	path, err := d.file(digest)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return durable.SyncDir(d.path)
}

// List implements Store.
func (d *Dir) List(context.Context) ([]Entry, error) {
	files, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Entry
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), sealedSuffix)
		if !ok || !ValidDigest(digestPrefix+name) {
			continue
		}
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed in the meantime
		}
		if err != nil {
			return nil, err
		}
		all = append(all, Entry{Digest: digestPrefix + name, At: info.ModTime()})
	}
	return all, nil
}

// Close implements Store.
func (d *Dir) Close() error { return nil }
