//go:build linux

package pid1

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountPoint finds and makes directories behind every kind of link, all inside of the root.
func TestMountPoint(t *testing.T) {
	root := t.TempDir()
	outside := t.TempDir()
	for _, dir := range []string{"var/lib/db", "real", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"data": "/var/lib/db", "rel": "real", "up": "../../../real", "dangling": "/srv/a/b", "real/below": "../made/here",
		"chain": "dangling2", "dangling2": "real/new", "loop": "loop", "escape": "../../.." + outside, "toproc": "/proc/1", "todev": "/dev",
		"toroot": "/", "file": "/plain",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"plain", "proc", "dev"} {
		var err error
		if file == "plain" {
			err = os.WriteFile(filepath.Join(root, file), nil, 0o600)
		} else {
			err = os.MkdirAll(filepath.Join(root, file, "1"), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		path, real string
		made       bool
		err        string
	}{
		{path: "/var/lib/db", real: "/var/lib/db"},
		{path: "/data", real: "/var/lib/db"},
		{path: "/data/sub/dir", real: "/var/lib/db/sub/dir", made: true},
		{path: "/rel/x", real: "/real/x", made: true},
		{path: "/up", real: "/real"},
		{path: "/dangling", real: "/srv/a/b", made: true},
		{path: "/dangling/deeper", real: "/srv/a/b/deeper", made: true},
		{path: "/rel/below", real: "/made/here", made: true},
		{path: "/chain", real: "/real/new", made: true},
		{path: "/../../x", real: "/x", made: true},
		{path: "/loop/x", err: "too many levels"},
		{path: "/loop", err: "too many levels"},
		{path: "/plain", err: "something else than a directory"},
		{path: "/plain/x", err: "something else than a directory"},
		{path: "/file", err: "something else than a directory"},
		{path: "/toproc", err: "nothing can be put in /proc"},
		{path: "/todev/x", err: "nothing can be put in /dev"},
		{path: "/run/pinnace/x", err: "nothing can be put in /run/pinnace"},
		{path: "/toroot", err: "root directory"},
		{path: "/escape/x", real: outside + "/x", made: true}, // of the same name, inside
	} {
		fd, real, made, err := mountPoint(root, tc.path)
		if err == nil {
			closeFD(fd)
		}
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%s: got %s, %v, want %q", tc.path, real, err, tc.err)
			}
			continue
		}
		if err != nil || real != tc.real || made != tc.made {
			t.Errorf("%s: got %s, %v, %v, want %s, %v", tc.path, real, made, err, tc.real, tc.made)
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("something was made outside: %v, %v", left, err)
	}
}

// TestFirstUse: a volume gets its owner once, and lost+found goes with that.
func TestFirstUse(t *testing.T) {
	o := owner{uint32(os.Getuid()), uint32(os.Getgid()), 0o750}
	if o.uid == 0 {
		o.uid, o.gid = 1234, 5678
	}
	for _, tc := range []struct {
		name, names string
		fresh       bool
	}{
		{"new", "lost+found", true},
		{"used", "lost+found file", false},
		{"emptied", "", false},
		{"something was found", "lost+found lost+found/#12", false},
		{"only a file", "file", false},
	} {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
		for name := range strings.FieldsSeq(tc.names) {
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time is the next boot
			if err := firstUse(root, o); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			o.mode = 0o700
		}
		o.mode = 0o750
		closeFD(root)
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		given := st.Mode&0o7777 == 0o750 && st.Uid == o.uid && st.Gid == o.gid
		after, err := os.ReadDir(dir)
		if err != nil || given != tc.fresh || (st.Mode&0o7777 == 0o711) == tc.fresh {
			t.Errorf("%s: mode %04o, owner %d:%d, %v", tc.name, st.Mode&0o7777, st.Uid, st.Gid, err)
		}
		if want := map[bool]int{true: 0, false: len(before)}[tc.fresh]; len(after) != want {
			t.Errorf("%s: %v became %v", tc.name, before, after)
		}
	}
}

func TestFirstOwner(t *testing.T) {
	image := unix.Stat_t{Uid: 999, Gid: 998, Mode: unix.S_IFDIR | 0o1777}
	for _, tc := range []struct {
		user user
		made bool
		want owner
	}{
		{user{uid: 1000, gid: 1001}, false, owner{1000, 1001, 0o1777}},
		{user{uid: 1000, gid: 1001}, true, owner{1000, 1001, 0o755}},
		{user{}, false, owner{999, 998, 0o1777}},
		{user{}, true, owner{0, 0, 0o755}},
	} {
		b := &Boot{user: tc.user}
		if got := b.firstOwner(image, tc.made); got != tc.want {
			t.Errorf("%+v, %v: got %+v, want %+v", tc.user, tc.made, got, tc.want)
		}
	}
}

func TestCheckExt4(t *testing.T) {
	node := filepath.Join(t.TempDir(), "disk")
	super := make([]byte, superblockAt+1024)
	check := func(want string) {
		t.Helper()
		if err := os.WriteFile(node, super, 0o600); err != nil {
			t.Fatal(err)
		}
		err := checkExt4(node)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	check("no ext4")
	binary.LittleEndian.PutUint16(super[superblockAt+ext4MagicAt:], ext4Magic)
	check("")
	super[superblockAt+ext4StateAt] = 1
	check("")
	super[superblockAt+ext4StateAt] = ext4HasError
	check("noted errors")
	super = super[:100]
	check("read superblock")
}
