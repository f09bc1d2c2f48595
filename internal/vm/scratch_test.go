package vm_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm"
)

func needMkfs(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/usr/sbin/mkfs.ext4"); err != nil {
		if _, err := exec.LookPath("mkfs.ext4"); err != nil {
			t.Skip("needs mkfs.ext4: apt-get install e2fsprogs")
		}
	}
}

func TestScratch(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	scratch := vm.NewScratch(filepath.Join(dir, "templates", "scratch"))
	path := filepath.Join(dir, "disk")
	const size = 3<<30 + 1
	for range 2 { // the second replaces what the first left
		if err := scratch.Make(t.Context(), path, size); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() != 3<<30+4096 || info.Mode().Perm() != 0o600 {
			t.Errorf("got %d bytes, mode %v", info.Size(), info.Mode())
		}
		if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 4<<20 {
			t.Errorf("a new disk takes %d bytes", used)
		}
		wantExt4(t, path)
		if err := os.WriteFile(path, []byte("what the last machine left"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// wantExt4 looks for the superblock and what the recipe asks for.
func wantExt4(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	super := make([]byte, 1024)
	if _, err := f.ReadAt(super, 1024); err != nil {
		t.Fatal(err)
	}
	const hasJournal, resizeInode = 0x4, 0x10
	compat := binary.LittleEndian.Uint32(super[0x5c:])
	if !bytes.Equal(super[0x38:0x3a], []byte{0x53, 0xef}) || compat&(hasJournal|resizeInode) != 0 {
		t.Errorf("magic %x, compatible features %#x", super[0x38:0x3a], compat)
	}
	if blocks := binary.LittleEndian.Uint32(super[0x4:]); blocks != 64<<20/4096 {
		t.Errorf("got %d blocks", blocks)
	}
}

func TestScratchRefusesSizes(t *testing.T) {
	scratch := vm.NewScratch(t.TempDir())
	for _, size := range []int64{-1, 0, vm.MinScratch - 1, vm.MaxScratch + 1} {
		if err := scratch.Make(t.Context(), filepath.Join(t.TempDir(), "disk"), size); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
	}
}

func TestScratchSharedByProcesses(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			// Each has its own Scratch, as processes would.
			path := filepath.Join(dir, string(rune('a'+i)))
			if err := vm.NewScratch(filepath.Join(dir, "store")).Make(t.Context(), path, vm.MinScratch); err != nil {
				t.Error(err)
				return
			}
			wantExt4(t, path)
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(filepath.Join(dir, "store"))
	if err != nil || len(entries) != 1 {
		t.Errorf("left in the store: %v, %v", entries, err)
	}
}

func TestScratchWithoutMkfs(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/mkfs.ext4"); err == nil {
		t.Skip("needs a host without /usr/sbin/mkfs.ext4")
	}
	t.Setenv("PATH", "")
	err := vm.NewScratch(t.TempDir()).Make(t.Context(), filepath.Join(t.TempDir(), "disk"), vm.MinScratch)
	if err == nil {
		t.Error("no error")
	}
}
