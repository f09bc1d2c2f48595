package erofs_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	reader "github.com/erofs/go-erofs"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
)

func TestReadBack(t *testing.T) {
	for _, block := range []int{512, 1024, 4096} {
		t.Run(fmt.Sprint(block), func(t *testing.T) {
			device, root := everything(block)
			fsys := open(t, root, block, device)
			want := describe(root, device)
			if got := walk(t, fsys); !slices.Equal(got, want) {
				t.Errorf("tree differs:\n%s", diff(got, want))
			}
		})
	}
}

func TestHardLinks(t *testing.T) {
	n := &erofstest.Node{Mode: erofs.TypeRegular | 0o644}
	root := dir(map[string]*erofstest.Node{"a": n, "d": dir(map[string]*erofstest.Node{"b": n, "c": n})})
	fsys := open(t, root, 512, nil)
	inos := map[uint64]bool{}
	for _, name := range []string{"a", "d/b", "d/c"} {
		info, err := fs.Stat(fsys, name)
		if err != nil {
			t.Fatal(err)
		}
		type linked interface {
			Ino() uint64
			Nlink() uint64
		}
		l := info.(linked)
		inos[l.Ino()] = true
		if l.Nlink() != 3 {
			t.Errorf("%s: nlink is %d, want 3", name, l.Nlink())
		}
	}
	if len(inos) != 1 {
		t.Errorf("three names have %d inodes, want 1", len(inos))
	}
}

func TestDeterministic(t *testing.T) {
	var sums []string
	for range 3 {
		device, root := everything(512)
		b := write(t, root, 512, device)
		sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(b)))
		again := write(t, root, 512, device)
		if !bytes.Equal(b, again) {
			t.Error("the same tree gave other bytes the second time")
		}
	}
	if sums[0] != sums[1] || sums[1] != sums[2] {
		t.Errorf("sums differ: %v", sums)
	}
}

