package keyring

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// makers make "NAME canary 1", "NAME canary 2" and so on.
func makers(names ...string) map[string]func() (string, error) {
	out := map[string]func() (string, error){}
	n := 0
	for _, name := range names {
		out[name] = func() (string, error) {
			n++
			return fmt.Sprintf("%s canary %d\n", name, n), nil
		}
	}
	return out
}

func none(t *testing.T, names ...string) map[string]func() (string, error) {
	out := map[string]func() (string, error){}
	for _, name := range names {
		out[name] = func() (string, error) {
			t.Errorf("a key %s was made", name)
			return "", errors.New("made")
		}
	}
	return out
}

func mustMaster(t *testing.T, path string) *Master {
	t.Helper()
	m, err := ReadMaster(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		m, err = MakeMaster(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// holds checks what a master key in a file opens.
func holds(t *testing.T, dir, path string, want Keys) {
	t.Helper()
	got, err := Read(dir, mustMaster(t, path))
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestKeysAreSealed(t *testing.T) {
	dir, path := filepath.Join(t.TempDir(), "keys"), filepath.Join(t.TempDir(), "elsewhere", "master.key")
	master := mustMaster(t, path)
	if _, err := MakeMaster(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made another master key in the same place: %v", err)
	}
	if _, err := Read(dir, master); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no keys: got %v", err)
	}
	keys, err := Load(dir, master, makers("ca", "log"))
	if err != nil || len(keys) != 2 {
		t.Fatalf("got %v, %v", keys, err)
	}
	again, err := Load(dir, mustMaster(t, path), none(t, "ca", "log"))
	if err != nil || !maps.Equal(again, keys) {
		t.Errorf("got %v, %v", again, err)
	}
	// A key of a later version is made beside the others.
	more, err := Load(dir, master, makers("ca", "log", "secrets"))
	if err != nil || len(more) != 3 || more["ca"] != keys["ca"] {
		t.Errorf("got %v, %v", more, err)
	}
	holds(t, dir, path, more)
	wantNoCanary(t, dir)
	for _, shown := range []string{fmt.Sprintf("%v %+v %#v", more, more, more), more.LogValue().String()} {
		if strings.Contains(shown, "canary") {
			t.Errorf("keys show as %s", shown)
		}
	}
	if info, err := os.Stat(Path(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
}

// wantNoCanary looks for keys in the clear.
func wantNoCanary(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || strings.Contains(string(b), "canary") {
			t.Errorf("%s has a key in the clear, %v", e.Name(), err)
		}
	}
}

// TestPlainKeysAreSealed: keys from before there was a master key are taken over, and leave behind what an earlier version
// refuses to start with.
func TestPlainKeysAreSealed(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "master.key")
	was := Keys{"ca": "ca canary\n", "log": "log canary\n"}
	for name, text := range was {
		write600(t, plainPath(dir, name), text)
	}
	for range 2 {
		keys, err := Load(dir, mustMaster(t, path), none(t, "ca", "log"))
		if err != nil || !maps.Equal(keys, was) {
			t.Fatalf("got %v, %v", keys, err)
		}
	}
	wantNoCanary(t, dir)
	for name := range was {
		b, err := os.ReadFile(plainPath(dir, name))
		if err != nil || !strings.HasPrefix(string(b), "# ") || strings.Contains(string(b), "-----BEGIN") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}

	// The way back, and forth again.
	if err := Export(dir, was); err != nil {
		t.Fatal(err)
	}
	if text, err := ReadPlain(dir, "ca"); err != nil || text != was["ca"] {
		t.Errorf("got %q, %v", text, err)
	}
	if _, err := Load(dir, mustMaster(t, path), none(t, "ca", "log")); err != nil {
		t.Error(err)
	}
	wantNoCanary(t, dir)

	// Another key in the place of one that is sealed is somebody's intention, or a mistake.
	write600(t, plainPath(dir, "ca"), "other canary\n")
	var twice *PlainError
	if _, err := Load(dir, mustMaster(t, path), none(t, "ca", "log")); !errors.As(err, &twice) || twice.Name != "ca" {
		t.Errorf("got %v", err)
	}
	if err := Export(dir, was); !errors.Is(err, fs.ErrExist) {
		t.Errorf("exported over another key: %v", err)
	}
	if err := Replace(dir, mustMaster(t, path), "ca", "other canary\n"); err != nil {
		t.Fatal(err)
	}
	keys, err := Load(dir, mustMaster(t, path), none(t, "ca", "log"))
	if err != nil || keys["ca"] != "other canary\n" || keys["log"] != was["log"] {
		t.Errorf("got %v, %v", keys, err)
	}
	wantNoCanary(t, dir)
}

func write600(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "master.key")
	keys, err := Load(dir, mustMaster(t, path), makers("ca"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := os.ReadFile(Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func() error {
		m, err := ReadMaster(path, false)
		if err == nil {
			_, err = Read(dir, m)
		}
		return err
	}
	whole := func() {
		t.Helper()
		for file, b := range map[string][]byte{path: text, Path(dir): sealed} {
			if err := errors.Join(os.RemoveAll(file), durable.WriteFile(file, b, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		holds(t, dir, path, keys)
	}
	for _, tt := range []struct {
		what string
		do   func() error
		want error
		says string
	}{
		{"no master key", func() error { return os.Remove(path) }, fs.ErrNotExist, path},
		{"another master key", func() error {
			m, err := MakeMaster(path + ".other")
			if err != nil {
				return err
			}
			return os.Rename(m.Path, path)
		}, secret.ErrKey, Path(dir)},
		{"no key in the file", func() error { return os.WriteFile(path, []byte("canary\n"), 0o600) }, ErrDamaged, path},
		{"an empty file", func() error { return os.WriteFile(path, nil, 0o600) }, ErrDamaged, path},
		{"a key that is cut", func() error { return os.WriteFile(path, text[:len(text)-3], 0o600) }, ErrDamaged, path},
		{"too large a file", func() error { return os.Truncate(path, maxFile+1) }, ErrDamaged, path},
		{"a directory", func() error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, ErrDamaged, path},
		{"a master key that all can read", func() error { return os.Chmod(path, 0o644) }, ErrOpen, "chmod 600 " + path},
		{"a master key that a group can read", func() error { return os.Chmod(path, 0o640) }, ErrOpen, "chmod 600 " + path},
		{"sealed keys that all can read", func() error { return os.Chmod(Path(dir), 0o604) }, ErrOpen, "chmod 600 " + Path(dir)},
		{"no sealed keys", func() error { return os.Remove(Path(dir)) }, fs.ErrNotExist, Path(dir)},
		{"sealed keys that are cut", func() error { return os.Truncate(Path(dir), int64(len(sealed)-1)) }, ErrDamaged, Path(dir)},
		{"empty sealed keys", func() error { return os.Truncate(Path(dir), 0) }, ErrDamaged, Path(dir)},
		{"a bit in them", func() error {
			bad := append([]byte(nil), sealed...)
			bad[len(bad)-1] ^= 1
			return os.WriteFile(Path(dir), bad, 0o600)
		}, ErrDamaged, Path(dir)},
		{"something else that was sealed", func() error {
			other, err := mustMaster(t, path).keys.Seal([]byte(`{"kind":"secret bundle"}`))
			if err != nil {
				return err
			}
			return os.WriteFile(Path(dir), other, 0o600)
		}, ErrDamaged, Path(dir)},
		{"keys of a later version", func() error {
			other, err := mustMaster(t, path).keys.Seal([]byte(`{"format":"pinnace keys 2","keys":{"a":"b"}}`))
			if err != nil {
				return err
			}
			return os.WriteFile(Path(dir), other, 0o600)
		}, ErrNewer, Path(dir)},
	} {
		if err := tt.do(); err != nil {
			t.Fatalf("%s: %v", tt.what, err)
		}
		err := read()
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: got %v, want %v with %q", tt.what, err, tt.want, tt.says)
		}
		whole()
	}

	// A credential of systemd may be read by a group, and by no more.
	for mode, want := range map[fs.FileMode]error{0o440: nil, 0o400: nil, 0o444: ErrOpen, 0o460: ErrOpen} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadMaster(path, true); !errors.Is(err, want) {
			t.Errorf("a credential of mode %04o: got %v, want %v", mode, err, want)
		}
	}
	if os.Geteuid() == 0 {
		whole()
		if err := os.Chown(path, 65534, 0); err != nil {
			t.Fatal(err)
		}
		if err := read(); !errors.Is(err, ErrOpen) || !strings.Contains(err.Error(), "user 65534") {
			t.Errorf("somebody else's: got %v", err)
		}
	}
}

func TestRotate(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "master.key")
	keys, err := Load(dir, mustMaster(t, path), makers("ca", "log"))
	if err != nil {
		t.Fatal(err)
	}
	first := mustMaster(t, path)
	second, err := Rotate(dir, first)
	if err != nil || second.Recipient() == first.Recipient() {
		t.Fatalf("got %v, %v", second, err)
	}
	holds(t, dir, path, keys)
	if _, err := Read(dir, first); !errors.Is(err, secret.ErrKey) {
		t.Errorf("the old master key: %v", err)
	}
	if m := mustMaster(t, path); m.Count() != 1 || m.Recipient() != second.Recipient() {
		t.Errorf("the file has %d keys", m.Count())
	}
	if _, err := Rotate(dir, first); !errors.Is(err, secret.ErrKey) {
		t.Errorf("rotated with the old master key: %v", err)
	}
	holds(t, dir, path, keys)

	next, err := MakeMaster(path + ".next")
	if err != nil {
		t.Fatal(err)
	}
	if err := Reseal(dir, mustMaster(t, path), next); err != nil {
		t.Fatal(err)
	}
	holds(t, dir, next.Path, keys)
	if _, err := Read(dir, mustMaster(t, path)); !errors.Is(err, secret.ErrKey) {
		t.Errorf("the master key before: %v", err)
	}

	held, err := durable.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Rotate(dir, next); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("rotated what somebody else was changing: %v", err)
	}
	if err := held.Unlock(); err != nil {
		t.Fatal(err)
	}
}

func TestRestore(t *testing.T) {
	dir, path := t.TempDir(), filepath.Join(t.TempDir(), "master.key")
	keys, err := Load(dir, mustMaster(t, path), makers("ca"))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Copy(dir)
	if err != nil {
		t.Fatal(err)
	}
	fresh := filepath.Join(t.TempDir(), "keys")
	if done, err := Restore(fresh, sealed, []string{"ca"}); err != nil || !done {
		t.Errorf("got %v, %v", done, err)
	}
	holds(t, fresh, path, keys)
	if done, err := Restore(fresh, append(sealed, 1), []string{"ca"}); err != nil || done {
		t.Errorf("over others: got %v, %v", done, err)
	}
	holds(t, fresh, path, keys)
	clear := t.TempDir()
	write600(t, plainPath(clear, "ca"), "canary")
	if done, err := Restore(clear, sealed, []string{"ca"}); err != nil || done {
		t.Errorf("beside keys in the clear: got %v, %v", done, err)
	}
	if err := Export(fresh, Keys{"../ca": "x"}); err == nil {
		t.Error("exported out of the directory")
	}
}
