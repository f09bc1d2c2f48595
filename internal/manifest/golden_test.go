package manifest

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gowebpki/jcs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// corpus gives the files of a folder of testdata by name.
func corpus(t testing.TB, folder string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", folder, "*.toml"))
	if err != nil || len(paths) < 20 {
		t.Fatalf("testdata/%s: %d files, %v", folder, len(paths), err)
	}
	files := make(map[string][]byte, len(paths))
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(p), ".toml")] = b
	}
	return files
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestValid holds the canonical bytes of schema v1 in place. A difference here means that releases which
// exist get another id: the files may gain neighbours, but those that are there must never change.
func TestValid(t *testing.T) {
	var hashes []string
	for name, src := range corpus(t, "valid") {
		t.Run(name, func(t *testing.T) {
			m, problems := Parse(src)
			if m == nil {
				t.Fatalf("refused:\n%v", problems.Err())
			}
			canonical := m.Canonical()
			golden(t, filepath.Join("testdata/valid", name+".json"), canonical)

			var said bytes.Buffer
			problems.Render(&said, name+".toml", src, RenderOptions{Caret: true})
			m.Unsupported().Render(&said, name+".toml", src, RenderOptions{})
			golden(t, filepath.Join("testdata/valid", name+".txt"), said.Bytes())

			if independent, err := jcs.Transform(canonical); err != nil || !bytes.Equal(independent, canonical) {
				t.Errorf("not RFC 8785: %v\n got %s\nwant %s", err, canonical, independent)
			}
			again, err := ParseCanonical(canonical)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m, again, cmp.FilterPath(unexported, cmp.Ignore())); diff != "" {
				t.Errorf("read back from the canonical form (-want +got):\n%s", diff)
			}
			if m.Hash() != again.Hash() || m.Hash() != HashOf(canonical) {
				t.Errorf("hashes differ: %s, %s, %s", m.Hash(), again.Hash(), HashOf(canonical))
			}
			hashes = append(hashes, strings.TrimPrefix(string(m.Hash()), hashPrefix)+"  "+name+".json\n")
		})
	}
	slices.SortFunc(hashes, func(a, b string) int { return strings.Compare(a[66:], b[66:]) })
	golden(t, "testdata/valid/SHA256SUMS", []byte(strings.Join(hashes, "")))
}

func unexported(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && strings.ToLower(f.Name()[:1]) == f.Name()[:1]
}

func TestDefaultsWrittenDownChangeNothing(t *testing.T) {
	files := corpus(t, "valid")
	short, _ := Parse(files["minimal"])
	long, _ := Parse(files["defaults-spelled-out"])
	if short.Hash() != long.Hash() {
		t.Errorf("got %s and %s", short.Hash(), long.Hash())
	}
	values, defaults := short.Counts()
	valuesLong, defaultsLong := long.Counts()
	if values-defaults != 7 || defaultsLong != 0 || valuesLong < values {
		t.Errorf("minimal: %d values, %d of them defaults; spelled out: %d, %d", values, defaults, valuesLong, defaultsLong)
	}
}

func TestInvalid(t *testing.T) {
	for name, src := range corpus(t, "invalid") {
		t.Run(name, func(t *testing.T) {
			m, problems := Parse(src)
			if m != nil || !problems.HasErrors() {
				t.Fatal("accepted")
			}
			var said bytes.Buffer
			problems.Render(&said, name+".toml", src, RenderOptions{Caret: true})
			golden(t, filepath.Join("testdata/invalid", name+".txt"), said.Bytes())
		})
	}
}

// TestEveryCodeIsInTheCorpus keeps a code from existing that nothing can cause.
func TestEveryCodeIsInTheCorpus(t *testing.T) {
	seen := make(map[string]bool)
	for _, folder := range []string{"valid", "invalid"} {
		for _, src := range corpus(t, folder) {
			m, problems := Parse(src)
			if m != nil {
				problems = slices.Concat(problems, m.Unsupported(), m.CheckCount(2))
			}
			for _, p := range problems {
				seen[p.Code] = true
			}
		}
	}
	pending := slices.ContainsFunc(table(), func(k Key) bool { return len(k.Pending) > 0 })
	for _, c := range Codes() {
		if c.Code == CodeUnsupported && !pending {
			continue // TestUnsupported causes it
		}
		if !seen[c.Code] {
			t.Errorf("no file of the corpus causes %s", c.Code)
		}
		delete(seen, c.Code)
	}
	for code := range seen {
		t.Errorf("%s is not in Codes", code)
	}
}

func TestHashIsThatOfSha256sum(t *testing.T) {
	// printf '{"schema":"v1"}' | sha256sum
	const want = "6c32b25ddfcd07e8bcadde61d592dc1f57b09a24cc079e6387af6dfb3e4e8456"
	got := HashOf([]byte(`{"schema":"v1"}`))
	if _, err := hex.DecodeString(strings.TrimPrefix(string(got), hashPrefix)); err != nil || string(got) != fmt.Sprintf("sha256:%s", want) {
		t.Errorf("got %s, want sha256:%s", got, want)
	}
}
