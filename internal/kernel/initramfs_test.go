package kernel

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// entry is one file of a cpio archive.
type entry struct {
	name        string
	mode        int
	data        string
	rdev        [2]int
	mtime, size int
}

// unpack reads a newc archive strictly.
func unpack(t *testing.T, b []byte) []entry {
	t.Helper()
	var out []entry
	for at := 0; ; {
		if at+110 > len(b) || string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at %d", at)
		}
		var field [13]int
		for i := range field {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			field[i] = int(v)
		}
		name := string(b[at+110 : at+110+field[11]-1])
		start := (at + 110 + field[11] + 3) &^ 3
		end := start + field[6]
		if name == "TRAILER!!!" {
			return out
		}
		out = append(out, entry{name, field[1], string(b[start:end]), [2]int{field[9], field[10]}, field[5], field[6]})
		at = (end + 3) &^ 3
	}
}

func TestPrepare(t *testing.T) {
	f := newFake(t)
	s := f.write(t, t.TempDir())
	cache := t.TempDir()
	k, err := s.Prepare(cache, fakeInit)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(k.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	if hash(b) != k.InitramfsSHA256 || hash(f.image) != k.SHA256 || k.Path != s.Image() || k.Release != fakeRelease {
		t.Errorf("got %+v", k)
	}
	files := map[string]entry{}
	var names []string
	for _, e := range unpack(t, b) {
		files[e.name] = e
		names = append(names, e.name)
		if e.mtime != 0 {
			t.Errorf("%s has a time", e.name)
		}
	}
	const wantOrder = "early virtio_console.ko\nearly virtio_mmio.ko\n" +
		"late virtio_blk.ko\nlate libcrc32c.ko\nlate lz_lib.ko\nlate erofs.ko\nlate overlay.ko\n" +
		"late failover.ko\nlate net_failover.ko\nlate virtio_net.ko\n"
	if got := files["lib/modules/load"].data; got != wantOrder {
		t.Errorf("load order: got\n%s\nwant\n%s", got, wantOrder)
	}
	if got := files["lib/modules/virtio_mmio.ko"].data; got != string(fakeModule("virtio")) {
		t.Error("virtio_mmio.ko is not the decompressed module")
	}
	if e := files["init"]; e.data != string(fakeInit) || e.mode != 0o100755 {
		t.Errorf("init: got mode %o, %q", e.mode, e.data)
	}
	if e := files["dev/console"]; e.mode != 0o020600 || e.rdev != [2]int{5, 1} {
		t.Errorf("dev/console: got %+v", e)
	}
	for _, name := range names {
		if dir := filepath.Dir(name); dir != "." && slices.Index(names, dir) > slices.Index(names, name) {
			t.Errorf("%s comes before its directory", name)
		}
	}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "newroot"} {
		if files[dir].mode != 0o040755 {
			t.Errorf("%s: got mode %o", dir, files[dir].mode)
		}
	}
	if _, ok := files["lib/modules/unrelated.ko"]; ok {
		t.Error("a module that nothing needs is in the initramfs")
	}
}

