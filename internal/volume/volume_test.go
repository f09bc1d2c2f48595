package volume_test

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/failpoint"
	"github.com/pinnacehq/pinnace/internal/volume"
)

const size = 64 << 20

func open(t *testing.T) (*volume.Store, string) {
	t.Helper()
	for _, name := range []string{"mkfs.ext4", "e2fsck", "debugfs"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: apt-get install e2fsprogs", name)
		}
	}
	dir := filepath.Join(t.TempDir(), "volumes")
	s, err := volume.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func create(t *testing.T, s *volume.Store, id string) {
	t.Helper()
	if err := s.Create(t.Context(), id, size); err != nil {
		t.Fatal(err)
	}
}

func hold(t *testing.T, s *volume.Store, id string) *volume.Hold {
	t.Helper()
	h, err := s.Hold(id, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func debugfs(t *testing.T, image string, command ...string) string {
	t.Helper()
	out, err := exec.Command("debugfs", append(command, image)...).CombinedOutput()
	if err != nil {
		t.Fatalf("debugfs %v: %v\n%s", command, err, out)
	}
	return string(out)
}

func TestCreate(t *testing.T) {
	s, dir := open(t)
	create(t, s, "db")
	info, err := s.Stat("db")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != size || info.Allocated > 8<<20 || info.Used < 0 || info.Used > 16<<20 || info.HeldBy != "" {
		t.Errorf("got %+v, want a sparse volume that nobody holds", info)
	}
	image := hold(t, s, "db").Path()
	if out, err := exec.Command("e2fsck", "-f", "-n", image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	head := debugfs(t, image, "-R", "show_super_stats -h")
	for _, want := range []string{"has_journal", "metadata_csum", "Errors behavior:          Remount read-only", "Reserved block count:     0"} {
		if !strings.Contains(head, want) {
			t.Errorf("the file system has no %q:\n%s", want, head)
		}
	}
	if strings.Contains(head, "orphan_file") {
		t.Error("the file system has what an older e2fsck does not know")
	}
	if err := s.Create(t.Context(), "db", size); !errors.Is(err, volume.ErrExists) {
		t.Errorf("made twice: got %v, want ErrExists", err)
	}
	if got := left(t, dir); !slices.Equal(got, []string{"db"}) {
		t.Errorf("the store has %v", got)
	}
}

// left is what a store's directory holds, but for its lock.
func left(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, e := range entries {
		if e.Name() != ".making" {
			all = append(all, e.Name())
		}
	}
	return all
}

func TestBadVolumes(t *testing.T) {
	s, _ := open(t)
	for _, id := range []string{"", "-a", "A", "a/b", "..", ".tmp-a", "a.b", strings.Repeat("a", 64)} {
		if err := s.Create(t.Context(), id, size); err == nil || !strings.Contains(err.Error(), "cannot be the id") {
			t.Errorf("%q: got %v", id, err)
		}
		if _, err := s.Hold(id, "x"); err == nil {
			t.Errorf("%q can be held", id)
		}
	}
	for _, bytes := range []int64{-1, 0, volume.MinSize - 1, volume.MaxSize + 1} {
		if err := s.Create(t.Context(), "a", bytes); err == nil || !strings.Contains(err.Error(), "not in 64MiB to 16TiB") {
			t.Errorf("%d bytes: got %v", bytes, err)
		}
	}
	if _, err := s.Hold("none", "x"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if err := s.SnapshotFrozen(t.Context(), "none", "x"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if err := s.Remove("none"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if _, err := s.Stat("none"); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

// TestCreateFails lets every step on the disk fail once: then there is no volume, nothing is left of it, and the next
// attempt makes one.
func TestCreateFails(t *testing.T) {
	s, dir := open(t)
	broken := errors.New("broken")
	for n := 1; ; n++ {
		at, last := 0, ""
		restore := failpoint.Set(func(step, path string) error {
			if !strings.HasPrefix(path, dir) {
				return nil
			}
			if at++; at == n {
				last = step
				return broken
			}
			return nil
		})
		err := s.Create(t.Context(), "db", size)
		restore()
		if at < n {
			if err != nil {
				t.Fatal(err)
			}
			if n < 8 {
				t.Errorf("%d steps only", n-1)
			}
			break
		}
		if !errors.Is(err, broken) {
			t.Fatalf("step %d (%s): got %v", n, last, err)
		}
		// After the rename the volume is there, although not for sure after a crash.
		if got := left(t, dir); len(got) > 0 && !slices.Equal(got, []string{"db"}) {
			t.Errorf("step %d (%s) left %v", n, last, got)
		}
		if _, err := s.Stat("db"); err == nil {
			if err := s.Remove("db"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestSweep: what a crash leaves goes with the next Open, but not what somebody is at work at.
func TestSweep(t *testing.T) {
	s, dir := open(t)
	create(t, s, "db")
	if err := s.Snapshot(t.Context(), "db", "one"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{".tmp-1/volume.ext4", "db/snapshots/.tmp-2"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	blocked := make(chan error)
	restore := failpoint.Set(func(step, path string) error {
		if step == "create" && path == dir { // another one is being made: nothing may go
			_, err := volume.Open(dir)
			blocked <- err
		}
		return nil
	})
	made := make(chan error, 1)
	go func() { made <- s.Create(context.Background(), "other", size) }()
	if err := <-blocked; err != nil {
		t.Error(err)
	}
	if err := <-made; err != nil {
		t.Error(err)
	}
	restore()
	if got := left(t, dir); !slices.Contains(got, ".tmp-1") {
		t.Error("something was removed while a volume was being made")
	}
	if _, err := volume.Open(dir); err != nil {
		t.Fatal(err)
	}
	if got := left(t, dir); !slices.Equal(got, []string{"db", "other"}) {
		t.Errorf("the store has %v", got)
	}
	info, err := s.Stat("db")
	if err != nil || len(info.Snapshots) != 1 {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "db/snapshots/.tmp-2")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a snapshot is left: %v", err)
	}
}

// TestHold: a volume has one holder, whoever looks meanwhile; and a process that has inherited the lock is one, whatever
// becomes of the one that took it.
func TestHold(t *testing.T) {
	s, dir := open(t)
	create(t, s, "db")
	h, err := s.Hold("db", "api-0, attempt 3")
	if err != nil {
		t.Fatal(err)
	}
	other, err := volume.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(why string) {
		t.Helper()
		if _, err := other.Hold("db", "api-1"); !errors.Is(err, volume.ErrHeld) || !strings.Contains(err.Error(), "api-0, attempt 3") {
			t.Errorf("%s: got %v, want ErrHeld and the holder's name", why, err)
		}
		if err := other.Remove("db"); !errors.Is(err, volume.ErrHeld) {
			t.Errorf("%s: removed: %v", why, err)
		}
		if err := other.Snapshot(t.Context(), "db", "x"); !errors.Is(err, volume.ErrHeld) {
			t.Errorf("%s: copied: %v", why, err)
		}
		if err := other.SnapshotFrozen(t.Context(), "db", strings.ReplaceAll(why, " ", "-")); err != nil {
			t.Errorf("%s: copied while nobody writes: %v", why, err)
		}
		if info, err := other.Stat("db"); err != nil || info.HeldBy != "api-0, attempt 3" {
			t.Errorf("%s: got %+v, %v", why, info, err)
		}
	}
	refused("held")
	child := exec.Command("/bin/sh", "-c", "echo up; read x")
	child.ExtraFiles = []*os.File{h.Lock()}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	h.Close()
	refused("held by a process that inherited it")
	in.Close()
	if err := child.Wait(); err == nil {
		t.Error("read found something")
	}
	h, err = other.Hold("db", "api-1")
	if err != nil {
		t.Fatalf("after the holder's end: %v", err)
	}
	h.Close()
	if info, err := s.Stat("db"); err != nil || info.HeldBy != "" {
		t.Errorf("got %+v, %v", info, err)
	}
	if err := s.Remove("db"); err != nil {
		t.Fatal(err)
	}
	if got := left(t, dir); len(got) > 0 {
		t.Errorf("%v is left", got)
	}
}

func TestGrow(t *testing.T) {
	s, _ := open(t)
	create(t, s, "db")
	h := hold(t, s, "db")
	if err := h.Grow(size); err != nil {
		t.Errorf("to what it is: %v", err)
	}
	if err := h.Grow(10<<30 + 1); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Size(); err != nil || got != 10<<30+4096 {
		t.Errorf("%d bytes, %v", got, err)
	}
	err := h.Grow(1 << 30)
	if !errors.Is(err, volume.ErrShrink) || !strings.Contains(err.Error(), "cannot become 1GiB") {
		t.Errorf("got %v, want ErrShrink", err)
	}
	if err := h.Grow(volume.MaxSize + 1); err == nil {
		t.Error("grew without bounds")
	}
	if info, err := s.Stat("db"); err != nil || info.Allocated > 8<<20 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestSnapshot(t *testing.T) {
	s, dir := open(t)
	create(t, s, "db")
	h := hold(t, s, "db")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("what it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	debugfs(t, h.Path(), "-w", "-R", "write "+file+" precious")
	if err := h.Snapshot(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	debugfs(t, h.Path(), "-w", "-R", "rm precious")
	if err := h.Snapshot(t.Context(), "before"); !errors.Is(err, volume.ErrExists) {
		t.Errorf("over another: got %v, want ErrExists", err)
	}
	if err := h.Snapshot(t.Context(), "../x"); err == nil {
		t.Error("a snapshot has any name")
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Snapshot(gone, "late"); err == nil {
		t.Log("the file system shares blocks: there was nothing to cancel")
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	} else if info, _ := s.Stat("db"); len(info.Snapshots) != 1 {
		t.Errorf("a snapshot that was not finished is there: %+v", info)
	}
	info, err := s.Stat("db")
	if err != nil || len(info.Snapshots) == 0 {
		t.Fatalf("got %+v, %v", info, err)
	}
	snap := info.Snapshots[0]
	if snap.Name != "before" || snap.Size != size || snap.Allocated > 8<<20 {
		t.Errorf("got %+v, want a sparse copy", snap)
	}
	if got := debugfs(t, snap.Path, "-R", "cat precious"); !strings.Contains(got, "what it was") {
		t.Errorf("the copy has %q", got)
	}
	if allocated, promised, err := s.Usage(); err != nil || promised != size || allocated < info.Allocated+snap.Allocated {
		t.Errorf("usage: %d, %d, %v", allocated, promised, err)
	}
	if err := s.RemoveSnapshot("db", "before"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSnapshot("db", "before"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotExist", err)
	}
	if all, err := s.List(); err != nil || len(all) != 1 || all[0].ID != "db" {
		t.Errorf("got %+v, %v in %v", all, err, left(t, dir))
	}
}

// TestCheck: a file system whose kernel noted an error is repaired when that loses nothing, as an identity of its own,
// and left alone when it would.
func TestCheck(t *testing.T) {
	s, _ := open(t)
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	if uid == 0 {
		uid, gid = 64999, 64999
	}
	create(t, s, "db")
	h := hold(t, s, "db")
	if done, err := h.Check(t.Context(), uid, gid); err != nil || done != "" {
		t.Errorf("a new one: %q, %v", done, err)
	}
	debugfs(t, h.Path(), "-w", "-R", "set_super_value state 2")
	done, err := h.Check(t.Context(), uid, gid)
	if err != nil || !strings.Contains(done, "checked after errors") {
		t.Errorf("one with errors: %q, %v", done, err)
	}
	if done, err := h.Check(t.Context(), uid, gid); err != nil || done != "" {
		t.Errorf("one that was repaired: %q, %v", done, err)
	}

	// The root directory is gone: nothing that could be repaired by itself.
	debugfs(t, h.Path(), "-w", "-R", "clri <2>")
	debugfs(t, h.Path(), "-w", "-R", "set_super_value state 2")
	if done, err := h.Check(t.Context(), uid, gid); !errors.Is(err, volume.ErrDamaged) || !strings.Contains(err.Error(), "e2fsck on the copy") {
		t.Errorf("a broken one: %q, %v, want ErrDamaged", done, err)
	}
	if err := os.WriteFile(h.Path(), make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Check(t.Context(), uid, gid); !errors.Is(err, volume.ErrDamaged) {
		t.Errorf("an empty one: %v, want ErrDamaged", err)
	}
	if info, err := s.Stat("db"); err != nil || info.Used != -1 {
		t.Errorf("got %+v, %v", info, err)
	}
}
