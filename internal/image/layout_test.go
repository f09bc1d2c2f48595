package image_test

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// A large image of files that nobody made for this test is what umoci unpacks of it, but for times of directories
// that are umoci's own: where no entry gave one, or something in the directory was changed after it. The image is one
// of Debian's packages, or what PINNACE_LAYOUT names, a directory with an OCI image layout.
func TestImageEqualsUmoci(t *testing.T) {
	umoci := needUmoci(t)
	layout, tag := os.Getenv("PINNACE_LAYOUT"), os.Getenv("PINNACE_LAYOUT_TAG")
	if layout == "" {
		b, err := Debian(t.TempDir(), DebianPackages()...)
		if err != nil {
			t.Skip("needs Debian's packages: ", err)
		}
		layout, tag = filepath.Join(t.TempDir(), "layout"), "debian"
		if err := b.Build().WriteLayout(layout, tag); err != nil {
			t.Fatal(err)
		}
	}
	if tag == "" {
		t.Fatalf("PINNACE_LAYOUT_TAG says which image of %s is meant", layout)
	}
	src, err := OpenLayout(layout, tag)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, t.TempDir())
	img := pull(t, s, src)
	got := seen(t, img)
	start := time.Now()
	want, err := unpack(t, umoci, layout, tag)
	if err != nil {
		t.Fatal("umoci: ", err)
	}
	tree, err := s.Tree(img)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	own, touched := traces(t, img, tree)
	theirs := map[string]Node{}
	for _, n := range want {
		theirs[n.Path] = n
	}
	times := 0
	for at, what := range Differences(got, want) {
		name, isTime := strings.CutSuffix(at, ": time")
		n := theirs[name]
		seconds, _, _ := strings.Cut(n.Mtime, ".")
		untold := n.Mode&0o170000 == 0o040000 && touched[name] > own[name] && seconds >= fmt.Sprint(start.Unix()-1)
		if isTime && untold {
			times++
			continue
		}
		t.Errorf("%s: %.300s", at, what)
	}
	t.Logf("%d names in %d layers; umoci's own times on %d directories", len(got), len(img.Layers), times)
}

// traces tells at which entry of the layers, counted over all of them, a directory had its own last one, and at
// which something was last put into it or taken away.
func traces(t *testing.T, img *image.Image, tree *image.Tree) (own, touched map[string]int) {
	t.Helper()
	own, touched = map[string]int{}, map[string]int{}
	count, known := 0, map[string]bool{}
	real := func(name string) string { // through links, as umoci goes
		if f, err := tree.Stat(name); err == nil && f.Path != "/" {
			return strings.TrimPrefix(f.Path, "/")
		} else if err == nil {
			return "."
		}
		return name
	}
	for _, l := range img.Layers {
		f, err := os.Open(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for r := tar.NewReader(f); ; count++ {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := path.Clean(strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
			if h.Typeflag == tar.TypeDir {
				own[name] = count + 1
			}
			for dir := path.Dir(name); ; dir = path.Dir(dir) {
				touched[real(dir)] = count + 1
				if dir == "." || known[real(dir)] {
					break
				}
				known[real(dir)] = true // it is made now, and that in its parent
			}
			known[name] = true
		}
	}
	return own, touched
}