// Modules for devices that not every VMM has are packed where the kernel has them, and nothing is missed where not.
func TestOptionalModules(t *testing.T) {
	f := newFake(t)
	f.config["VIRTIO_VSOCKETS"], f.config["HW_RANDOM_VIRTIO"] = "m", "m"
	f.files["kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko"] = fakeModule("vsock,virtio,libcrc32c")
	f.files["kernel/net/vmw_vsock/vsock.ko"] = fakeModule("")
	k, err := f.write(t, t.TempDir()).Prepare(t.TempDir(), fakeInit)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(k.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	var order string
	for _, e := range unpack(t, b) {
		count[e.name]++
		if e.name == "lib/modules/load" {
			order = e.data
		}
	}
	// A module that other phases need too is loaded by each, from one file.
	const want = "early virtio_mmio.ko\nvsock vsock.ko\nvsock libcrc32c.ko\nvsock vmw_vsock_virtio_transport.ko\n" +
		"late virtio_blk.ko\nlate libcrc32c.ko\n"
	if !strings.Contains(order, want) || strings.Contains(order, "rng") || count["lib/modules/libcrc32c.ko"] != 1 {
		t.Errorf("got\n%s%d times libcrc32c.ko", order, count["lib/modules/libcrc32c.ko"])
	}
}

func TestPrepareIsDeterministicAndCached(t *testing.T) {
	cache := t.TempDir()
	first, err := newFake(t).write(t, t.TempDir()).Prepare(cache, fakeInit)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Unix(1_000_000, 0)
	if err := os.Chtimes(first.Initramfs, old, old); err != nil {
		t.Fatal(err)
	}
	s := newFake(t).write(t, t.TempDir())
	second, err := s.Prepare(cache, fakeInit)
	if err != nil {
		t.Fatal(err)
	}
	if first.InitramfsSHA256 != second.InitramfsSHA256 || first.Initramfs != second.Initramfs {
		t.Errorf("the same kernel and init gave %s and %s", first.InitramfsSHA256, second.InitramfsSHA256)
	}
	if info, err := os.Stat(first.Initramfs); err != nil || !info.ModTime().Equal(old) {
		t.Errorf("the cached file was written again: %v, %v", info, err)
	}

	if err := os.WriteFile(first.Initramfs, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(cache, fakeInit); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(first.Initramfs); err != nil || hash(b) != first.InitramfsSHA256 {
		t.Errorf("the damaged file was not replaced: %v", err)
	}

	other, err := s.Prepare(cache, append(bytes.Clone(fakeInit), '2'))
	if err != nil || other.Initramfs == first.Initramfs {
		t.Errorf("another init gave the same file: %v", err)
	}
}

func TestPrepareAllBuiltIn(t *testing.T) {
	f := newFake(t)
	for name := range f.config {
		f.config[name] = "y"
	}
	f.files = nil
	k, err := f.write(t, t.TempDir()).Prepare(t.TempDir(), fakeInit)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(k.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range unpack(t, b) {
		if e.name == "lib/modules/load" && e.data != "" {
			t.Errorf("load order: got %q, want none", e.data)
		}
	}
}

func TestPrepareRefuses(t *testing.T) {
	cases := map[string]struct {
		change func(*fake)
		want   string
	}{
		"module missing":           {func(f *fake) { delete(f.files, "kernel/fs/overlayfs/overlay.ko") }, "overlay is neither built in nor among the modules"},
		"dependency missing":       {func(f *fake) { delete(f.files, "kernel/net/failover.ko.xz") }, "needs failover"},
		"modules of other release": {func(f *fake) { f.files["kernel/lib/libcrc32c.ko"] = fakeModuleFor("6.1.0", "") }, "is a module of kernel 6.1.0"},
		"circle":                   {func(f *fake) { f.files["kernel/lib/libcrc32c.ko"] = fakeModule("erofs") }, "depends on itself"},
		"no module":                {func(f *fake) { f.files["kernel/fs/overlayfs/overlay.ko"] = []byte("text") }, "not a kernel module"},
		"broken compression":       {func(f *fake) { f.files["kernel/virtio/virtio_mmio.ko.xz"] = []byte("text") }, "decompress"},
		"no modules.builtin":       {func(f *fake) { delete(f.files, "modules.builtin") }, "needs virtio"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			c.change(f)
			cache := t.TempDir()
			_, err := f.write(t, t.TempDir()).Prepare(cache, fakeInit)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if left, _ := os.ReadDir(cache); len(left) != 0 {
				t.Errorf("left in the cache: %v", left)
			}
		})
	}
	if _, err := newFake(t).write(t, t.TempDir()).Prepare(t.TempDir(), []byte("placeholder")); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("placeholder for init: got %v", err)
	}
}

// TestRealKernel runs everything on the kernels that scripts/get-kernel.sh made.
// realKernel is the newest kernel of those that there are here, or skips the test.
func realKernel(t *testing.T) Source {
	t.Helper()
	dir := os.Getenv("PINNACE_KERNELS")
	if dir == "" {
		t.Skip("needs a real kernel: set PINNACE_KERNELS to the kernels folder of scripts/get-kernel.sh")
	}
	s, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRealKernel(t *testing.T) {
	s := realKernel(t)
	start := time.Now()
	k, err := s.Prepare(t.TempDir(), fakeInit)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	b, err := os.ReadFile(k.Initramfs)
	if err != nil {
		t.Fatal(err)
	}
	summary := fmt.Sprintf("%s: initramfs %d bytes in %v, sha256 %s\n", k.Release, len(b), took, k.InitramfsSHA256)
	for _, e := range unpack(t, b) {
		if e.name == "lib/modules/load" {
			summary += e.data
		}
	}
	start = time.Now()
	path, _, err := s.Vmlinux(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%svmlinux %d bytes in %v", summary, info.Size(), time.Since(start))
}
