//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// Where the parts of the root file system are mounted in the initramfs.
const (
	lowerDir   = "/lower"
	scratchDir = "/scratch"
	newRoot    = "/newroot"
)

// MountRoot puts the workload's root file system together: the image's EROFS below, the scratch disk above.
func (b *Boot) MountRoot() error {
	for _, dir := range []string{lowerDir, scratchDir, newRoot} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	if err := b.mountImage(); err != nil {
		return err
	}
	if err := b.mountScratch(); err != nil {
		return err
	}
	for _, dir := range []string{scratchDir + "/upper", scratchDir + "/work"} {
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	// redirect_dir and metacopy make renaming a directory of the image, and chown -R over one, cheap instead of
	// impossible and slow. Both are unsafe only with an upper layer made by others; ours is new with every boot.
	options := "lowerdir=" + lowerDir + ",upperdir=" + scratchDir + "/upper,workdir=" + scratchDir +
		"/work,index=off,xino=auto,redirect_dir=on,metacopy=on"
	if err := unix.Mount("overlay", newRoot, "overlay", unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

func (b *Boot) mountImage() error {
	at := slices.IndexFunc(b.config.Disks, func(d guest.Disk) bool { return d.Role == guest.RoleRootMeta })
	if at < 0 {
		return errors.New("the configuration has no disk with the role " + guest.RoleRootMeta)
	}
	node := b.disks[at]
	if err := checkErofs(node, b.config.Disks[at].UUID); err != nil {
		return err
	}
	options, err := layerOptions(b.config.LayerSlots, b.disks)
	if err != nil {
		return err
	}
	if err := waitForNodes(options); err != nil {
		return err
	}
	if err := unix.Mount(node, lowerDir, "erofs", unix.MS_RDONLY|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount EROFS of %s with %d layers: %w", node, len(b.config.LayerSlots), err)
	}
	return nil
}

// mountScratch mounts the scratch disk, or memory when there is none, and keeps a descriptor of it: after the switch of
// the root no path leads there, and it has to be made read-only at the end for its journal to be clean.
func (b *Boot) mountScratch() error {
	at := slices.IndexFunc(b.config.Disks, func(d guest.Disk) bool { return d.Role == guest.RoleScratch })
	if at < 0 {
		if err := unix.Mount("tmpfs", scratchDir, "tmpfs", unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount memory as scratch: %w", err)
		}
		return nil
	}
	node := b.disks[at]
	// noinit_itable: no background writing on a disk that lives as long as this VM.
	if err := unix.Mount(node, scratchDir, "ext4", unix.MS_NODEV|unix.MS_NOATIME, "noinit_itable"); err != nil {
		return fmt.Errorf("mount scratch disk %s: %w", node, err)
	}
	fd, err := unix.Open(scratchDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open scratch: %w", err)
	}
	b.upper = fd
	return growExt4(fd, node)
}

// SwitchRoot makes the new root the root of everything and frees the initramfs.
func (b *Boot) SwitchRoot() error {
	root, err := unix.Open(newRoot, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer closeFD(root)
	for _, name := range []string{"dev", "proc", "sys"} {
		if err := moveInto(root, "/"+name, name); err != nil {
			return err
		}
	}
	for _, old := range []string{"/lib", "/init"} {
		if err := os.RemoveAll(old); err != nil {
			logf(logInfo, "free the initramfs: %v", err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	// pivot_root does not work on the initramfs; this is the way of switch_root(8).
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	return unix.Chdir("/")
}

// moveInto moves the mount at from to the directory name of the new root, which the image may lack, or have as a link
// that must not lead out of it.
func moveInto(root int, from, name string) error {
	if err := unix.Mkdirat(root, name, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make /%s: %w", name, err)
	}
	target, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("the image's /%s can't be a mount point: %w", name, err)
	}
	defer closeFD(target)
	if err := unix.MoveMount(unix.AT_FDCWD, from, target, "", unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("move %s: %w", from, err)
	}
	return nil
}

// MakeScratchDirs makes sure of /run and /tmp. Both stay the image's own, as in Docker: images keep directories in /run
// that their servers need, and it is new with every boot anyway. An image that has something else there gets its way.
func (b *Boot) MakeScratchDirs() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{"/run", 0o755},
		{"/run/lock", 0o777 | os.ModeSticky},
		{"/tmp", 0o777 | os.ModeSticky},
	} {
		if _, err := os.Stat(d.path); err == nil {
			continue
		}
		if err := errors.Join(makeDir(d.path), os.Chmod(d.path, d.mode)); err != nil {
			logf(logInfo, "make %s: %v", d.path, err)
		}
	}
	return nil
}

// ioctl makes a request whose argument is a pointer, for those that package unix has no function for.
func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
