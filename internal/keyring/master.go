package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// A Master is the key that a server's keys are sealed for, as it is in a file: keys of age, one a line. The first one
// seals, and all of them open.
type Master struct {
	// Path is where it is.
	Path string
	text []byte
	keys *secret.Keys
}

// ReadMaster reads a master key. shared is said of a file that a group may read, which is how systemd hands credentials
// to a service that has a user of its own. The error wraps fs.ErrNotExist, ErrOpen or ErrDamaged.
func ReadMaster(path string, shared bool) (*Master, error) {
	text, err := readOwn(path, shared)
	if err != nil {
		return nil, fmt.Errorf("the master key: %w", err)
	}
	keys, err := secret.ParseKeys(text)
	if err != nil {
		return nil, fmt.Errorf("the master key, %s: %w: %w", path, ErrDamaged, err)
	}
	return &Master{Path: path, text: text, keys: keys}, nil
}

// MakeMaster makes a master key in a file that is not there yet.
func MakeMaster(path string) (*Master, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("the master key, %s: %w", path, fs.ErrExist)
	}
	text, keys, err := newMaster()
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("the master key: %w", err)
	}
	if err := durable.WriteFile(path, text, 0o600); err != nil {
		return nil, fmt.Errorf("the master key: %w", err)
	}
	return &Master{Path: path, text: text, keys: keys}, nil
}

func newMaster() ([]byte, *secret.Keys, error) {
	text, err := secret.GenerateKey()
	if err != nil {
		return nil, nil, err
	}
	text = append([]byte("# the master key of a Pinnace server: opens the keys in its directory of keys, and those of its backups\n"), text...)
	keys, err := secret.ParseKeys(text)
	return text, keys, err
}

// Recipient is the public half of the key that seals.
func (m *Master) Recipient() string { return m.keys.Recipient() }

// Count is how many keys the file has: two, when a rotation was interrupted.
func (m *Master) Count() int { return m.keys.Count() }

// Rotate seals the keys of a directory for a new master key, and puts that in the place of the old one. Interrupted at any
// moment it leaves a file that opens the keys: it has both master keys from before the keys are sealed anew until after.
func Rotate(dir string, old *Master) (*Master, error) {
	return changing(dir, func() (*Master, error) {
		keys, err := Read(dir, old)
		if err != nil {
			return nil, err
		}
		text, fresh, err := newMaster()
		if err != nil {
			return nil, err
		}
		next := &Master{Path: old.Path, text: text, keys: fresh}
		// A rotation that was killed may have left a master key under a name of its own.
		if err := durable.RemoveTemps(filepath.Dir(old.Path)); err != nil {
			return nil, fmt.Errorf("the master key: %w", err)
		}
		if err := durable.WriteFile(old.Path, slices.Concat(text, old.text), 0o600); err != nil {
			return nil, fmt.Errorf("the master key: %w", err)
		}
		if err := write(dir, next, keys); err != nil {
			return nil, err
		}
		if err := durable.WriteFile(old.Path, text, 0o600); err != nil {
			return nil, fmt.Errorf("the master key: %w", err)
		}
		return next, nil
	})
}

// Reseal seals the keys of a directory for another master key, which is a file of its own already.
func Reseal(dir string, old, next *Master) error {
	_, err := changing(dir, func() (*Master, error) {
		keys, err := Read(dir, old)
		if err != nil {
			return nil, err
		}
		return next, write(dir, next, keys)
	})
	return err
}

// changing holds the ownership of a directory of keys while something in it is changed.
func changing[T any](dir string, change func() (T, error)) (T, error) {
	var none T
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return none, fmt.Errorf("the server's keys: %w", err)
	}
	held, err := durable.Lock(dir)
	if err != nil {
		return none, fmt.Errorf("the server's keys: %w", err)
	}
	out, err := none, durable.RemoveTemps(dir)
	if err == nil {
		out, err = change()
	}
	if err := errors.Join(err, held.Unlock()); err != nil {
		return none, err
	}
	return out, nil
}
