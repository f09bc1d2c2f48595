package image_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // listings, as in merge_test.go
)

func treeOf(t *testing.T, s *image.Store, ls [][]Entry) *image.Tree {
	t.Helper()
	b := New()
	for _, l := range ls {
		b.Layer(l...)
	}
	tree, err := s.Tree(pull(t, s, b.Build()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return tree
}

func TestStatStaysInTheImage(t *testing.T) {
	tree := treeOf(t, open(t, t.TempDir()), [][]Entry{
		{
			Dir("usr/bin"), File("usr/bin/app", "#!"), Symlink("bin", "usr/bin"), Symlink("usr/bin/sh", "../../usr/bin/app"),
			Symlink("out", "../../../../etc/passwd"), Symlink("abs", "/usr/bin/app"), Symlink("loop", "loop"), Symlink("a", "b"), Symlink("b", "a"),
			Symlink("dangling", "/no/where"), File("old", "1"),
		},
		{Whiteout("old"), Dir("etc"), File("etc/passwd", "root:x:0:0::/:\n")},
	})
	for name, want := range map[string]string{
		"/usr/bin/app":    "/usr/bin/app",
		"usr/bin/app":     "/usr/bin/app",
		"//bin//./app":    "/usr/bin/app",
		"/bin/sh":         "/usr/bin/app",
		"/abs":            "/usr/bin/app",
		"/out":            "/etc/passwd",
		"/bin/../bin/app": "/usr/bin/app",
		"/../../etc":      "/etc",
		"/":               "/",
		"":                "/",
		"/bin/":           "/usr/bin",
		"/bin/..":         "/usr",
	} {
		f, err := tree.Stat(name)
		if err != nil || f.Path != want {
			t.Errorf("%q: got %q, %v; want %q", name, f.Path, err, want)
		}
	}
	for name, want := range map[string]error{
		"/old": fs.ErrNotExist, "/dangling": fs.ErrNotExist, "/usr/bin/app/x": fs.ErrNotExist, "/nope": fs.ErrNotExist,
		"/loop": image.ErrRefused, "/a/x": image.ErrRefused, strings.Repeat("/loop", 2000): image.ErrRefused,
	} {
		if _, err := tree.Stat(name); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", name[:min(len(name), 40)], err, want)
		}
	}
	f, err := tree.Stat("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	r, err := tree.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "root:x:0:0::/:\n" {
		t.Errorf("content: got %q, %v", b, err)
	}
	dir, err := tree.Stat("/etc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Open(dir); err == nil {
		t.Error("a directory was opened")
	}
}

func TestCompareFiles(t *testing.T) {
	base := []Entry{Dir("d"), File("d/same", "x"), File("big", strings.Repeat("a", 200_000)), File("gone", "12345"), Dir("tree/of"), File("tree/of/files", "f")}
	for _, tt := range []struct {
		name string
		a, b [][]Entry
		want string
	}{
		{"nothing", [][]Entry{base}, [][]Entry{base}, ""},
		{"same bytes in other layers", [][]Entry{base}, [][]Entry{base[:3], base[3:]}, ""},
		{"added", [][]Entry{base}, [][]Entry{base, {File("new", "123")}}, "+/new 3"},
		{"removed", [][]Entry{base}, [][]Entry{base, {Whiteout("gone")}}, "-/gone 5"},
		{"content of the same size", [][]Entry{base}, [][]Entry{base, {File("big", strings.Repeat("a", 199_999)+"b")}}, "~/big 200000>200000 content"},
		{"size", [][]Entry{base}, [][]Entry{base, {File("gone", "1")}}, "~/gone 5>1 content"},
		{"mode", [][]Entry{base}, [][]Entry{base, {File("gone", "12345").Mode(0o4755)}}, "~/gone 5>5 mode"},
		{"owner", [][]Entry{base}, [][]Entry{base, {File("gone", "12345").Owner(5, 0)}}, "~/gone 5>5 owner"},
		{"type", [][]Entry{base}, [][]Entry{base, {Symlink("gone", "d")}}, "~/gone 5>0 type"},
		{"target", [][]Entry{base, {Symlink("l", "d")}}, [][]Entry{base, {Symlink("l", "e")}}, "~/l 0>0 target"},
		{"a whole directory", [][]Entry{base}, [][]Entry{base, {Whiteout("tree")}}, "-/tree 0 -/tree/of 0 -/tree/of/files 1"},
		{"a directory becomes a file", [][]Entry{base}, [][]Entry{base, {File("tree", "t")}}, "~/tree 0>1 type -/tree/of 0 -/tree/of/files 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, t.TempDir())
			changes, err := image.Compare(treeOf(t, s, tt.a), treeOf(t, s, tt.b))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range changes {
				switch {
				case c.Old == nil:
					got = append(got, fmt.Sprintf("+%s %d", c.Path, c.New.Size))
				case c.New == nil:
					got = append(got, fmt.Sprintf("-%s %d", c.Path, c.Old.Size))
				default:
					got = append(got, fmt.Sprintf("~%s %d>%d %s", c.Path, c.Old.Size, c.New.Size, strings.Join(c.What, ",")))
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}
