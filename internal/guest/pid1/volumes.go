//go:build linux

package pid1

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// MountVolumes mounts the volumes, those above others first. The kernel replays the journal of one that was cut off in
// the middle of writing. One whose file system has noted errors is not mounted: the host is to have it checked first,
// and nothing that could check it belongs to an image.
func (b *Boot) MountVolumes() error {
	volumes := slices.Clone(b.config.Volumes)
	slices.SortStableFunc(volumes, func(x, y guest.Volume) int { return cmp.Compare(depth(x.Path), depth(y.Path)) })
	for _, v := range volumes {
		if err := b.mountVolume(v); err != nil {
			return fmt.Errorf("volume %s at %s: %w", v.Name, v.Path, err)
		}
	}
	return nil
}

// depth is how many directories a path has.
func depth(p string) int { return strings.Count(path.Clean("/"+p), "/") }

func (b *Boot) mountVolume(v guest.Volume) error {
	if v.Disk < 0 || v.Disk >= len(b.disks) || b.config.Disks[v.Disk].Role != guest.RoleVolume {
		return fmt.Errorf("disk %d of the configuration is none of a volume", v.Disk)
	}
	node := b.disks[v.Disk]
	if err := checkExt4(node); err != nil {
		return err
	}
	place, real, made, err := mountPoint("/", v.Path)
	if err != nil {
		return err
	}
	defer closeFD(place)
	var image unix.Stat_t
	if err := unix.Fstat(place, &image); err != nil {
		return err
	}
	at := fmt.Sprintf("/proc/self/fd/%d", place)
	// An error of the file system, which a full disk of the host can bring about too, must not go on unseen.
	const flags, options = unix.MS_NODEV | unix.MS_NOSUID, "errors=remount-ro"
	if err := unix.Mount(node, at, "ext4", flags, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	// The descriptor is of what is below the mount now.
	root, err := unix.Open(real, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: real, Err: err}
	}
	defer closeFD(root)
	if err := growExt4(root, node); err != nil {
		return err
	}
	if err := firstUse(root, b.firstOwner(image, made)); err != nil {
		return fmt.Errorf("make it ready for its first use: %w", err)
	}
	if v.ReadOnly {
		return makeReadOnly(root, node, flags, options)
	}
	b.freezer.dirs[v.Name] = real
	return nil
}

// makeReadOnly makes a volume read-only below its file system too: the workload's root may make a node of the disk.
func makeReadOnly(root int, node string, flags uintptr, options string) error {
	err := unix.Mount("", fmt.Sprintf("/proc/self/fd/%d", root), "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, options)
	if err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	disk, err := os.Open(node)
	if err != nil {
		return err
	}
	defer disk.Close()
	on := int32(1)
	if err := ioctl(int(disk.Fd()), unix.BLKROSET, unsafe.Pointer(&on)); err != nil { //nolint:gosec // int
		return fmt.Errorf("make its disk read-only: %w", err)
	}
	return nil
}

// owner is what the root directory of a new volume gets.
type owner struct {
	uid, gid uint32
	mode     uint32 // permission bits
}

// firstOwner is the workload's user, so that it can write. A workload that runs as root, and may become another user by
// itself, has it as its image has the directory. The permissions are the image's in both cases.
func (b *Boot) firstOwner(image unix.Stat_t, made bool) owner {
	o := owner{b.user.uid, b.user.gid, 0o755}
	if !made {
		o.mode = image.Mode & 0o7777
		if o.uid == 0 {
			o.uid, o.gid = image.Uid, image.Gid
		}
	}
	return o
}

const lostAndFound = "lost+found"

// firstUse gives a volume that was never used its owner, and removes lost+found, which mkfs makes and programs that
// want an empty directory, such as PostgreSQL's initdb, stumble over: e2fsck makes it again should it ever need it.
//
// That directory is how a new volume is known: it is there, it is empty, and nothing else is there. It goes last, so
// that a crash in between leaves a new volume; and what was used once, and then emptied, keeps its owner.
func firstUse(root int, o owner) error {
	if found := entries(root, "."); len(found) != 1 || found[0] != lostAndFound {
		return nil
	}
	if len(entries(root, lostAndFound)) > 0 {
		return nil // what e2fsck found is in it
	}
	if err := errors.Join(unix.Fchown(root, int(o.uid), int(o.gid)), unix.Fchmod(root, o.mode)); err != nil {
		return err
	}
	return unix.Unlinkat(root, lostAndFound, unix.AT_REMOVEDIR)
}

// entries are the first names in a directory. One that can't be read has a name that nothing has.
func entries(at int, name string) []string {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return []string{""}
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	found, err := dir.Readdirnames(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return []string{""}
	}
	return found
}

// Where ext4 keeps what is read of its superblock.
const (
	ext4MagicAt  = 0x38
	ext4Magic    = 0xEF53
	ext4StateAt  = 0x3A
	ext4HasError = 0x2
)

// checkExt4 makes sure that there is an ext4 file system on node, and that no kernel has noted an error in it.
func checkExt4(node string) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	var super [128]byte
	if _, err := f.ReadAt(super[:], superblockAt); err != nil {
		return fmt.Errorf("read superblock of %s: %w", node, err)
	}
	if binary.LittleEndian.Uint16(super[ext4MagicAt:]) != ext4Magic {
		return fmt.Errorf("%s has no ext4 file system", node)
	}
	if binary.LittleEndian.Uint16(super[ext4StateAt:])&ext4HasError != 0 {
		return errors.New("its file system has noted errors and was not checked since: have it checked on its host (e2fsck), on a copy first")
	}
	return nil
}
