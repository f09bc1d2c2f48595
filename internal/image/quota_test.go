package image_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// noise is content that no compression makes smaller.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	chacha := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = chacha.Read(b)
	return string(b)
}

func single(seed uint64, n int) *imagetest.Image {
	return imagetest.New().Layer(imagetest.File("f", noise(seed, n))).Build()
}

func withQuota(t *testing.T, dir string, q image.Quota) *image.Store {
	t.Helper()
	s, err := image.OpenWith(dir, image.Options{Quota: q})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestQuota(t *testing.T) {
	dir := t.TempDir()
	s := withQuota(t, dir, image.Quota{Bytes: 3 << 20})
	old, held, next, huge := single(1, 1<<20), single(2, 1<<20), single(3, 1<<20), single(4, 4<<20)
	pull(t, s, old)
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, held)
	pull(t, s, held)
	// The third does not fit beside the two, so the one that nobody holds goes.
	pull(t, s, next)
	for src, want := range map[*imagetest.Image]bool{old: false, held: true, next: true} {
		if _, ok, err := s.Lookup(src.ManifestDigest); ok != want || err != nil {
			t.Errorf("lookup: %v, %v, want %v", ok, err, want)
		}
	}
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "deployment", Name: "dev/api"}, next)
	before := stored(t, dir)
	_, err := s.Pull(t.Context(), huge, huge.ManifestDigest, huge.Manifest, huge.Config, nil)
	var space *image.SpaceError
	if !errors.As(err, &space) || !errors.Is(err, image.ErrNoSpace) {
		t.Fatalf("got %v, want a SpaceError", err)
	}
	if space.Need < 4<<20 || space.Quota.Bytes != 3<<20 || space.Held < 2<<20 || space.Used < 2<<20 {
		t.Errorf("numbers: %+v", space)
	}
	if msg := err.Error(); !strings.Contains(msg, "its quota of 3072.0 KiB") || !strings.Contains(msg, "agent: 1 × deployment, agent: 1 × instance, store: 1 × pull") {
		t.Errorf("message: %s", msg)
	}
	if n := huge.Requests(""); n != 0 {
		t.Errorf("%d blobs were asked for before it was refused", n)
	}
	if got := stored(t, dir); got != before {
		t.Errorf("the refused pull left %s", got)
	}
}

// What a layer takes uncompressed is only known while it comes in.
func TestQuotaOfWhatGrows(t *testing.T) {
	dir := t.TempDir()
	s := withQuota(t, dir, image.Quota{Bytes: 2 << 20})
	bomb := imagetest.New().Layer(imagetest.File("small", noise(1, 1000))).Layer(imagetest.File("f", strings.Repeat("a", 8<<20))).Build()
	// The lease of whoever wants it does not keep the layers of an image that cannot be.
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, bomb)
	_, err := s.Pull(t.Context(), bomb, bomb.ManifestDigest, bomb.Manifest, bomb.Config, nil)
	if !errors.Is(err, image.ErrNoSpace) || !strings.Contains(err.Error(), "quota of 2048.0 KiB") {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	if tars, _ := filepath.Glob(filepath.Join(dir, "layers", "*")); len(tars) > 0 {
		t.Errorf("layers are left: %v", tars)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "tmp", "process-*", "*[^k]")); len(left) > 0 {
		t.Errorf("unfinished files are left: %v", left)
	}
	// With more room the same image goes.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	pull(t, withQuota(t, dir, image.Quota{Bytes: 10 << 20}), bomb)
	// Who sets no quota gets the last one.
	more := single(2, 5<<20)
	s = open(t, dir)
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, bomb)
	if _, err := s.Pull(t.Context(), more, more.ManifestDigest, more.Manifest, more.Config, nil); !errors.Is(err, image.ErrNoSpace) {
		t.Errorf("another process's quota: got %v, want ErrNoSpace", err)
	}
}

// A disk of several layers takes as much as they do.
func TestQuotaOfPackDisks(t *testing.T) {
	dir := t.TempDir()
	s := withQuota(t, dir, image.Quota{Bytes: 3 << 20})
	src := imagetest.New().Layer(imagetest.File("a", noise(1, 1<<20))).Layer(imagetest.File("b", noise(2, 1<<20))).Build()
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, src)
	img := pull(t, s, src)
	if _, err := s.Disks(img, 1); !errors.Is(err, image.ErrNoSpace) {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	if packs, _ := filepath.Glob(filepath.Join(dir, "packs", "*")); len(packs) > 0 {
		t.Errorf("left %v", packs)
	}
	if _, err := s.Disks(img, 2); err != nil {
		t.Errorf("without a pack disk: %v", err)
	}
}

