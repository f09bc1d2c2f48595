// Package keyring keeps the keys of a server in one file, sealed for a master key that is somewhere else: a copy of the
// server's directory, of its database or of a backup opens nothing.
//
// One file, because it is replaced whole or not at all: whatever is changed, and whenever that is interrupted, all keys
// are those of before or all are the new ones, and the master key that is on the disk at that moment opens them.
//
// What the keys are for is not this package's business.
package keyring

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// FileName is the file of the sealed keys in a directory of keys.
const FileName = "sealed.age"

// format is how the text begins that is sealed. What begins otherwise was written by another version.
const format = "pinnace keys 1"

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// Errors that callers tell apart; what is said with them names the file.
var (
	// ErrOpen means that others than the owner could read a file, or replace it.
	ErrOpen = errors.New("others than its owner can read it")
	// ErrDamaged means that a file is not what was written.
	ErrDamaged = errors.New("it is damaged, or it is no file of keys")
	// ErrNewer means that the keys were sealed by a version that came after this one.
	ErrNewer = errors.New("it was written by another version of the server")
)

// Keys are the texts of keys, by name. They print as their names.
type Keys map[string]string

var _ slog.LogValuer = Keys{}

// String is the names.
func (k Keys) String() string { return strings.Join(slices.Sorted(maps.Keys(k)), ", ") }

// GoString implements fmt.GoStringer.
func (k Keys) GoString() string { return k.String() }

// LogValue keeps keys out of logs.
func (k Keys) LogValue() slog.Value { return slog.StringValue(k.String()) }

type sealedKeys struct {
	Format string            `json:"format"`
	Keys   map[string]string `json:"keys"`
}

// Path is the file of the sealed keys in a directory.
func Path(dir string) string { return filepath.Join(dir, FileName) }

// Read opens the keys of a directory. The error wraps fs.ErrNotExist when there are none, secret.ErrKey when the master
// key is another one, and ErrOpen, ErrDamaged or ErrNewer.
func Read(dir string, master *Master) (Keys, error) {
	path := Path(dir)
	sealed, err := readOwn(path, false)
	if err != nil {
		return nil, fmt.Errorf("the server's keys: %w", err)
	}
	text, err := master.keys.Open(sealed)
	switch {
	case errors.Is(err, secret.ErrKey):
		return nil, fmt.Errorf("the server's keys in %s were sealed for another master key than %s has (%s): %w", path, master.Path, master.keys.Recipient(), secret.ErrKey)
	case err != nil:
		return nil, fmt.Errorf("the server's keys in %s: %w", path, ErrDamaged)
	}
	var held sealedKeys
	if json.Unmarshal(text, &held) != nil || held.Format == "" || len(held.Keys) == 0 {
		return nil, fmt.Errorf("the server's keys in %s: %w", path, ErrDamaged) // the text of the error could have some of a key
	}
	if held.Format != format {
		return nil, fmt.Errorf("the server's keys in %s: %w", path, ErrNewer)
	}
	return held.Keys, nil
}

// write seals keys into a directory. When it returns nil they are durable; otherwise the file is what it was.
func write(dir string, master *Master, keys Keys) error {
	text, err := json.Marshal(sealedKeys{Format: format, Keys: keys})
	if err != nil {
		return errors.New("the server's keys cannot be encoded")
	}
	sealed, err := master.keys.Seal(append(text, '\n'))
	if err != nil {
		return fmt.Errorf("seal the server's keys: %w", err)
	}
	return durable.WriteFile(Path(dir), sealed, 0o600)
}

// readOwn reads a small file that nobody but its owner can read, and nobody but the one who runs this, or root, owns.
// A group may read one that is shared.
func readOwn(path string, shared bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	forbidden := os.FileMode(0o077)
	if shared {
		forbidden = 0o027
	}
	switch owner := ownerOf(info); {
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s: %w", path, ErrDamaged)
	case info.Mode().Perm()&forbidden != 0:
		return nil, fmt.Errorf("%s (mode %04o): %w: chmod 600 %s", path, info.Mode().Perm(), ErrOpen, path)
	case owner != 0 && owner != os.Geteuid():
		return nil, fmt.Errorf("%s belongs to user %d: %w", path, owner, ErrOpen)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s: %w", path, ErrDamaged)
	}
	return b, nil
}
