package erofs_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/erofs"
	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
)

// The kernel sees the tree that was written, set-id bits and device numbers included.
func TestMount(t *testing.T) {
	erofstest.Require(t)
	for _, block := range []int{512, 4096} {
		t.Run(fmt.Sprint(block), func(t *testing.T) {
			data, root := everything(block)
			dir := t.TempDir()
			meta, device := filepath.Join(dir, "meta"), filepath.Join(dir, "device")
			writeFile(t, meta, write(t, root, block, data))
			writeFile(t, device, data)
			metaLoop, deviceLoop := erofstest.Loop(t, meta), erofstest.Loop(t, device)
			erofstest.Namespace(t, func() {
				mounted := erofstest.Mount(t, metaLoop, []string{deviceLoop})
				defer erofstest.Unmount(t, mounted)
				for path, n := range flatten(root) {
					compare(t, filepath.Join(mounted, path), n, data)
				}
			})
		})
	}
}

// A file of more than 4 GiB has one chunk index too. The device is a sparse file.
func TestMountLargeFile(t *testing.T) {
	erofstest.Require(t)
	const size, offset = 5<<30 + 7, 3 << 30
	dir := t.TempDir()
	meta, device := filepath.Join(dir, "meta"), filepath.Join(dir, "device")
	f, err := os.Create(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(9 << 30); err != nil {
		t.Fatal(err)
	}
	marks := map[int64]string{0: "first", 1<<32 - 2: "across 4 GiB", size - 4: "last"}
	for at, mark := range marks {
		if _, err := f.WriteAt([]byte(mark), offset+at); err != nil {
			t.Fatal(err)
		}
	}
	root := one("large", &erofstest.Node{Mode: erofs.TypeRegular | 0o644, Size: size, Offset: offset, Slot: 1})
	var out bytes.Buffer
	if err := erofs.Write(&out, root.Tree(), erofs.Options{Devices: []erofs.Device{{Tag: "x", Size: 9 << 30}}}); err != nil {
		t.Fatal(err)
	}
	writeFile(t, meta, out.Bytes())
	metaLoop, deviceLoop := erofstest.Loop(t, meta), erofstest.Loop(t, device)
	erofstest.Namespace(t, func() {
		mounted := erofstest.Mount(t, metaLoop, []string{deviceLoop})
		defer erofstest.Unmount(t, mounted)
		large, err := os.Open(filepath.Join(mounted, "large"))
		if err != nil {
			t.Error(err)
			return
		}
		defer large.Close()
		if info, err := large.Stat(); err != nil || info.Size() != size {
			t.Errorf("size: %v, %v", info.Size(), err)
		}
		for at, mark := range marks {
			b := make([]byte, len(mark))
			if _, err := large.ReadAt(b, at); err != nil || string(b) != mark {
				t.Errorf("at %d: %q, %v, want %q", at, b, err, mark)
			}
		}
	})
}

func flatten(root *erofstest.Node) map[string]*erofstest.Node {
	all := map[string]*erofstest.Node{}
	var visit func(path string, n *erofstest.Node)
	visit = func(path string, n *erofstest.Node) {
		all[path] = n
		for name, child := range n.Children {
			visit(filepath.Join(path, name), child)
		}
	}
	visit(".", root)
	return all
}

func compare(t *testing.T, path string, n *erofstest.Node, device []byte) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return
	}
	stat := info.Sys().(*syscall.Stat_t)
	if stat.Mode != uint32(n.Mode) || stat.Uid != n.UID || stat.Gid != n.GID {
		t.Errorf("%s: %o %d:%d, want %o %d:%d", path, stat.Mode, stat.Uid, stat.Gid, n.Mode, n.UID, n.GID)
	}
	if stat.Mtim.Sec != n.Mtime || stat.Mtim.Nsec != int64(n.MtimeNsec) {
		t.Errorf("%s: mtime %v, want %d.%09d", path, stat.Mtim, n.Mtime, n.MtimeNsec)
	}
	for _, x := range n.Xattrs {
		value := make([]byte, 1<<16)
		size, err := unix.Lgetxattr(path, x.Name, value)
		if err != nil || string(value[:max(size, 0)]) != x.Value {
			t.Errorf("%s: attribute %s has %d bytes, %v, want %d", path, x.Name, size, err, len(x.Value))
		}
	}
	switch info.Mode().Type() {
	case 0:
		b, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(b, content(n, device)) {
			t.Errorf("%s: content differs, %v", path, err)
		}
	case fs.ModeSymlink:
		if target, err := os.Readlink(path); err != nil || target != n.Target {
			t.Errorf("%s: target %.50s, %v", path, target, err)
		}
	case fs.ModeDir:
		entries, err := os.ReadDir(path)
		names := make([]string, 0, len(entries))
		for _, e := range entries {
			names = append(names, e.Name())
		}
		want := make([]string, 0, len(n.Children))
		for name := range n.Children {
			want = append(want, name)
		}
		slices.Sort(want)
		if err != nil || strings.Join(names, "/") != strings.Join(want, "/") {
			t.Errorf("%s: %d names, want %d, %v", path, len(names), len(want), err)
		}
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		if unix.Major(stat.Rdev) != n.Major || unix.Minor(stat.Rdev) != n.Minor {
			t.Errorf("%s: device %d:%d", path, unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		}
	default: // pipes and sockets have no content
	}
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
