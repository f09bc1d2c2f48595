// Package lastuse keeps when tokens were used last, in a file, or in a database (package postgres).
//
// It is no part of what was decided, so it is not in the event log: it may be lost, or be a minute old, and nobody's rights
// rest on it. Whoever asks gets the latest time that any server has saved.
package lastuse

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// A Store keeps times by the ids of tokens. Its methods may be called concurrently.
type Store interface {
	// Load returns all that were saved.
	Load(ctx context.Context) (map[string]time.Time, error)
	// Save adds times. Of a token that has one already the later is kept: servers save in any order.
	Save(ctx context.Context, used map[string]time.Time) error
	Close() error
}

// maxFile bounds what is read of a file, in bytes: about half a million tokens.
const maxFile = 32 << 20

// A File is a Store in a file of one server.
type File struct {
	path string
	mu   sync.Mutex // held while the file is read or written
}

var _ Store = (*File)(nil)

// InFile is a store in a file. Neither that nor its directory need be there yet.
func InFile(path string) *File { return &File{path: path} }

// Load implements Store.
func (f *File) Load(context.Context) (map[string]time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.load()
}

func (f *File) load() (map[string]time.Time, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]time.Time{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read when tokens were used: %w", err)
	}
	defer file.Close()
	used := map[string]time.Time{}
	if err := json.NewDecoder(io.LimitReader(file, maxFile)).Decode(&used); err != nil {
		return nil, fmt.Errorf("read when tokens were used, %s: %w", f.path, err)
	}
	return used, nil
}

// Save implements Store. A file that cannot be read is replaced: what was in it is of little worth.
func (f *File) Save(_ context.Context, used map[string]time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	all, err := f.load()
	if err != nil {
		all = map[string]time.Time{}
	}
	Merge(all, used)
	b, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		return err
	}
	return durable.WriteFile(f.path, append(b, '\n'), 0o600)
}

// Close implements Store.
func (f *File) Close() error { return nil }

// Merge adds times to others, of which the later ones stay.
func Merge(into, more map[string]time.Time) {
	for id, at := range maps.All(more) {
		if at.After(into[id]) {
			into[id] = at
		}
	}
}
