package image_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/erofs/erofstest"
	"github.com/pinnacehq/pinnace/internal/image"
	. "github.com/pinnacehq/pinnace/internal/image/imagetest" // see merge_test.go
)

// On a file system that can share blocks between files, a pack disk takes next to no space of its own.
func TestPackDiskSharesBlocks(t *testing.T) {
	erofstest.Require(t)
	mkfs, err := exec.LookPath("mkfs.xfs")
	if err != nil {
		t.Skip("needs mkfs.xfs: ", err)
	}
	dir := t.TempDir()
	disk, mounted := filepath.Join(dir, "disk"), filepath.Join(dir, "mounted")
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 512<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mounted, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{mkfs, "-q", "-m", "reflink=1", disk}, {"mount", "-o", "loop", disk, mounted}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs a kernel with XFS: %v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mounted).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	b := New()
	var total int64
	for i := range 5 {
		content := make([]byte, 8<<20+i*700)
		for j := range content {
			content[j] = byte(rand.Uint32())
		}
		tar := Tar(File("f", string(content)))
		total += int64(len(tar))
		b.RawLayer(tar)
	}
	s, err := image.Open(filepath.Join(mounted, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	img := pull(t, s, b.Build())
	before := free(t, mounted)
	set, err := s.Disks(img, 0)
	if err != nil {
		t.Fatal(err)
	}
	taken := before - free(t, mounted)
	t.Logf("a pack disk of %d bytes takes %d", total, taken)
	if taken > total/10 {
		t.Errorf("a pack disk of %d bytes takes %d of its own", total, taken)
	}
	for i, p := range readGPT(t, read(t, set.Drives[0].Path)) {
		if got := read(t, set.Drives[0].Path)[p.start:][:img.Layers[i].Size]; Digest(got) != img.DiffIDs[i] {
			t.Errorf("partition %d is not its layer", i+1)
		}
	}
}

// free is what a file system has left, in bytes, with everything written to it.
func free(t *testing.T, dir string) int64 {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}
