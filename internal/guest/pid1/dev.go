//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// MountDev mounts in /dev what devtmpfs doesn't have. hugetlbfs is not among it, as in Docker.
func (b *Boot) MountDev() error {
	for _, m := range []struct {
		target, kind string
		flags        uintptr
		data         string
		optional     bool
	}{
		{"/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5", false},
		// Half of the memory, which the workload's limit covers. Docker's 64 MiB are a trap for databases.
		{"/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "mode=1777", false},
		{"/dev/mqueue", "mqueue", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", true}, // not every kernel has it
	} {
		if err := makeDir(m.target); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil && !m.optional {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// devices are those that a container has. All may use them.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// devLinks are the links in /dev.
var devLinks = []struct{ name, target string }{
	{"ptmx", "pts/ptmx"},
	{"fd", "/proc/self/fd"},
	{"stdin", "/proc/self/fd/0"},
	{"stdout", "/proc/self/fd/1"},
	{"stderr", "/proc/self/fd/2"},
	{"core", "/proc/kcore"},
}

const newDev = etcSource + "/dev"

// maskedPaths are what a container can't read of /proc and /sys, and readOnlyPaths what it can't write, as Docker and
// Podman have them. Here the VM is the boundary; but behind some of these are a reset of the VM, which would
// end it without a report, and a way for root in the workload to shed its limits.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readOnlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	readOnlyTrees = []string{"/sys", cgroupRoot}
)

// Confine gives the workload the /dev of a container instead of the kernel's, in which root finds disks and channels,
// and takes from /proc and /sys what is not for it. What PID 1 still needs of them it has open: it is the last step
// before the workload's start.
func (b *Boot) Confine() error {
	if err := b.replaceDev(); err != nil {
		return fmt.Errorf("make the workload's /dev: %w", err)
	}
	for _, path := range maskedPaths {
		if err := mask(path); err != nil {
			return fmt.Errorf("mask %s: %w", path, err)
		}
	}
	for _, path := range readOnlyPaths {
		if err := bindReadOnly(path); err != nil {
			return fmt.Errorf("make %s read-only: %w", path, err)
		}
	}
	for _, tree := range readOnlyTrees {
		if err := setReadOnly(unix.AT_FDCWD, tree, 0); err != nil {
			return fmt.Errorf("make %s read-only: %w", tree, err)
		}
	}
	return nil
}

// replaceDev builds the workload's /dev on the side and mounts it over the kernel's. Its devices are mounts of the
// kernel's nodes, and nodes that the workload makes itself, for which it has the capability, open nothing.
func (b *Boot) replaceDev() error {
	if err := makeDir(newDev); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", newDev, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return err
	}
	for _, name := range devices {
		node := filepath.Join("/dev", name)
		// devtmpfs knows the modes that these have everywhere; a kernel that doesn't is put right.
		if err := os.Chmod(node, 0o666); err != nil { //nolint:gosec // for all, as everywhere
			return err
		}
		target := filepath.Join(newDev, name)
		if err := os.WriteFile(target, nil, 0o666); err != nil { //nolint:gosec // a place to mount on
			return err
		}
		if err := unix.Mount(node, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", name, err)
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		target := filepath.Join(newDev, name)
		if err := makeDir(target); err != nil {
			return err
		}
		// EINVAL: it is no mount, because this kernel doesn't have it.
		err := unix.Mount(filepath.Join("/dev", name), target, "", unix.MS_MOVE, "")
		if err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("move %s: %w", name, err)
		}
	}
	for _, l := range devLinks {
		if err := os.Symlink(l.target, filepath.Join(newDev, l.name)); err != nil {
			return err
		}
	}
	return unix.Mount(newDev, "/dev", "", unix.MS_MOVE, "")
}

// mask puts something empty in the place of path, if there is anything.
func mask(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil //nolint:nilerr // this kernel doesn't have it
	}
	if info.IsDir() {
		return unix.Mount("tmpfs", path, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=0,nr_inodes=1")
	}
	return unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
}

// bindReadOnly mounts path on itself, read-only, if there is anything.
func bindReadOnly(path string) error {
	mount, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closeFD(mount)
	if err := setReadOnly(mount, "", unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	return unix.MoveMount(mount, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func setReadOnly(dir int, path string, flags uint) error {
	return unix.MountSetattr(dir, path, flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}