func TestRefused(t *testing.T) {
	file := func(size, offset uint64, slot uint16) *erofstest.Node {
		return &erofstest.Node{Mode: erofs.TypeRegular, Size: size, Offset: offset, Slot: slot}
	}
	shared := dir(nil)
	loop := dir(nil)
	loop.Children = map[string]*erofstest.Node{"loop": loop}
	tests := []struct {
		name string
		root *erofstest.Node
		want string
	}{
		{"file as root", file(0, 0, 0), "root is not a directory"},
		{"name with slash", one("a/b", dir(nil)), "cannot be in a directory"},
		{"name dotdot", one("..", dir(nil)), "cannot be in a directory"},
		{"name with NUL", one("a\x00", dir(nil)), "cannot be in a directory"},
		{"name too long", one(strings.Repeat("x", 256), dir(nil)), "cannot be in a directory"},
		{"directory with two names", dir(map[string]*erofstest.Node{"a": shared, "b": shared}), "only one name"},
		{"directory in itself", loop, "only one name"},
		{"no type", one("a", &erofstest.Node{Mode: 0o644}), "unknown file type"},
		{"unaligned", one("a", file(1, 511, 1)), "multiple of the block size"},
		{"no such device", one("a", file(1, 0, 2)), "device slot 2"},
		{"beyond the device", one("a", file(513, 512, 1)), "do not lie within"},
		{"size overflows", one("a", file(1<<64-1, 512, 1)), "a file has at most 1099511627776"},
		{"size overflows with its offset", one("a", file(1<<40, 1<<63, 1)), "do not lie within"},
		{"empty target", one("a", &erofstest.Node{Mode: erofs.TypeSymlink}), "symbolic link"},
		{"long target", one("a", &erofstest.Node{Mode: erofs.TypeSymlink, Target: strings.Repeat("x", 4096)}), "symbolic link"},
		{"device number", one("a", &erofstest.Node{Mode: erofs.TypeChar, Major: 4096}), "device number"},
		{"nanoseconds", one("a", &erofstest.Node{Mode: erofs.TypeFIFO, MtimeNsec: 1e9}), "nanoseconds"},
		{"attribute namespace", one("a", attr("com.apple.x", "")), "no such namespace"},
		{"attribute without name", one("a", attr("user.", "")), "no such namespace"},
		{"attribute too big", one("a", attr("user.x", strings.Repeat("x", 65536))), "at most 65535"},
		{"parts overlap", one("a", sparse(2048, erofs.Extent{Size: 1024}, erofs.Extent{Start: 512, Size: 512})), "overlaps another one"},
		{"parts out of order", one("a", sparse(2048, erofs.Extent{Start: 1024, Size: 512}, erofs.Extent{Size: 512})), "overlaps another one"},
		{"empty part", one("a", sparse(2048, erofs.Extent{Start: 512})), "overlaps another one"},
		{"part beyond the end", one("a", sparse(1000, erofs.Extent{Start: 512, Size: 512})), "or the end at 1000"},
		{"part that overflows", one("a", sparse(1000, erofs.Extent{Start: 1<<64 - 512, Size: 1000})), "or the end at 1000"},
		{"part between blocks", one("a", sparse(2048, erofs.Extent{Start: 100, Size: 412})), "not made of blocks of 512"},
		{"part that ends between blocks", one("a", sparse(2048, erofs.Extent{Size: 100})), "not made of blocks of 512"},
		{"part from between blocks", one("a", sparse(2048, erofs.Extent{Size: 512, Offset: 1})), "multiple of the block size"},
		{"part beyond the device", one("a", sparse(2048, erofs.Extent{Size: 512, Offset: 1024})), "do not lie within"},
		{"too many parts", one("a", sparse(1<<30, erofs.Extent{Start: 512, Size: 512})), "index of 2097152 chunks"},
		{"path in the message", one("a", one("b", one("c", &erofstest.Node{}))), `"a/b/c"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := erofs.Write(&out, tt.root.Tree(), erofs.Options{Devices: []erofs.Device{{Tag: "x", Size: 1024}}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
			if out.Len() != 0 {
				t.Errorf("%d bytes were written of a refused tree", out.Len())
			}
		})
	}
}

func TestDeviceTableRefused(t *testing.T) {
	for name, devices := range map[string][]erofs.Device{
		"no tag":       {{Size: 512}},
		"long tag":     {{Tag: strings.Repeat("x", 65), Size: 512}},
		"beyond 2 TiB": {{Tag: "a", Size: 1 << 40}, {Tag: "b", Size: 1 << 40}},
		"negative":     {{Tag: "a", Size: -1}},
	} {
		if err := erofs.Write(&bytes.Buffer{}, dir(nil).Tree(), erofs.Options{Devices: devices}); err == nil {
			t.Errorf("%s: written, want an error", name)
		}
	}
}

// The format's own authors read it too: fsck.erofs checks every inode and extracts the tree.
func TestFsck(t *testing.T) {
	// Blocks of 1024 bytes, behind the first of which the superblock begins, are too small for fsck.erofs 1.8.
	for _, block := range []int{512, 2048, 4096} {
		t.Run(fmt.Sprint(block), func(t *testing.T) {
			fsck := erofstest.Fsck(t, block)
			dir := t.TempDir()
			device, root := everything(block)
			meta, data, out := filepath.Join(dir, "meta"), filepath.Join(dir, "data"), filepath.Join(dir, "out")
			writeFile(t, meta, write(t, root, block, device))
			writeFile(t, data, device)
			args := []string{"--device=" + data}
			if os.Geteuid() == 0 {
				args = append(args, "--extract="+out, "--no-preserve")
			}
			if text, err := exec.Command(fsck, append(args, meta)...).CombinedOutput(); err != nil {
				t.Fatalf("fsck.erofs: %v\n%s", err, text)
			}
			if os.Geteuid() != 0 {
				return // device nodes take root
			}
			for path, n := range flatten(root) {
				if n.Mode&erofs.TypeMask != erofs.TypeRegular {
					continue
				}
				got, err := os.ReadFile(filepath.Join(out, path))
				if want := int(n.Size); n.Sparse && len(got) < want {
					got = append(got, make([]byte, want-len(got))...) // fsck.erofs does not write a hole at the end
				}
				if err != nil || !bytes.Equal(got, content(n, device)) {
					t.Errorf("%s: %d bytes, %v; want %d others", path, len(got), err, n.Size)
				}
			}
		})
	}
}

func attr(name, value string) *erofstest.Node {
	return &erofstest.Node{Mode: erofs.TypeFIFO, Xattrs: []erofs.Xattr{{Name: name, Value: value}}}
}

func sparse(size uint64, parts ...erofs.Extent) *erofstest.Node {
	return &erofstest.Node{Mode: erofs.TypeRegular | 0o600, Size: size, Slot: 1, Sparse: true, Extents: parts}
}

// content is what a file holds.
func content(n *erofstest.Node, device []byte) []byte {
	if !n.Sparse {
		return device[n.Offset : n.Offset+n.Size]
	}
	b := make([]byte, n.Size)
	for _, e := range n.Extents {
		copy(b[e.Start:e.Start+e.Size], device[e.Offset:])
	}
	return b
}

func dir(children map[string]*erofstest.Node) *erofstest.Node {
	return &erofstest.Node{Mode: erofs.TypeDir | 0o755, Children: children}
}

func one(name string, n *erofstest.Node) *erofstest.Node {
	return dir(map[string]*erofstest.Node{name: n})
}

// everything is a tree with each kind of inode at the sizes where layouts change, and its device.
func everything(block int) ([]byte, *erofstest.Node) {
	random := rand.New(rand.NewPCG(1, 2))
	device := make([]byte, 64*block)
	for i := range device {
		device[i] = byte(random.Uint32())
	}
	root := dir(map[string]*erofstest.Node{})
	root.Mode, root.UID, root.GID, root.Mtime = erofs.TypeDir|0o1777, 7, 1<<32-2, 1234567890
	for _, size := range []int{0, 1, block - 1, block, block + 1, 3*block + 5, 33 * block} {
		root.Children[fmt.Sprintf("file-%d", size)] = &erofstest.Node{
			Mode: erofs.TypeRegular | 0o4755, Size: uint64(size), Offset: uint64(2 * block), Slot: 1, Mtime: 5, MtimeNsec: 999999999,
		}
	}
	for _, size := range []int{1, block - 64, block - 63, block, block + 9, 4095} {
		if size <= erofs.MaxTarget {
			root.Children[fmt.Sprintf("link-%d", size)] = &erofstest.Node{Mode: erofs.TypeSymlink | 0o777, Target: strings.Repeat("t", size)}
		}
	}
	// Directories from empty over one inline tail to several blocks, and names that sort before ".".
	for _, count := range []int{0, 1, 5, 20, 24, 25, 26, 27, 28, 30, 100, 3000} {
		d := dir(map[string]*erofstest.Node{})
		for i := range count {
			d.Children[fmt.Sprintf("%c%0*d", "!-+az"[i%5], 1+i%9, i)] = &erofstest.Node{Mode: erofs.TypeRegular, UID: uint32(i)}
		}
		root.Children[fmt.Sprintf("dir-%d", count)] = d
	}
	root.Children["dir-1"].Children[strings.Repeat("n", 255)] = dir(nil)
	root.Children["char"] = &erofstest.Node{Mode: erofs.TypeChar | 0o666, Major: 4095, Minor: 1<<20 - 1}
	root.Children["block"] = &erofstest.Node{Mode: erofs.TypeBlock | 0o660, Major: 8, Minor: 300}
	root.Children["fifo"] = &erofstest.Node{Mode: erofs.TypeFIFO | 0o600}
	root.Children["socket"] = &erofstest.Node{Mode: erofs.TypeSocket | 0o600}
	for _, size := range []int{0, 1, 2, 3, block, 5 * block} {
		root.Children[fmt.Sprintf("xattr-%d", size)] = &erofstest.Node{
			Mode: erofs.TypeRegular, Size: 10, Offset: uint64(block), Slot: 1,
			Xattrs: []erofs.Xattr{
				{Name: "security.data", Value: strings.Repeat("c", size)},
				{Name: "user.a", Value: "1"},
				{Name: "user.b", Value: ""},
			},
		}
	}
	b := uint64(block)
	for name, parts := range map[string][]erofs.Extent{
		"hole":     {},
		"begins":   {{Size: 2 * b, Offset: 3 * b}},
		"ends":     {{Start: 38 * b, Size: 2*b - 7, Offset: b}},
		"pieces":   {{Start: 4 * b, Size: 4 * b, Offset: b}, {Start: 16 * b, Size: 8 * b, Offset: 5 * b}, {Start: 32 * b, Size: 8*b - 7, Offset: 20 * b}},
		"adjacent": {{Size: 3 * b, Offset: 30 * b}, {Start: 3 * b, Size: 5 * b, Offset: 2 * b}},
	} {
		n := sparse(40*b-7, parts...)
		n.Xattrs = []erofs.Xattr{{Name: "user.holes", Value: name}}
		root.Children["sparse-"+name] = n
	}
	root.Children["xdir"] = dir(map[string]*erofstest.Node{"x": {Mode: erofs.TypeFIFO}})
	root.Children["xdir"].Xattrs = []erofs.Xattr{{Name: "user.d", Value: strings.Repeat("v", 3*block)}}
	return device, root
}

func write(t *testing.T, root *erofstest.Node, block int, device []byte) []byte {
	t.Helper()
	opts := erofs.Options{BlockSize: block, UUID: [16]byte{1, 2, 3}}
	if device != nil {
		opts.Devices = []erofs.Device{{Tag: strings.Repeat("a", 64), Size: int64(len(device))}}
	}
	var out bytes.Buffer
	if err := erofs.Write(&out, root.Tree(), opts); err != nil {
		t.Fatal(err)
	}
	if out.Len()%block != 0 {
		t.Errorf("image of %d bytes is not whole blocks of %d", out.Len(), block)
	}
	return out.Bytes()
}

func open(t *testing.T, root *erofstest.Node, block int, device []byte) fs.FS {
	t.Helper()
	var opts []reader.OpenOpt
	if device != nil {
		opts = append(opts, reader.WithExtraDevices(bytes.NewReader(device)))
	}
	fsys, err := reader.Open(bytes.NewReader(write(t, root, block, device)), opts...)
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

// describe lists what walk should find.
func describe(root *erofstest.Node, device []byte) []string {
	var list []string
	var visit func(path string, n *erofstest.Node)
	visit = func(path string, n *erofstest.Node) {
		line := fmt.Sprintf("%s %o %d:%d %d.%09d", path, n.Mode&^0o7000, n.UID, n.GID, n.Mtime, n.MtimeNsec)
		for _, x := range n.Xattrs {
			line += fmt.Sprintf(" %s=%d", x.Name, len(x.Value))
		}
		switch n.Mode & erofs.TypeMask {
		case erofs.TypeRegular:
			line += fmt.Sprintf(" %x", sha256.Sum256(content(n, device)))
		case erofs.TypeSymlink:
			line += " " + n.Target
		case erofs.TypeChar, erofs.TypeBlock:
			line += fmt.Sprintf(" %d:%d", n.Major, n.Minor)
		}
		list = append(list, line)
		for name, child := range n.Children {
			visit(filepath.Join(path, name), child)
		}
	}
	visit(".", root)
	slices.Sort(list)
	return list
}

func walk(t *testing.T, fsys fs.FS) []string {
	t.Helper()
	var list []string
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*reader.Stat)
		line := fmt.Sprintf("%s %o %d:%d %d.%09d", path, unixMode(info.Mode()), stat.UID, stat.GID, int64(stat.Mtime), stat.MtimeNs)
		for _, name := range slices.Sorted(mapKeys(stat.Xattrs)) {
			line += fmt.Sprintf(" %s=%d", name, len(stat.Xattrs[name]))
		}
		switch {
		case info.Mode().IsRegular():
			b, err := fs.ReadFile(fsys, path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(b))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, path)
			if err != nil {
				return err
			}
			line += " " + target
		case info.Mode()&fs.ModeDevice != 0:
			line += fmt.Sprintf(" %d:%d", stat.Rdev>>8&0xfff, stat.Rdev&0xff|stat.Rdev>>12&^0xff)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// unixMode is the mode without set-id and sticky bits, which the reader does not tell.
func unixMode(m fs.FileMode) uint16 {
	mode := uint16(m.Perm())
	switch m.Type() {
	case fs.ModeDir:
		return mode | erofs.TypeDir
	case fs.ModeSymlink:
		return mode | erofs.TypeSymlink
	case fs.ModeNamedPipe:
		return mode | erofs.TypeFIFO
	case fs.ModeSocket:
		return mode | erofs.TypeSocket
	case fs.ModeDevice:
		return mode | erofs.TypeBlock
	case fs.ModeDevice | fs.ModeCharDevice:
		return mode | erofs.TypeChar
	default:
		return mode | erofs.TypeRegular
	}
}

func diff(got, want []string) string {
	var b strings.Builder
	for _, line := range got {
		if !slices.Contains(want, line) {
			fmt.Fprintf(&b, "got  %.200s\n", line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			fmt.Fprintf(&b, "want %.200s\n", line)
		}
	}
	return b.String()
}
