//go:build linux

package pid1

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// awkward are values that quoting goes wrong with.
var awkward = []string{
	"", "plain", "a b", "it's", `say "hi"`, `both ' and "`, "$HOME", "`id`", "$(id)", `back\slash`, `'\`, `\'`, `"\"'$x`, "#no comment", "a #b",
	"line\nbreak", "two'\n\"lines", "\ttab ", " lead", "trail ", "\r\n", "!history", "*", "~", "a=b", "ünïcödé", "';id;'", "\\n", "${x:-y}", "-----BEGIN KEY-----\nabc=\n-----END KEY-----\n",
}

// TestDotenv has a shell read what was written.
func TestDotenv(t *testing.T) {
	values := guest.SecretValues{}
	for i, v := range awkward {
		values[fmt.Sprintf("K%02d", i)] = []byte(v)
	}
	text, err := renderDotenv(values)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `set -a; . "$0"; exec env -0`, path)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Split(string(out), "\x00")
	for key, want := range values {
		if !slices.Contains(got, key+"="+string(want)) {
			t.Errorf("%s: the shell has not %q, of\n%s", key, want, text)
		}
	}
	if again, _ := renderDotenv(values); string(again) != string(text) {
		t.Error("the same values give other bytes")
	}
	for key, value := range map[string]string{"a.b": "x", "1a": "x", "A": "nul\x00"} {
		if text, err := renderDotenv(guest.SecretValues{key: []byte(value)}); err == nil || strings.Contains(err.Error(), "nul\x00") {
			t.Errorf("%s=%q: got %q, %v", key, value, text, err)
		}
	}
}

// unquote reads what quote has written, as a POSIX shell does.
func unquote(t *testing.T, text string) string {
	t.Helper()
	if text == "" || !strings.ContainsAny(text[:1], `'"`) {
		return text
	}
	mark, inner := text[0], text[1:len(text)-1]
	if len(text) < 2 || text[len(text)-1] != mark {
		t.Fatalf("%q does not end as it begins", text)
	}
	if mark == '\'' {
		if strings.Contains(inner, "'") {
			t.Fatalf("%q ends early", text)
		}
		return inner
	}
	var out strings.Builder
	for i := 0; i < len(inner); i++ {
		switch c := inner[i]; {
		case c == '\\' && i+1 < len(inner) && strings.IndexByte("\"$`\\", inner[i+1]) >= 0:
			i++
			out.WriteByte(inner[i])
		case strings.IndexByte("\"$`", c) >= 0:
			t.Fatalf("%q has a bare %c", text, c)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

func FuzzQuote(f *testing.F) {
	for _, v := range awkward {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if got := unquote(t, quote(v)); got != v {
			t.Errorf("%q became %q", v, got)
		}
	})
}

func TestJSON(t *testing.T) {
	got, err := renderJSON(guest.SecretValues{"b": []byte("<a&b>"), "a": []byte("x\ny"), "B.c-d": nil})
	const want = "{\n  \"B.c-d\": \"\",\n  \"a\": \"x\\ny\",\n  \"b\": \"<a&b>\"\n}\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := renderJSON(guest.SecretValues{"k": {0xff}}); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("got %v", err)
	}
	if _, err := renderSecrets("toml", nil); err == nil {
		t.Error("any format will do")
	}
}

func TestSecretVariables(t *testing.T) {
	values := guest.SecretValues{"A": []byte("1=2"), "N": []byte("a\x00b")}
	if got, err := secretVariables([]string{"A"}, values); err != nil || !slices.Equal(got, []string{"A=1=2"}) {
		t.Errorf("got %q, %v", got, err)
	}
	for _, key := range []string{"B", "N"} {
		if _, err := secretVariables([]string{key}, values); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: got %v", key, err)
		}
	}
}

func testSecret(t *testing.T, format string) *secret {
	t.Helper()
	return &secret{
		Secret: guest.Secret{Bundle: "api", Format: format, Mode: 0o440}, root: t.TempDir(),
		uid: uint32(os.Getuid()), gid: uint32(os.Getgid()),
	}
}

// versions makes bundles whose values all name their version, with keys that come and go.
func versionOf(n int) guest.SecretValues {
	v := guest.SecretValues{}
	for i := range 4 {
		v[fmt.Sprint("key", i)] = fmt.Append(nil, n)
	}
	if n%2 == 1 {
		v["odd"] = fmt.Append(nil, n)
	}
	return v
}

