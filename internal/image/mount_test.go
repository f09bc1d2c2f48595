package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// The kernel shows the tree that GNU tar makes of the same layers, wherever the layers are: on drives of
// their own, or on partitions of the pack disk.
func TestMountEqualsExtraction(t *testing.T) {
	erofstest.Require(t)
	for _, tt := range []struct{ layers, drives int }{
		{3, image.LayerDrives}, {20, image.LayerDrives}, {127, image.LayerDrives}, {20, 0},
	} {
		t.Run(fmt.Sprintf("%d layers on %d drives", tt.layers, tt.drives), func(t *testing.T) {
			src := realistic(t, tt.layers).Build()
			s := open(t, t.TempDir())
			img := pull(t, s, src)
			set, err := s.Disks(img, tt.drives)
			if err != nil {
				t.Fatal(err)
			}
			want := describe(t, extract(t, src.Tars))
			slots := attach(t, set)
			meta := erofstest.Loop(t, set.Metadata)
			erofstest.Namespace(t, func() {
				mounted := erofstest.Mount(t, meta, slots)
				defer erofstest.Unmount(t, mounted)
				got := describe(t, mounted)
				if !slices.Equal(got, want) {
					t.Errorf("trees of %d and %d entries differ:\n%s", len(got), len(want), difference(got, want))
				}
				overlay(t, mounted)
			})
			t.Logf("%d entries", len(want))
		})
	}
}

// realistic is n layers: a part of this machine's own file system, then changes of every kind.
func realistic(t *testing.T, n int) *Builder {
	t.Helper()
	var paths []string
	for _, path := range []string{"etc", "usr/share/zoneinfo", "usr/share/terminfo", "usr/share/perl5", "usr/bin/perl", "usr/bin/passwd", "bin", "lib/systemd"} {
		if _, err := os.Lstat("/" + path); err == nil {
			paths = append(paths, path)
		}
	}
	args := append([]string{"--format=pax", "--sort=name", "--xattrs", "--numeric-owner", "-C", "/", "-cf", "-"}, paths...)
	base, err := exec.Command("tar", args...).Output()
	if err != nil {
		t.Fatal("make a layer of this machine's files: ", err)
	}
	b := New().RawLayer(base).Layer(
		Dir("srv").Mode(0o2750).Owner(33, 44).Xattr("user.k", "v"), File("srv/x", "1").Mode(0o4711).Owner(1<<31, 7),
		Link("srv/y", "srv/x"), Link("srv/passwd", "etc/passwd"), FIFO("srv/pipe"), Char("srv/null", 1, 3),
		Dir("srv/d"), File("srv/d/a", "1"), File("srv/d/b", "2"), Dir("srv/keep"), File("srv/keep/k", "k"),
		File("srv/long", strings.Repeat("long", 50_000)), Symlink("srv/s", strings.Repeat("x/", 2000)),
	)
	b.Layer(
		Whiteout("srv/y"), Dir("srv/d"), Opaque("srv/d"), File("srv/d/c", "3"), Whiteout("etc/hostname"),
		File("srv/keep/more", "m"), Dir("srv/x"), File("srv/x/now-a-directory", ""), Dir("!first"), File("!first/-", ""),
	)
	for i := 3; i < n; i++ {
		b.Layer(File(fmt.Sprintf("layers/%d/file", i), strings.Repeat(fmt.Sprint(i), 999*(i%5))), File("layers/last", fmt.Sprint(i)))
	}
	return b
}

// extract unpacks the layers the usual way, with a tool that shares no code with this project. It knows no
// whiteouts, so these are carried out before each layer.
func extract(t *testing.T, layers [][]byte) string {
	t.Helper()
	root := t.TempDir()
	for _, layer := range layers {
		r := tar.NewReader(bytes.NewReader(layer))
		for h, err := r.Next(); err == nil; h, err = r.Next() {
			dir, base := filepath.Split(filepath.Join(root, h.Name))
			hidden, ok := strings.CutPrefix(base, ".wh.")
			if !ok {
				continue
			}
			if hidden == ".wh..opq" {
				entries, _ := os.ReadDir(dir)
				for _, e := range entries {
					_ = os.RemoveAll(filepath.Join(dir, e.Name()))
				}
			} else {
				_ = os.RemoveAll(filepath.Join(dir, hidden))
			}
		}
		// Nor does it replace a directory by a file without emptying directories that stay.
		retype(t, root, layer)
		cmd := exec.Command("tar", "-x", "-p", "-f", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*",
			"--exclude=.wh.*", "-C", root)
		cmd.Stdin = bytes.NewReader(layer)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
	}
	return root
}

