package firecracker

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// otherFileSystem returns a directory on another file system than dir's.
func otherFileSystem(t *testing.T, dir string) string {
	t.Helper()
	here, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	const shm = "/dev/shm"
	there, err := os.Stat(shm)
	if err != nil || there.Sys().(*syscall.Stat_t).Dev == here.Sys().(*syscall.Stat_t).Dev {
		t.Skip("needs a second file system, in /dev/shm")
	}
	other, err := os.MkdirTemp(shm, "fc-") //nolint:usetesting // of another file system
	if err != nil {
		t.Skipf("needs to write in /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(other) })
	return other
}

func bootFiles(t *testing.T, dir string) vm.Spec {
	t.Helper()
	spec := vm.Spec{
		ID: "m", Kernel: filepath.Join(dir, "vmlinux"), Initramfs: filepath.Join(dir, "initramfs"),
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
	}
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = 870000, 870000
	}
	for path, content := range map[string]string{spec.Kernel: "\x7fELF", spec.Initramfs: "cpio"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

// TestOtherFileSystem: what is only read is copied, aloud; what is written is refused, because the writes would be lost.
func TestOtherFileSystem(t *testing.T) {
	base := t.TempDir()
	other := otherFileSystem(t, base)
	spec := bootFiles(t, other)
	disk := filepath.Join(other, "disk")
	if err := os.WriteFile(disk, make([]byte, 1024), 0o644); err != nil {
		t.Fatal(err)
	}
	spec.Disks = []vm.Disk{{ID: "layer", Path: disk, ReadOnly: true}}
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	j, err := newJail(base, "firecracker", spec, logger)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(j.root, "disk0"))
	if err != nil || info.Size() != 1024 || info.Mode().Perm() != 0o400 || info.Sys().(*syscall.Stat_t).Uid != spec.UID {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if got := log.String(); strings.Count(got, "a file is copied") != 3 || !strings.Contains(got, "bytes=1024") {
		t.Errorf("log: %s", got)
	}
	if err := j.remove(); err != nil {
		t.Error(err)
	}

	spec.Disks[0].ReadOnly = false
	_, err = newJail(base, "firecracker", spec, logger)
	var bad *vm.SpecError
	if !errors.As(err, &bad) || bad.Field != "Disks[0]" || !strings.Contains(bad.Reason, "same file system") {
		t.Errorf("got %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(base, "*", "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestWhoseFiles: a disk that is written to becomes the monitor's, one that is read stays whose it is and has to be
// readable.
func TestWhoseFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: to give files away")
	}
	dir := t.TempDir()
	spec := bootFiles(t, dir)
	for name, mode := range map[string]os.FileMode{"layer": 0o444, "scratch": 0o600, "secret": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 512), mode); err != nil {
			t.Fatal(err)
		}
	}
	spec.Disks = []vm.Disk{{ID: "layer", Path: filepath.Join(dir, "layer"), ReadOnly: true}, {ID: "scratch", Path: filepath.Join(dir, "scratch")}}
	j, err := newJail(dir, "firecracker", spec, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for name, uid := range map[string]uint32{"layer": 0, "scratch": spec.UID} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Sys().(*syscall.Stat_t).Uid != uid || info.Sys().(*syscall.Stat_t).Nlink != 2 {
			t.Errorf("%s: %+v, %v", name, info.Sys(), err)
		}
	}
	if err := j.remove(); err != nil {
		t.Error(err)
	}
	spec.Disks = []vm.Disk{{ID: "secret", Path: filepath.Join(dir, "secret"), ReadOnly: true}}
	var bad *vm.SpecError
	if _, err := newJail(dir, "firecracker", spec, slog.New(slog.DiscardHandler)); !errors.As(err, &bad) || !strings.Contains(bad.Reason, "chmod a+r") {
		t.Errorf("got %v", err)
	}
}