// TestReplaceUnderReaders replaces versions while others read: each of them sees one version, whole.
func TestReplaceUnderReaders(t *testing.T) {
	const versions = 300
	for _, format := range []string{guest.FormatDir, guest.FormatJSON} {
		t.Run(format, func(t *testing.T) {
			s := testSecret(t, format)
			if err := s.write(versionOf(0)); err != nil {
				t.Fatal(err)
			}
			read := readDirOnce
			if format == guest.FormatJSON {
				read = readJSONOnce
			}
			stop, failed := make(chan struct{}), make(chan error, 2)
			reads := make(chan int, 2)
			for range 2 {
				go func() {
					n := 0
					for {
						select {
						case <-stop:
							reads <- n
							failed <- nil
							return
						default:
						}
						if err := read(s.root); err != nil {
							reads <- n
							failed <- err
							return
						}
						n++
					}
				}()
			}
			for n := 1; n <= versions; n++ {
				if err := s.write(versionOf(n)); err != nil {
					t.Fatal(err)
				}
			}
			close(stop)
			for range 2 {
				if n, err := <-reads, <-failed; err != nil {
					t.Errorf("after %d reads: %v", n, err)
				}
			}
			// Within the time that readers have, the version before is all that is left of the others.
			found, err := os.ReadDir(s.root)
			if err != nil {
				t.Fatal(err)
			}
			if want := map[string]int{guest.FormatDir: 7, guest.FormatJSON: 1}[format]; len(found) != want {
				t.Errorf("%v is there, expected %d names", found, want)
			}
		})
	}
}

// readDirOnce reads a version through the link to its directory, as a reader does that wants several keys of one.
func readDirOnce(root string) error {
	version, err := os.Readlink(filepath.Join(root, dataLink))
	if err != nil {
		return err
	}
	return readVersion(filepath.Join(root, version))
}

func readVersion(dir string) error {
	found, err := os.ReadDir(dir)
	if err != nil {
		return nil // two versions on in the meantime
	}
	seen := map[string]bool{}
	for _, e := range found {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil
		}
		seen[string(b)] = true
	}
	if len(seen) > 1 {
		return fmt.Errorf("%s has the values of several versions: %v", dir, seen)
	}
	return nil
}

func readJSONOnce(root string) error {
	b, err := os.ReadFile(filepath.Join(root, fileName))
	if err != nil {
		return err
	}
	var values map[string]string
	if err := json.Unmarshal(b, &values); err != nil {
		return err
	}
	for _, v := range values {
		if v != values["key0"] {
			return fmt.Errorf("the values of several versions: %v", values)
		}
	}
	n, err := strconv.Atoi(values["key0"])
	if _, odd := values["odd"]; err != nil || odd != (n%2 == 1) {
		return fmt.Errorf("keys of another version: %v", values)
	}
	return nil
}

// TestSecretFiles looks at names, modes and links.
func TestSecretFiles(t *testing.T) {
	s := testSecret(t, guest.FormatDir)
	for n := range 2 {
		if err := s.write(versionOf(n + 1)); err != nil {
			t.Fatal(err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(s.root, "key3")); err != nil || string(b) != "2" {
		t.Errorf("got %q, %v", b, err)
	}
	if _, err := os.Lstat(filepath.Join(s.root, "odd")); err == nil {
		t.Error("a key that is gone has a file")
	}
	for name, want := range map[string]os.FileMode{"key0": 0o440, "..2": 0o550 | os.ModeDir} {
		if info, err := os.Stat(filepath.Join(s.root, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: got %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	// A version that can't be written leaves the one before.
	if err := os.Mkdir(filepath.Join(s.root, "..3"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.write(versionOf(3)); err == nil {
		t.Error("wrote over something else")
	}
	if b, err := os.ReadFile(filepath.Join(s.root, "key3")); err != nil || string(b) != "2" {
		t.Errorf("got %q, %v", b, err)
	}
	if got := (&secret{Secret: guest.Secret{Mode: 0o604}}).dirMode(); got != 0o705 {
		t.Errorf("a directory of files with 0604 has %04o", got)
	}
}

func TestBundlesBeforeAndAfterConfig(t *testing.T) {
	c := newControl(nil, newStops())
	c.bundle(guest.Bundle{Name: "a", Version: 1})
	c.bundle(guest.Bundle{Name: "a", Version: 2}) // of a further session
	c.configured = true
	c.bundle(guest.Bundle{Name: "a", Version: 3})
	if first := c.takeBundles(); len(first) != 1 || first["a"].Version != 2 {
		t.Errorf("before: %v", first)
	}
	select {
	case b := <-c.bundles:
		if b.Version != 3 {
			t.Errorf("after: %v", b)
		}
	case <-time.After(time.Second):
		t.Error("nothing came after")
	}
}
