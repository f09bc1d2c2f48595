//go:build linux

package pid1

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// deviceTimeout bounds the wait for a disk, a partition or a port that should be there at once.
const deviceTimeout = 5 * time.Second

// FindDisks finds the device of every disk of the configuration.
func (b *Boot) FindDisks() error {
	return waitFor(deviceTimeout, func() (bool, error) {
		devices, err := listDisks("/sys/block")
		if err == nil {
			b.disks, err = matchDisks(b.config.Disks, devices)
		}
		return err == nil, err
	})
}

// blockDevice is a virtio disk that the kernel found.
type blockDevice struct{ name, serial string }

// listDisks returns the virtio disks in the order of their names, which is the order in which the VMM attached them:
// vda … vdz, vdaa ….
func listDisks(sysBlock string) ([]blockDevice, error) {
	dirs, err := filepath.Glob(filepath.Join(sysBlock, "vd*"))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(dirs, func(x, y string) int {
		if d := len(x) - len(y); d != 0 {
			return d
		}
		return strings.Compare(x, y)
	})
	devices := make([]blockDevice, len(dirs))
	for i, dir := range dirs {
		serial, err := os.ReadFile(filepath.Join(dir, "serial"))
		if err != nil {
			serial = nil // the VMM gave none
		}
		devices[i] = blockDevice{filepath.Base(dir), strings.TrimSpace(string(serial))}
	}
	return devices, nil
}

// named tells whether the device's serial is one that a host of ours gave. Firecracker makes one of digits only, from
// numbers of the file behind the disk.
func (d blockDevice) named() bool { return strings.Trim(d.serial, "0123456789") != "" }

// matchDisks finds each disk's device by serial, and by order where no device has that serial.
func matchDisks(disks []guest.Disk, devices []blockDevice) ([]string, error) {
	nodes := make([]string, len(disks))
	for i, d := range disks {
		at := slices.IndexFunc(devices, func(dev blockDevice) bool { return d.Serial != "" && dev.serial == d.Serial })
		if at < 0 && d.Order >= 0 && d.Order < len(devices) && (d.Serial == "" || !devices[d.Order].named()) {
			at = d.Order
		}
		if at < 0 {
			return nil, fmt.Errorf("no disk for %s (serial %q, order %d) among the VM's %d", d.Role, d.Serial, d.Order, len(devices))
		}
		nodes[i] = "/dev/" + devices[at].name
	}
	return nodes, nil
}

// layerOptions makes the mount option that names the device of every layer, in the order of the slots.
func layerOptions(slots []guest.LayerSlot, disks []string) (string, error) {
	options := make([]string, len(slots))
	for i, s := range slots {
		if s.Disk < 0 || s.Disk >= len(disks) || s.Partition < 0 {
			return "", fmt.Errorf("layer slot %d is partition %d of disk %d, and there are %d disks", i, s.Partition, s.Disk, len(disks))
		}
		node := disks[s.Disk]
		if s.Partition > 0 {
			node += strconv.Itoa(s.Partition)
		}
		options[i] = "device=" + node
	}
	all := strings.Join(options, ",")
	if len(all) >= os.Getpagesize() {
		return "", fmt.Errorf("%d layers are too many: their names need %d bytes of mount options, the kernel takes %d", len(slots), len(all), os.Getpagesize()-1)
	}
	return all, nil
}

// waitForNodes waits until the kernel has made the device nodes of an option string of layerOptions.
func waitForNodes(options string) error {
	for option := range strings.SplitSeq(options, ",") {
		node, ok := strings.CutPrefix(option, "device=")
		if !ok {
			continue
		}
		if err := waitFor(deviceTimeout, func() (bool, error) {
			_, err := os.Stat(node)
			return err == nil, err
		}); err != nil {
			return fmt.Errorf("wait for %s: %w", node, err)
		}
	}
	return nil
}

const (
	superblockAt = 1024
	erofsMagic   = 0xE0F5E1E2
	erofsUUIDAt  = 48
)

// checkErofs makes sure that the file system on node is the one that the host means: a serial or an order is only a
// claim about the device.
func checkErofs(node, uuid string) error {
	f, err := os.Open(node)
	if err != nil {
		return err
	}
	defer f.Close()
	var super [128]byte
	if _, err := f.ReadAt(super[:], superblockAt); err != nil {
		return fmt.Errorf("read superblock of %s: %w", node, err)
	}
	if binary.LittleEndian.Uint32(super[:]) != erofsMagic {
		return fmt.Errorf("%s has no EROFS file system", node)
	}
	if uuid == "" {
		return nil
	}
	want, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(want) != 16 {
		return fmt.Errorf("%q is not a UUID", uuid)
	}
	if got := super[erofsUUIDAt : erofsUUIDAt+16]; !bytes.Equal(got, want) {
		return fmt.Errorf("%s has the EROFS file system %x, expected %x", node, got, want)
	}
	return nil
}

// ext4ResizeFS is EXT4_IOC_RESIZE_FS: _IOW('f', 16, __u64).
const ext4ResizeFS = 0x40086610

// growExt4 grows the mounted ext4 file system under dir to the size of its device: scratch disks come with a small
// template, and a volume may have been made larger.
func growExt4(dir int, node string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(dir, &st); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", node, err)
	}
	size, err := deviceSize(node)
	if err != nil {
		return err
	}
	blocks := uint64(size) / uint64(st.Bsize)
	if err := ioctl(dir, ext4ResizeFS, unsafe.Pointer(&blocks)); err != nil { //nolint:gosec // __u64
		return fmt.Errorf("grow the file system of %s to %d bytes: %w", node, size, err)
	}
	return nil
}

func deviceSize(node string) (int64, error) {
	f, err := os.Open(node)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}
