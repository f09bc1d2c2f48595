package importer_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/importer"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

var update = flag.Bool("update", false, "write what comes out into the golden files")

// Each file of testdata has beside it what comes out: FILE.golden, the manifest, and then what was not carried
// over. A file with several services says which one in `FILE=service`.
func TestGolden(t *testing.T) {
	services := map[string]string{"groups.toml": "web", "batch.hcl": "export", "wordpress.yaml": "wordpress", "limits.yaml": "db", "web.nomad.hcl": "", "stack.yml": ""}
	files, err := filepath.Glob("testdata/*/*[^n]")
	if err != nil || len(files) < 9 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		format := importer.FormatOf(file)
		if format == "" {
			continue // golden
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(format) != filepath.Base(filepath.Dir(file)) {
				t.Errorf("format: got %s", format)
			}
			r, err := importer.Convert(src, format, services[filepath.Base(file)])
			if err != nil {
				t.Fatal(err)
			}
			if m, problems := manifest.Parse(r.Manifest); m == nil {
				t.Errorf("not a manifest: %v", problems.Err())
			}
			got := render(r)
			golden := file + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

func render(r *importer.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "service %s of %s, image %q\n\n%s\n", r.Service, strings.Join(r.Services, ", "), r.Image, r.Manifest)
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "%d: %s: %s: %s\n", n.Line, n.Kind, n.Key, n.Reason)
	}
	return b.String()
}

func TestServiceHasToBeNamed(t *testing.T) {
	src, err := os.ReadFile("testdata/compose/wordpress.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "nosuch"} {
		_, err := importer.Convert(src, importer.Compose, name)
		if !errors.Is(err, importer.ErrService) || !strings.Contains(err.Error(), "db, wordpress") {
			t.Errorf("%q: got %v", name, err)
		}
	}
}
