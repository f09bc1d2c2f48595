// Package erofstest mounts EROFS images through loop devices, for tests that want to know what a kernel
// makes of them. It needs root and leaves nothing behind: mounts are made in a mount namespace of the test's
// own, loop devices are given back. It is for tests only and knows nothing of how images are made.
package erofstest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Require skips the test unless it was asked for and can run.
func Require(t *testing.T) {
	t.Helper()
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("needs PINNACE_E2E=1, which make test sets: mounts with loop devices")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts with loop devices")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices: ", err)
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\terofs\n") {
		t.Skip("needs a kernel with EROFS built in or loaded")
	}
}

// Namespace runs f on a thread with a mount namespace and working directory of its own, which end with it.
// f must not start goroutines that look at mounts, and fails the test with t.Error or Fatal as usual.
func Namespace(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		// The thread is never unlocked, so it dies with the goroutine, and its namespace with it.
		runtime.LockOSThread()
		err := errors.New("test ended early")
		defer func() { done <- err }()
		if err = unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Loop attaches the file at path, read-only, until the test ends.
func Loop(t *testing.T, path string) (device string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			t.Fatal("find a free loop device: ", err)
		}
		device = fmt.Sprintf("/dev/loop%d", n)
		loop, err := os.OpenFile(device, os.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Size: 512}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			loop.Close() // another process was faster
			continue
		}
		if err != nil {
			t.Fatalf("attach %s to %s: %v", path, device, err)
		}
		t.Cleanup(func() {
			if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
				t.Errorf("give back %s: %v", device, err)
			}
			loop.Close()
		})
		return device
	}
}

// A Partition of a disk, in bytes.
type Partition struct {
	Start, Size int64
}

// Partitions tells the kernel of the partitions of device, as a scan would, and gives their nodes. It does
// not depend on the kernel's own understanding of partition tables, which may be left out.
func Partitions(t *testing.T, device string, partitions []Partition) []string {
	t.Helper()
	disk, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	var nodes []string
	for i, p := range partitions {
		arg := unix.BlkpgPartition{Start: p.Start, Length: p.Size, Pno: int32(i + 1)}
		if err := blkpg(disk, unix.BLKPG_ADD_PARTITION, &arg); err != nil {
			t.Fatalf("add partition %d of %s: %v", i+1, device, err)
		}
		t.Cleanup(func() {
			if err := blkpg(disk, unix.BLKPG_DEL_PARTITION, &arg); err != nil {
				t.Errorf("remove partition %d of %s: %v", arg.Pno, device, err)
			}
		})
		nodes = append(nodes, fmt.Sprintf("%sp%d", device, i+1))
	}
	return nodes
}

func blkpg(disk *os.File, op int32, p *unix.BlkpgPartition) error {
	data := (*byte)(unsafe.Pointer(p)) //nolint:gosec // the ioctl takes a pointer to the partition
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(*p)), Data: data}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG,
		uintptr(unsafe.Pointer(&arg))) //nolint:gosec // and x/sys has no wrapper for it
	if errno != 0 {
		return errno
	}
	return nil
}

// Mount mounts the metadata with its devices, in the order of the slots, with mount(2) as a guest does,
// and gives the directory. It must be called within Namespace.
func Mount(t *testing.T, metadata string, devices []string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	options := make([]string, len(devices))
	for i, device := range devices {
		options[i] = "device=" + device
	}
	data := strings.Join(options, ",")
	if len(data) >= os.Getpagesize() {
		t.Fatalf("mount options of %d bytes do not fit into a page", len(data))
	}
	if err := unix.Mount(metadata, dir, "erofs", unix.MS_RDONLY, data); err != nil {
		t.Fatalf("mount -t erofs -o %.200s %s: %v", data, metadata, err)
	}
	return dir
}

// Unmount undoes Mount.
func Unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("unmount: %v", err)
	}
}
