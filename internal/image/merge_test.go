package image_test

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"

	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // the tables below are listings, and read as such without a prefix on every entry
)

type layers [][]Entry

// Every rule of docs/design/layers.md about the merge, by its number there. want lists the whole tree,
// "path/" for a directory, "path=content", "path->target".
func TestMergeRules(t *testing.T) {
	for _, tt := range []struct {
		name   string
		layers layers
		want   string
	}{
		{"M1 later layer wins", layers{{File("a", "1")}, {File("a", "2")}}, "a=2"},
		{"M2 last of duplicates wins", layers{{File("a", "1"), File("a", "2")}}, "a=2"},
		{"M2 directory twice keeps its content", layers{{Dir("d"), File("d/a", "1"), Dir("d")}}, "d/ d/a=1"},
		{"M3 directory over directory keeps its content", layers{{Dir("d"), File("d/a", "1")}, {Dir("d")}}, "d/ d/a=1"},
		{"M4 file over directory drops its content", layers{{Dir("d"), File("d/a", "1")}, {File("d", "f")}}, "d=f"},
		{"M4 directory over file", layers{{File("d", "f")}, {Dir("d"), File("d/a", "1")}}, "d/ d/a=1"},
		{"M4 symlink over directory", layers{{Dir("d"), File("d/a", "1")}, {Symlink("d", "x")}}, "d->x"},
		{"M4 directory over symlink", layers{{Dir("r"), File("r/a", "1"), Symlink("l", "r")}, {Dir("l"), File("l/b", "2")}}, "l/ l/b=2 r/ r/a=1"},
		{"M4 directory over symlink, content first", layers{{Dir("r"), Symlink("l", "r")}, {File("l/b", "2"), Dir("l")}}, "l/ l/b=2 r/"},
		{"M4 child directory before the one over the symlink", layers{
			{Dir("r"), Symlink("r/s", "x"), Symlink("l", "r")},
			{Dir("l/s"), Dir("l")},
		}, "l/ l/s/ r/ r/s->x"},

		{"M5 parent through symlink", layers{{Dir("usr/lib"), Symlink("lib", "usr/lib")}, {File("lib/a", "1")}}, "lib->usr/lib usr/ usr/lib/ usr/lib/a=1"},
		{"M5 absolute symlink stays inside", layers{{Dir("r"), Symlink("l", "/r")}, {File("l/a", "1")}}, "l->/r r/ r/a=1"},
		{"M5 dotdot stops at the root", layers{{Symlink("l", "../../../r")}, {File("l/a", "1")}}, "l->../../../r r/ r/a=1"},
		{"M5 links to links", layers{{Dir("r"), Symlink("a", "b"), Symlink("b", "./r/../r")}, {File("a/x", "1")}}, "a->b b->./r/../r r/ r/x=1"},
		{"M5 dangling symlink gets its directory", layers{{Symlink("l", "not/there")}, {File("l/a", "1")}}, "l->not/there not/ not/there/ not/there/a=1"},
		{"M5 relative to the link's directory", layers{{Dir("d/r"), Symlink("d/l", "r")}, {File("d/l/a", "1")}}, "d/ d/l->r d/r/ d/r/a=1"},

		{"W1 whiteout", layers{{File("a", "1"), File("b", "1")}, {Whiteout("a")}}, "b=1"},
		{"W1 whiteout of a directory", layers{{File("d/a", "1"), File("b", "1")}, {Whiteout("d")}}, "b=1"},
		{"W1 whiteout of nothing", layers{{File("b", "1")}, {Whiteout("a"), Whiteout("x/y")}}, "b=1"},
		{"W1 whiteout of a symlink spares its target", layers{{File("r", "1"), Symlink("l", "r")}, {Whiteout("l")}}, "r=1"},
		{"W2 whiteout after the entry", layers{{File("a", "1")}, {File("a", "2"), Whiteout("a")}}, "a=2"},
		{"W2 whiteout before the entry", layers{{File("a", "1")}, {Whiteout("a"), File("a", "2")}}, "a=2"},
		{"W2 whiteout and own directory", layers{{File("d/a", "1")}, {Dir("d"), File("d/b", "2"), Whiteout("d")}}, "d/ d/b=2"},
		{"W2 whiteouts do not depend on each other", layers{{Dir("r"), File("r/x", "1"), Symlink("l", "r")}, {Whiteout("l"), Whiteout("l/x")}}, "r/"},
		{"W2 nor the other way round", layers{{Dir("r"), File("r/x", "1"), Symlink("l", "r")}, {Whiteout("l/x"), Whiteout("l")}}, "r/"},
		{"W2 own layer only", layers{{Whiteout("a"), File("a", "1")}}, "a=1"},
		{"W3 opaque", layers{{File("d/a", "1"), File("b", "1")}, {Dir("d"), Opaque("d"), File("d/c", "2")}}, "b=1 d/ d/c=2"},
		{"W3 opaque after siblings", layers{{File("d/a", "1")}, {Dir("d"), File("d/.bashrc", "2"), File("d/c", "2"), Opaque("d")}}, "d/ d/.bashrc=2 d/c=2"},
		{"W3 opaque root", layers{{File("a", "1"), File("d/a", "1")}, {Opaque("."), File("b", "2")}}, "b=2"},
		{"W3 opaque keeps the directory", layers{{File("d/a", "1")}, {Opaque("d")}}, "d/"},
		{"W3 opaque makes no directory", layers{{File("a", "1")}, {Opaque("d")}}, "a=1"},
		{"W4 whiteout through a symlink", layers{{File("r/a", "1"), File("r/b", "1"), Symlink("l", "r")}, {Whiteout("l/a")}}, "l->r r/ r/b=1"},
		{"W5 opaque spares what a replaced symlink pointed to", layers{{File("r/a", "1"), Symlink("l", "r")}, {Dir("l"), Opaque("l"), File("l/b", "2")}}, "l/ l/b=2 r/ r/a=1"},
		{"W5 marker before the directory", layers{{File("r/a", "1"), Symlink("l", "r")}, {Opaque("l"), Dir("l"), File("l/b", "2")}}, "l/ l/b=2 r/ r/a=1"},
		{"W5 whiteout too", layers{{File("r/a", "1"), Symlink("l", "r")}, {Whiteout("l/a"), Dir("l")}}, "l/ r/ r/a=1"},
		{"W6 whiteout as a hard link", layers{{File("a", "1"), File("b", "1")}, {Link(".wh.a", "b")}}, "b=1"},
		{"W6 opaque as a directory", layers{{File("d/a", "1")}, {Dir("d"), Dir("d/.wh..wh..opq")}}, "d/"},
		{"W7 bookkeeping of AUFS", layers{{File("a", "1")}, {Dir(".wh..wh.plnk"), File(".wh..wh.plnk/1.2", "x"), File(".wh..wh.aufs", "")}}, "a=1"},

		{"L1 hard link", layers{{File("a", "1"), Link("b", "a")}}, "a=1 b=1 [a b]"},
		{"L1 to a lower layer", layers{{File("a", "1")}, {Link("b", "a"), File("c", "2")}}, "a=1 b=1 c=2 [a b]"},
		{"L1 through a symlinked parent", layers{{File("r/a", "1"), Symlink("l", "r")}, {Link("b", "/l/a")}}, "b=1 l->r r/ r/a=1 [b r/a]"},
		{"L1 with dotdot", layers{{File("r/a", "1")}, {Link("b", "../r/../r/a")}}, "b=1 r/ r/a=1 [b r/a]"},
		{"L2 to a symlink links the symlink", layers{{File("a", "1"), Symlink("s", "a"), Link("t", "s")}}, "a=1 s->a t->a [s t]"},
		{"L3 replacing one name leaves the others", layers{{File("a", "1"), Link("b", "a")}, {File("a", "2")}}, "a=2 b=1"},
		{"L3 to what the target was then", layers{{File("a", "1")}, {Link("b", "a"), File("a", "2")}}, "a=2 b=1"},
		{"L4 to itself", layers{{File("a", "1")}, {Link("a", "a")}}, "a=1"},

		{"N1 names are made relative", layers{{File("./a", "1"), File("/b", "2"), File("./c//d", "3"), Dir("./e/")}}, "a=1 b=2 c/ c/d=3 e/"},
		{"D1 harmless devices stay", layers{{Char("dev/null", 1, 3), Char("jail/dev/urandom", 1, 9)}}, "dev/ dev/null! jail/ jail/dev/ jail/dev/urandom!"},
		{"D2 other devices are dropped", layers{{Char("dev/mem", 1, 1), Block("sda", 8, 0), Char("zero", 0, 0)}}, "dev/"},
		{"D2 with their links, and hide what was below", layers{{File("a", "1")}, {Char("a", 0, 0), Link("b", "a")}}, ""},
		{"D3 named pipes stay", layers{{FIFO("p")}}, "p|"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := New()
			for _, l := range tt.layers {
				b.Layer(l...)
			}
			img := pull(t, open(t, t.TempDir()), b.Build())
			if got := listing(t, img); got != tt.want {
				t.Errorf("tree\n got %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestMetadataRules(t *testing.T) {
	when := When().AddDate(-1, 0, 0).Add(123456789)
	for _, tt := range []struct {
		name   string
		layers layers
		path   string
		want   string
	}{
		{"P1 missing root", layers{{File("a", "1")}}, ".", "drwxr-xr-x 0:0 0"},
		{"P1 root entry", layers{{Dir("./").Mode(0o700).Owner(5, 6).Time(when), File("a", "1")}}, ".", fmt.Sprintf("drwx------ 5:6 %d", when.UnixNano())},
		{"P1 root of a later layer", layers{{Dir("/").Mode(0o700)}, {Dir(".").Mode(0o711)}}, ".", fmt.Sprintf("drwx--x--x 0:0 %d", When().UnixNano())},
		{"P2 implicit parent", layers{{File("d/a", "1")}}, "d", "drwxr-xr-x 0:0 0"},
		{"P2 implicit parent keeps the lower directory", layers{{Dir("d").Mode(0o750).Owner(1, 2).Xattr("user.k", "v")}, {File("d/a", "1")}}, "d", fmt.Sprintf("drwxr-x--- 1:2 %d user.k=v", When().UnixNano())},
		{"P2 opaque keeps the lower directory", layers{{Dir("d").Mode(0o750)}, {Opaque("d"), File("d/a", "1")}}, "d", fmt.Sprintf("drwxr-x--- 0:0 %d", When().UnixNano())},
		{"P3 own entry replaces properties and attributes", layers{{Dir("d").Mode(0o750).Xattr("user.k", "v")}, {Dir("d").Owner(3, 4)}}, "d", fmt.Sprintf("drwxr-xr-x 3:4 %d", When().UnixNano())},
		{"P3 large ids and nanoseconds", layers{{File("a", "1").Owner(1<<32-2, 3_000_000_000).Time(when)}}, "a", fmt.Sprintf("-rw-r--r-- 4294967294:3000000000 %d", when.UnixNano())},
		{"X1 attributes", layers{{File("a", "1").Xattr("security.capability", "\x01\x00cap").Xattr("user.z", "")}}, "a", fmt.Sprintf("-rw-r--r-- 0:0 %d security.capability=\x01\x00cap user.z=", When().UnixNano())},
		{"X2 overlay's and foreign attributes", layers{{
			Dir("d").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.redirect", "/x").Xattr("trusted.x", "y").Xattr("com.apple.quarantine", "q").Xattr("user.overlayx", "k"),
		}}, "d", fmt.Sprintf("drwxr-xr-x 0:0 %d user.overlayx=k", When().UnixNano())},
		{"X3 a hard link's own properties mean nothing", layers{{File("a", "1").Mode(0o600)}, {Link("b", "a").Mode(0o777).Owner(9, 9)}}, "b", fmt.Sprintf("-rw------- 0:0 %d", When().UnixNano())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := New()
			for _, l := range tt.layers {
				b.Layer(l...)
			}
			fsys := metadata(t, pull(t, open(t, t.TempDir()), b.Build()))
			info, err := fs.Stat(fsys, tt.path)
			if err != nil {
				t.Fatal(err)
			}
			stat := info.Sys().(*reader.Stat)
			got := fmt.Sprintf("%v %d:%d %d", info.Mode(), stat.UID, stat.GID, info.ModTime().UnixNano())
			names := make([]string, 0, len(stat.Xattrs))
			for name := range stat.Xattrs {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				got += " " + name + "=" + stat.Xattrs[name]
			}
			if got != tt.want {
				t.Errorf("%s\n got %q\nwant %q", tt.path, got, tt.want)
			}
		})
	}
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
