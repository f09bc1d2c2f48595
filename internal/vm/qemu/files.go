package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// firstFD is the number of the first descriptor in the child after stdin, stdout and stderr.
const firstFD = 3

// files are the descriptors that a monitor inherits, by their numbers in the child.
type files struct {
	inherited []*os.File // index + firstFD is the number in the child; nil for the tap until it is opened

	console  int
	channels []int // in the order of vm.Channels
	disks    []int // in the order of the spec's disks
	tap      int   // 0: none

	// kernelPath and initramfsPath are what the child opens: through a descriptor, or in its jail.
	kernelPath, initramfsPath string
}

func (f *files) add(file *os.File) int {
	f.inherited = append(f.inherited, file)
	return firstFD + len(f.inherited) - 1
}

func (f *files) close() {
	for _, file := range f.inherited {
		if file != nil {
			file.Close()
		}
	}
}

// openBootFiles opens kernel and initramfs. QEMU can only open them by name, with its own rights: in a jail
// by their names there, otherwise through descriptors.
func (f *files) openBootFiles(s vm.Spec, jailed bool) error {
	for _, boot := range []struct {
		field, path, inJail string
		name                *string
	}{
		{"Kernel", s.Kernel, jailKernel, &f.kernelPath},
		{"Initramfs", s.Initramfs, jailInitramfs, &f.initramfsPath},
	} {
		file, err := openFor(boot.field, boot.path, s)
		if err != nil {
			return err
		}
		if jailed {
			*boot.name = boot.inJail
			file.Close()
			continue
		}
		*boot.name = fmt.Sprintf("/dev/fd/%d", f.add(file))
	}
	return nil
}

// openFor opens a regular file for reading and checks that the spec's identity can read it too.
func openFor(field, path string, s vm.Spec) (*os.File, error) {
	file, err := openRegular(field, path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && !readable(info.Mode(), st, s.UID, s.GID) {
		file.Close()
		return nil, &vm.SpecError{Field: field, Reason: fmt.Sprintf("%s cannot be read by uid %d, which the monitor runs as; run: chmod a+r %s", path, s.UID, path)}
	}
	return file, nil
}

func readable(mode fs.FileMode, st *syscall.Stat_t, uid, gid uint32) bool {
	switch {
	case st.Uid == uid:
		return mode&0o400 != 0
	case st.Gid == gid:
		return mode&0o040 != 0
	}
	return mode&0o004 != 0
}

func openRegular(field, path string, flags int) (*os.File, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for its other end.
	file, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &vm.SpecError{Field: field, Reason: path + " does not exist"}
	}
	if err != nil {
		return nil, &vm.SpecError{Field: field, Reason: err.Error()}
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		file.Close()
		return nil, &vm.SpecError{Field: field, Reason: path + " is not a regular file"}
	}
	return file, nil
}

// openDisks opens the disks' files. Their sizes are checked because QEMU takes what it gets: an empty file
// would be an empty disk.
func (f *files) openDisks(disks []vm.Disk) error {
	for i, d := range disks {
		field := fmt.Sprintf("Disks[%d]", i)
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		file, err := openRegular(field, d.Path, flags)
		if err != nil {
			return err
		}
		f.disks = append(f.disks, f.add(file))
		if info, err := file.Stat(); err != nil || info.Size() == 0 || info.Size()%512 != 0 {
			return &vm.SpecError{Field: field, Reason: d.Path + " is not a whole number of 512-byte sectors long, or empty"}
		}
	}
	return nil
}

// listen makes the channels' sockets in dir. The monitor inherits them listening, so that a connection works
// before QEMU has come up, and never needs the right to make one.
func (f *files) listen(dir string) error {
	for _, ch := range vm.Channels() {
		if err := os.Remove(filepath.Join(dir, string(ch))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		file, err := listenUnix(dir, string(ch))
		if err != nil {
			return fmt.Errorf("make the socket of channel %s: %w", ch, err)
		}
		f.channels = append(f.channels, f.add(file))
	}
	return nil
}

func listenUnix(dir, name string) (*os.File, error) {
	path, done, err := shortPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err := errors.Join(err, l.Close(), os.Chmod(filepath.Join(dir, name), 0o600)); err != nil {
		if file != nil {
			file.Close()
		}
		return nil, err
	}
	return file, nil
}

// shortPath names a file in dir through a descriptor of dir, because the address of a unix socket has room
// for 107 bytes only. The path is good until done is called.
func shortPath(dir, name string) (path string, done func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), func() { d.Close() }, nil
}

// openTap attaches to a tap device that exists in the network namespace of the calling thread.
func openTap(name string) (*os.File, error) {
	// TUNSETIFF would make a device that is missing, and traffic would go nowhere.
	if _, err := net.InterfaceByName(name); err != nil {
		return nil, &vm.SpecError{Field: "NIC", Reason: fmt.Sprintf("tap device %s: %v", name, err)}
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to tap device %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}
