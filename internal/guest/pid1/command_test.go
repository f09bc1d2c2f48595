//go:build linux

package pid1

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLookUp(t *testing.T) {
	root := t.TempDir()
	for name, mode := range map[string]os.FileMode{
		"bin/all": 0o755, "bin/owner": 0o700, "bin/plain": 0o644, "sbin/all": 0o755, "sbin/plain": 0o755, "cwd/run.sh": 0o755,
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "bin/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	owner := user{uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	other := user{uid: owner.uid + 7000, gid: owner.gid + 7000}
	path := filepath.Join(root, "bin") + ":" + filepath.Join(root, "not-there") + ":" + filepath.Join(root, "sbin")
	for _, tc := range []struct {
		name, path, dir string
		user            user
		want            string
		code            int
		errno           unix.Errno
	}{
		{name: "all", path: path, user: other, want: "bin/all"},
		{name: "plain", path: path, user: other, want: "sbin/plain"}, // the first one is no command
		{name: "owner", path: path, user: owner, want: "bin/owner"},
		{name: "owner", path: path, user: other, code: 126, errno: unix.EACCES},
		{name: "dir", path: path, user: other, code: 126, errno: unix.EISDIR},
		{name: "missing", path: path, user: other, code: 127, errno: unix.ENOENT},
		{name: "missing", path: "", user: other, code: 127, errno: unix.ENOENT},
		{name: "./run.sh", dir: root + "/cwd", user: other, want: "cwd/run.sh"},
		{name: "run.sh", path: ".", dir: root + "/cwd", user: other, want: "cwd/run.sh"},
		{name: "../bin/all", dir: root + "/cwd", user: other, want: "bin/all"},
		{name: root + "/bin/all", user: other, want: "bin/all"},
		{name: root + "/bin/nothing", user: other, code: 127, errno: unix.ENOENT},
		{name: root + "/bin/all/below-a-file", user: other, code: 127, errno: unix.ENOTDIR},
		{name: root + "/bin/plain", user: other, code: 126, errno: unix.EACCES},
		{name: "", path: path, user: other, code: 127, errno: unix.ENOENT},
	} {
		got, err := lookUp(tc.name, tc.path, tc.dir, tc.user)
		if tc.code == 0 {
			if want := filepath.Join(root, tc.want); err != nil || got != want {
				t.Errorf("%q: got %q, %v; want %q", tc.name, got, err, want)
			}
			continue
		}
		var e *execError
		if !errors.As(err, &e) || e.code != tc.code || !errors.Is(err, tc.errno) {
			t.Errorf("%q: got %q, %v; want code %d and %v", tc.name, got, err, tc.code, tc.errno)
		}
	}
}

func TestExecutableByGroup(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o610); err != nil {
		t.Fatal(err)
	}
	gid := uint32(os.Getgid())
	stranger := uint32(os.Getuid()) + 7000
	if err := executable(file, user{uid: stranger, gid: gid + 1, groups: []uint32{gid}}); err != nil {
		t.Errorf("a member of the group: %v", err)
	}
	if err := executable(file, user{uid: stranger, gid: gid + 1}); !errors.Is(err, unix.EACCES) {
		t.Errorf("a stranger: %v", err)
	}
}

func TestStartError(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
		text string
	}{
		{unix.ENOENT, 127, "dynamic loader"},
		{unix.ENOEXEC, 126, "architecture"},
		{unix.EACCES, 126, "permission denied"},
		{unix.E2BIG, 126, "argument list too long"},
		{&os.PathError{Op: "enter directory", Path: "/x", Err: unix.EACCES}, 125, "/x"},
	} {
		err := startError("/app", tc.err)
		var e *execError
		if !errors.As(err, &e) || e.code != tc.code || !strings.Contains(err.Error(), tc.text) || !errors.Is(err, tc.err) {
			t.Errorf("%v: got %v", tc.err, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name  string
		given []string
		want  []string
	}{
		{"defaults", nil, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root"}},
		{"own ones win", []string{"PATH=/x", "HOME=/y", "HOSTNAME=z"}, []string{"PATH=/x", "HOSTNAME=z", "HOME=/y"}},
		{"an empty HOME is none", []string{"HOME="}, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root"}},
		{"an empty PATH is one", []string{"PATH="}, []string{"PATH=", "HOSTNAME=h", "HOME=/root"}},
		{"the last wins", []string{"A=1", "B=2", "A=3"}, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root", "A=3", "B=2"}},
		{"values keep their =", []string{"A=b=c"}, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root", "A=b=c"}},
		{"nonsense is left out", []string{"A", "=b", "C=\x00", ""}, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root"}},
	} {
		if got := environment(tc.given, "h", "/root"); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	if got := lookEnv([]string{"PATHS=1", "PATH=2"}, "PATH"); got != "2" {
		t.Errorf("lookEnv: %q", got)
	}
}
