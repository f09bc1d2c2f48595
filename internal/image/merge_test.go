package image_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"

	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // layers are listings, and read as such without a prefix on every entry
)

// Every case of the corpus is refused, or makes the tree that the corpus says, for the reader of another project.
func TestCorpus(t *testing.T) {
	s := open(t, t.TempDir())
	for _, c := range Corpus() {
		t.Run(c.Title(), func(t *testing.T) {
			src := c.Build().Build()
			img, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
			if c.Refused != "" {
				if !errors.Is(err, image.ErrRefused) || !strings.Contains(fmt.Sprint(err), c.Refused) || !strings.Contains(fmt.Sprint(err), "layer ") {
					t.Errorf("got %v\nwant ErrRefused, the layer, and %q", err, c.Refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := listing(t, img); c.Tree != "" && got != c.Tree {
				t.Errorf("tree\n got %q\nwant %q", got, c.Tree)
			}
			if c.At == "" {
				return
			}
			if got := shown(t, img, c.At); got != c.Stat {
				t.Errorf("%s\n got %q\nwant %q", c.At, got, c.Stat)
			}
		})
	}
}

// The corpus is as large as it should be, its titles are unique, and docs/design/layers.md and the corpus know
// the same rules.
func TestCorpusHasEveryRule(t *testing.T) {
	doc, err := os.ReadFile("../../docs/design/layers.md")
	if err != nil {
		t.Fatal(err)
	}
	titles, rules := map[string]bool{}, map[string]bool{}
	for _, c := range Corpus() {
		if titles[c.Title()] {
			t.Errorf("two cases are named %q", c.Title())
		}
		titles[c.Title()], rules[c.Rule] = true, true
		if (c.Refused != "") == (c.Tree != "" || c.At != "") {
			t.Errorf("%s: want a refusal, or a tree", c.Title())
		}
	}
	if len(titles) < 60 {
		t.Errorf("%d cases", len(titles))
	}
	for rule := range rules {
		if !regexp.MustCompile(`\b` + rule + `\b`).Match(doc) {
			t.Errorf("docs/design/layers.md has no rule %s", rule)
		}
	}
	for _, rule := range regexp.MustCompile(`\b([NMPXWLDHR]\d+)\b`).FindAllString(string(doc), -1) {
		if !rules[rule] && rule != "R12" { // which is about bytes that are no entry; see refuse_test.go
			t.Errorf("the corpus has no case of rule %s", rule)
		}
	}
}

// shown is what is at a path: mode, owner, time, attributes.
func shown(t *testing.T, img *image.Image, path string) string {
	t.Helper()
	fsys := metadata(t, img)
	info, err := fs.Lstat(fsys, path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*reader.Stat)
	got := fmt.Sprintf("%v %d:%d %d", info.Mode(), stat.UID, stat.GID, info.ModTime().UnixNano())
	for _, name := range slices.Sorted(maps.Keys(stat.Xattrs)) {
		got += " " + name + "=" + stat.Xattrs[name]
	}
	return got
}

// metadata opens an image's file system with the reader of another project.
func metadata(t *testing.T, img *image.Image) fs.FS {
	t.Helper()
	f, err := os.Open(img.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var opts []reader.OpenOpt
	for _, l := range img.Layers {
		d, err := os.Open(l.Path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		opts = append(opts, reader.WithExtraDevices(d))
	}
	fsys, err := reader.Open(f, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// listing shows the tree and, in brackets, names of one inode.
func listing(t *testing.T, img *image.Image) string {
	t.Helper()
	fsys := metadata(t, img)
	var out []string
	links := map[uint64][]string{}
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !d.IsDir() {
			ino := uint64(info.Sys().(*reader.Stat).Ino)
			links[ino] = append(links[ino], path)
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			path += "/"
		case fs.ModeSymlink:
			target, err := fs.ReadLink(fsys, path)
			if err != nil {
				return err
			}
			path += "->" + target
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			path += "!"
		case fs.ModeNamedPipe:
			path += "|"
		default:
			content, err := fs.ReadFile(fsys, path)
			if err != nil {
				return err
			}
			path += "=" + string(content)
		}
		out = append(out, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	for _, names := range links {
		if len(names) > 1 {
			slices.Sort(names)
			out = append(out, fmt.Sprint(names))
		}
	}
	return strings.Join(out, " ")
}
