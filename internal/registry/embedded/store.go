package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"

	"github.com/pinnacehq/pinnace/internal/durable"
)

const driverName = "pinnace"

// registerDriver makes the store known to distribution, which finds drivers by name in a global table.
var registerDriver = sync.OnceFunc(func() { factory.Register(driverName, stores{}) })

type stores struct{}

// Create implements factory.StorageDriverFactory.
func (stores) Create(_ context.Context, parameters map[string]any) (driver.StorageDriver, error) {
	dir, ok := parameters["rootdirectory"].(string)
	if !ok {
		return nil, errors.New("the registry's storage has no directory")
	}
	return newStore(dir), nil
}

// store is distribution's filesystem driver, which syncs the files that it writes, with what it leaves out:
// the names. Without it a push can be answered with "created" and be gone after a power cut, because a
// blob is renamed into a new directory and neither directory is synced.
type store struct {
	*filesystem.Driver
	dir string
}

func newStore(dir string) *store {
	const threads = 100 // distribution's own default
	return &store{Driver: filesystem.New(filesystem.DriverParameters{RootDirectory: dir, MaxThreads: threads}), dir: dir}
}

// PutContent writes a small file. The driver syncs it and the directory that it is in.
func (s *store) PutContent(ctx context.Context, path string, content []byte) error {
	if err := s.makeParent(path); err != nil {
		return err
	}
	return s.Driver.PutContent(ctx, path, content)
}

// Writer opens a file for a blob on its way in.
func (s *store) Writer(ctx context.Context, path string, appending bool) (driver.FileWriter, error) {
	if err := s.makeParent(path); err != nil {
		return nil, err
	}
	return s.Driver.Writer(ctx, path, appending)
}

// Move gives a file its final name; with it a blob has arrived.
func (s *store) Move(ctx context.Context, from, to string) error {
	if err := s.makeParent(to); err != nil {
		return err
	}
	if err := s.Driver.Move(ctx, from, to); err != nil {
		return err
	}
	return durable.SyncDir(s.parent(to))
}

// Delete removes a tag, a manifest or an upload, for good: one that was deleted does not come back after a
// power cut.
func (s *store) Delete(ctx context.Context, path string) error {
	if err := s.Driver.Delete(ctx, path); err != nil {
		return err
	}
	if err := durable.SyncDir(s.parent(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (s *store) parent(path string) string { return filepath.Dir(filepath.Join(s.dir, path)) }

// makeParent creates the directories above path, durably. Deletes of whole directories may run at the same
// time, so one try is not always enough.
func (s *store) makeParent(path string) error {
	var err error
	for range 3 {
		if err = durable.MkdirAll(s.parent(path), 0o700); !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("make directory of %s: %w", path, err)
	}
	return nil
}