func TestReserve(t *testing.T) {
	s := withQuota(t, t.TempDir(), image.Quota{Reserve: 1 << 60})
	src := single(1, 1000)
	_, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
	if !errors.Is(err, image.ErrNoSpace) || !strings.Contains(err.Error(), "in reserve") || src.Requests("") != 0 {
		t.Errorf("got %v after %d requests, want ErrNoSpace for the reserve", err, src.Requests(""))
	}
}

const fullDir = "PINNACE_IMAGE_FULL_DIR"

// A disk that is full: one error that says so, nothing left behind, what is held untouched; and when there is room
// again, the same store goes on.
func TestFullDisk(t *testing.T) {
	if dir := os.Getenv(fullDir); dir != "" {
		fullDisk(t, dir)
		return
	}
	child := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	child.Env = append(os.Environ(), fullDir+"="+t.TempDir())
	// A mount of its own takes no more than a user namespace.
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS}
	child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	out, err := child.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOSPC), strings.Contains(string(out), "cannot mount"):
		t.Skipf("needs a mount namespace of its own: %v %s", err, out)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func fullDisk(t *testing.T, dir string) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,nr_inodes=100"); err != nil {
		fmt.Println("cannot mount a tmpfs: ", err)
		os.Exit(3)
	}
	// The directory of the store itself, so that the file that fills the disk can be beside it.
	s := withQuota(t, filepath.Join(dir, "store"), image.Quota{})
	held := single(1, 2<<20)
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, held)
	img := pull(t, s, held)
	machine, err := os.Open(img.Layers[0].Path) // as a machine has it
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	unheld := single(2, 1<<20)
	pull(t, s, unheld)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before := stored(t, filepath.Join(dir, "store"))

	src := imagetest.New().Layer(imagetest.File("a", noise(3, 1<<20))).Layer(imagetest.File("b", strings.Repeat(noise(4, 16<<10), 256))).Build()
	lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "web-0"}, src)
	_, err = s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
	if !errors.Is(err, image.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("got %v, want ErrNoSpace", err)
	}
	t.Logf("message: %v", err)
	var left []string
	for name := range strings.FieldsSeq(stored(t, filepath.Join(dir, "store"))) {
		if !strings.Contains(before, name) && !strings.HasPrefix(name, "leases/") {
			left = append(left, name)
		}
	}
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if tmp, _ := filepath.Glob(filepath.Join(dir, "store", "tmp", "process-*", "*[^k]")); len(tmp) > 0 {
		t.Errorf("left unfinished: %v", tmp)
	}
	if _, ok, err := s.Lookup(held.ManifestDigest); !ok || err != nil {
		t.Errorf("the held image: %v, %v", ok, err)
	}
	if _, ok, _ := s.Lookup(unheld.ManifestDigest); ok {
		t.Error("an image that nobody holds stayed while the disk was full")
	}
	if b := make([]byte, 512); machine != nil {
		if _, err := machine.ReadAt(b, 0); err != nil {
			t.Errorf("what runs: %v", err)
		}
	}
	// Reading goes on with not a byte left.
	if err := os.WriteFile(filepath.Join(dir, "rest"), make([]byte, 8<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	sound(t, s, "on a full disk")
	if _, err := s.GC(t.Context(), image.GCOptions{}); err != nil {
		t.Errorf("collection on a full disk: %v", err)
	}
	for _, name := range []string{"rest", "ballast"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	pull(t, s, src)
	sound(t, s, "with room again")

	// What does not fit even compressed is refused before its first byte, without a quota too.
	huge := single(6, 9<<20)
	if _, err := s.Pull(t.Context(), huge, huge.ManifestDigest, huge.Manifest, huge.Config, nil); !errors.Is(err, image.ErrNoSpace) || huge.Requests("") > 0 {
		t.Errorf("more than the disk has: got %v after %d requests", err, huge.Requests(""))
	}

	// Where not even a directory fits, the store can be opened, by collecting what nobody holds.
	other := single(5, 1000)
	pull(t, s, other)
	fillInodes(t, dir)
	again := open(t, filepath.Join(dir, "store"))
	if _, ok, err := again.Lookup(held.ManifestDigest); !ok || err != nil {
		t.Errorf("the held image: %v, %v", ok, err)
	}
	if _, ok, _ := again.Lookup(other.ManifestDigest); ok {
		t.Error("an image that nobody holds stayed although the store had to be opened")
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	// The same when everything is held: then it is the ballast that goes.
	fillInodes(t, dir)
	again = open(t, filepath.Join(dir, "store"))
	if _, ok, err := again.Lookup(held.ManifestDigest); !ok || err != nil {
		t.Errorf("the held image: %v, %v", ok, err)
	}
}

func fillInodes(t *testing.T, dir string) {
	for i := 0; ; i++ {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("empty", i)), os.O_CREATE|os.O_WRONLY, 0o600)
		if errors.Is(err, syscall.ENOSPC) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