// retype removes what a layer replaces by something of another type.
func retype(t *testing.T, root string, layer []byte) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(layer))
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		path := filepath.Join(root, h.Name)
		info, statErr := os.Lstat(path)
		if statErr == nil && (h.Typeflag == tar.TypeDir) != info.IsDir() {
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// attach gives the block device of each layer, in slot order.
func attach(t *testing.T, set image.DiskSet) []string {
	t.Helper()
	loops := make([]string, len(set.Drives))
	partitions := map[int][]string{}
	for i, drive := range set.Drives {
		loops[i] = erofstest.Loop(t, drive.Path)
		if !drive.Pack {
			continue
		}
		var list []erofstest.Partition
		for _, p := range readGPT(t, read(t, drive.Path)) {
			list = append(list, erofstest.Partition{Start: p.start, Size: p.size})
		}
		partitions[i] = erofstest.Partitions(t, loops[i], list)
	}
	slots := make([]string, len(set.Layers))
	for i, ref := range set.Layers {
		slots[i] = loops[ref.Drive]
		if ref.Partition > 0 {
			slots[i] = partitions[ref.Drive][ref.Partition-1]
		}
	}
	return slots
}

// overlay writes through an overlay over the mounted image, as a machine does.
func overlay(t *testing.T, lower string) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Errorf("tmpfs: %v", err)
		return
	}
	defer erofstest.Unmount(t, dir)
	merged := filepath.Join(dir, "m")
	for _, sub := range []string{"m", "u", "w"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Error(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/u,workdir=%s/w", lower, dir, dir)
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Errorf("overlay: %v", err)
		return
	}
	defer erofstest.Unmount(t, merged)
	passwd := filepath.Join(merged, "etc/passwd")
	before, err := os.ReadFile(passwd)
	if err != nil {
		t.Error(err)
		return
	}
	if err := os.WriteFile(passwd, append(before, "more\n"...), 0o600); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(merged, "srv")); err != nil {
		t.Error(err)
	}
	after, err := os.ReadFile(passwd)
	if err != nil || len(after) != len(before)+5 {
		t.Errorf("%d bytes after a write, %v, want %d", len(after), err, len(before)+5)
	}
}

// describe lists a tree: everything but the time stamps of directories, which unpacking into them changes.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		stat := info.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %o %d:%d", name, stat.Mode, stat.Uid, stat.Gid)
		if name == "." {
			line = "."
		}
		if !d.IsDir() {
			line += fmt.Sprintf(" %d.%09d %d", stat.Mtim.Sec, stat.Mtim.Nsec, stat.Size)
			if stat.Nlink > 1 && first[stat.Ino] == "" {
				first[stat.Ino] = name
			}
			line += " " + first[stat.Ino]
		}
		switch info.Mode().Type() {
		case 0:
			sum, err := hashFile(path)
			if err != nil {
				return err
			}
			line += " " + sum
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += "->" + target
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			line += fmt.Sprintf(" %d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
		default: // directories and pipes have no content of their own
		}
		list = append(list, line+xattrs(path))
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	slices.Sort(list)
	return list
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func xattrs(path string) string {
	buffer := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buffer)
	if err != nil {
		return " " + err.Error()
	}
	names := strings.Split(strings.Trim(string(buffer[:n]), "\x00"), "\x00")
	slices.Sort(names)
	out := ""
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		out += fmt.Sprintf(" %s=%q,%v", name, value[:max(n, 0)], err)
	}
	return out
}

func difference(got, want []string) string {
	var b strings.Builder
	for _, line := range got {
		if _, ok := slices.BinarySearch(want, line); !ok && b.Len() < 3000 {
			fmt.Fprintf(&b, "got  %.300s\n", line)
		}
	}
	for _, line := range want {
		if _, ok := slices.BinarySearch(got, line); !ok && b.Len() < 6000 {
			fmt.Fprintf(&b, "want %.300s\n", line)
		}
	}
	return b.String()
}
