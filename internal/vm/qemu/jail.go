package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the monitor finds its boot files in a jail, and what its holder is executed from.
const (
	jailKernel    = "/kernel"
	jailInitramfs = "/initramfs"
	jailHolder    = "/holder"
)

// jailDirs are the host's directories with QEMU, its firmware and its libraries.
var jailDirs = []string{"usr", "bin", "lib", "lib64"}

// A jail is the file system of one monitor and of its holder: program files of the host, read-only, the boot files, and
// three devices that belong to the monitor's uid. There is no /proc, no /dev otherwise, no /etc and nothing writable.
type jail struct {
	// dir is any directory; the jail's root is mounted on it in the thread's own mount namespace, so that
	// nothing shows on the host and nothing is left to unmount.
	dir               string
	uid, gid          int
	kernel, initramfs string
	holder            string
	kvm               bool
}

// enter moves the calling thread into the jail. The thread cannot leave it and must end afterwards.
func (j jail) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWIPC); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	if err := keepMountsPrivate(); err != nil {
		return fmt.Errorf("keep mounts private: %w", err)
	}
	// Opened in this namespace, since only its own files can be shown again, and before dir is covered.
	kernel, err := os.Open(j.kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initramfs, err := os.Open(j.initramfs)
	if err != nil {
		return err
	}
	defer initramfs.Close()
	holder, err := os.Open(j.holder)
	if err != nil {
		return err
	}
	defer holder.Close()
	if err := unix.Mount("jail", j.dir, "tmpfs", unix.MS_NOSUID, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount the jail's root: %w", err)
	}
	if err := j.fill(kernel, initramfs, holder); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC)
	if err := unix.Mount("", j.dir, "", flags, ""); err != nil {
		return fmt.Errorf("make the jail read-only: %w", err)
	}
	if err := unix.Chdir(j.dir); err != nil {
		return err
	}
	if err := changeRoot(); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return unix.Chdir("/")
}

// keepMountsPrivate lets no mount of this namespace show in others.
func keepMountsPrivate() error {
	err := makePrivate()
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// The caller runs in a chroot whose root is no mount, and only a mount can be told. So this thread leaves the
	// chroot, as root can, for that one call.
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(root) }()
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Chroot("/" + jailDirs[0]); err != nil {
		return err
	}
	// The working directory is outside the root now, so that its parents can be walked up to the true one.
	for range maxDepth {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	err = makePrivate()
	return errors.Join(err, unix.Fchdir(root), unix.Chroot("."))
}

// maxDepth is more directories than a chroot is ever below the root.
const maxDepth = 256

func makePrivate() error {
	return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
}

// changeRoot makes the working directory the root and takes the old root away.
func changeRoot() error {
	// With one directory for both, the old root ends up on top of the new one.
	err := unix.PivotRoot(".", ".")
	if err == nil {
		return unix.Unmount(".", unix.MNT_DETACH)
	}
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	// The caller runs in a chroot, whose root is no mount and cannot be pivoted away. A monitor holds no
	// directory of it and lacks the capability that leaving a chroot takes.
	return unix.Chroot(".")
}

func (j jail) fill(kernel, initramfs, holder *os.File) error {
	for _, name := range jailDirs {
		if err := j.bindDir(name); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		file *os.File
		name string
		more uintptr
	}{{kernel, jailKernel, unix.MS_NOEXEC}, {initramfs, jailInitramfs, unix.MS_NOEXEC}, {holder, jailHolder, 0}} {
		if err := j.bindFile(f.file, f.name, f.more); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(j.dir, "dev"), 0o755); err != nil { //nolint:gosec // the monitor, which is not root, looks in there
		return err
	}
	devices := map[string]uint64{"null": unix.Mkdev(1, 3), "urandom": unix.Mkdev(1, 9)}
	if j.kvm {
		devices["kvm"] = unix.Mkdev(10, 232)
	}
	for name, number := range devices {
		path := filepath.Join(j.dir, "dev", name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(number)); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
		if err := os.Lchown(path, j.uid, j.gid); err != nil {
			return err
		}
	}
	return nil
}

// bindDir shows a directory of the host's root in the jail, or the symbolic link that it is since Debian
// merged / and /usr.
func (j jail) bindDir(name string) error {
	source, target := "/"+name, filepath.Join(j.dir, name)
	info, err := os.Lstat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		link, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return os.Symlink(link, target)
	}
	if err := os.Mkdir(target, 0o750); err != nil { // covered by the host's
		return err
	}
	return bindReadOnly(source, target, 0)
}

func (j jail) bindFile(f *os.File, name string, more uintptr) error {
	target := filepath.Join(j.dir, name)
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		return err
	}
	return bindReadOnly(fmt.Sprintf("/proc/thread-self/fd/%d", f.Fd()), target, more)
}

func bindReadOnly(source, target string, more uintptr) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s in the jail: %w", source, err)
	}
	flags := unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | more
	if err := unix.Mount("", target, "", flags, ""); err != nil {
		return fmt.Errorf("make %s read-only in the jail: %w", source, err)
	}
	return nil
}

// jailable tells whether a program is in one of the directories that a jail shows.
func jailable(binary string) bool {
	for _, dir := range jailDirs {
		if strings.HasPrefix(binary, "/"+dir+"/") {
			return true
		}
	}
	return false
}
