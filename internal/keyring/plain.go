package keyring

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// PlainError means that a key lies beside the sealed ones and is another one than that of its name.
type PlainError struct{ Name, Path string }

func (e *PlainError) Error() string {
	return fmt.Sprintf("%s has another key than the sealed one named %s", e.Path, e.Name)
}

// moved is what stands where a key once lay in the clear. A server from before keys were sealed finds no key in it and does
// not start; without the file it would make a new key, and whoever knows the old one would be locked out.
const moved = "# This key is sealed, in the file " + FileName + ". A version of the server that wants it here is given it by:\n#   pinnace server keys export DIRECTORY\n"

// plainPath is where a key lies in the clear.
func plainPath(dir, name string) string { return filepath.Join(dir, name+".key") }

// plain reads a key that lies in the clear; empty when there is none, or it has moved.
func plain(dir, name string) (text string, there bool, err error) {
	b, err := readOwn(plainPath(dir, name), false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", false, nil
	case err != nil:
		return "", true, fmt.Errorf("the key %s: %w", name, err)
	case string(b) == moved:
		return "", true, nil
	}
	return string(b), true, nil
}

// ReadPlain is a key of a directory in which nothing was sealed yet, or that was exported; empty when there is none.
func ReadPlain(dir, name string) (string, error) {
	text, _, err := plain(dir, name)
	return text, err
}

// Load gives the keys of a directory that have a maker, by name. What lies there in the clear, as it did before there was a
// master key, is sealed; what is nowhere is made. A PlainError says of a key that it is there twice, and differs.
func Load(dir string, master *Master, makers map[string]func() (string, error)) (Keys, error) {
	return changing(dir, func() (Keys, error) {
		keys, err := Read(dir, master)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if keys == nil {
			keys = Keys{}
		}
		changed := false
		var inTheClear []string // or nowhere
		for name, make := range makers {
			text, there, err := plain(dir, name)
			if err != nil {
				return nil, err
			}
			if text != "" || !there {
				inTheClear = append(inTheClear, name)
			}
			switch {
			case keys[name] != "" && text != "" && keys[name] != text:
				return nil, &PlainError{Name: name, Path: plainPath(dir, name)}
			case keys[name] != "":
				continue
			case text == "":
				if text, err = make(); err != nil {
					return nil, err
				}
			}
			keys[name], changed = text, true
		}
		if changed {
			if err := write(dir, master, keys); err != nil {
				return nil, err
			}
		}
		slices.Sort(inTheClear)
		for _, name := range inTheClear {
			if err := durable.WriteFile(plainPath(dir, name), []byte(moved), 0o600); err != nil {
				return nil, err
			}
		}
		return keys, nil
	})
}

// Replace puts a key in the place of that of its name.
func Replace(dir string, master *Master, name, text string) error {
	_, err := changing(dir, func() (Keys, error) {
		keys, err := Read(dir, master)
		if err != nil {
			return nil, err
		}
		keys[name] = text
		return keys, write(dir, master, keys)
	})
	return err
}

// Export writes keys in the clear into a directory, a file for each. It replaces nothing but what a key has moved from.
func Export(dir string, keys Keys) error {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, text := range keys {
		if name == "" || strings.ContainsAny(name, "/\x00") || name[0] == '.' {
			return fmt.Errorf("a key is named %q: %w", name, ErrDamaged)
		}
		if have, _, err := plain(dir, name); err != nil || have != "" && have != text {
			return errors.Join(err, fmt.Errorf("%s: %w", plainPath(dir, name), fs.ErrExist))
		}
	}
	for name, text := range keys {
		if err := durable.WriteFile(plainPath(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Copy is the file of the sealed keys of a directory, for a backup. Nobody reads a key from it without the master key.
func Copy(dir string) ([]byte, error) { return readOwn(Path(dir), false) }

// Restore puts a copy in its place, where there are neither sealed keys nor others; restored is false where there are.
func Restore(dir string, sealed []byte, names []string) (restored bool, err error) {
	return changing(dir, func() (bool, error) {
		have, err := readOwn(Path(dir), false)
		if !errors.Is(err, fs.ErrNotExist) {
			return err == nil && bytes.Equal(have, sealed), err
		}
		for _, name := range names {
			if text, _, err := plain(dir, name); err != nil || text != "" {
				return false, err
			}
		}
		return true, durable.WriteFile(Path(dir), sealed, 0o600)
	})
}
