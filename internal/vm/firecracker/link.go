package firecracker

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// A jailFile is a file of the host that a jail shows.
type jailFile struct {
	field    string // of the spec
	path     string // on the host
	name     string // in the jail
	readOnly bool
}

// jailFiles are the files of a machine.
func jailFiles(s vm.Spec) []jailFile {
	all := []jailFile{{"Kernel", s.Kernel, jailKernel, true}, {"Initramfs", s.Initramfs, jailInitramfs, true}}
	for i, d := range s.Disks {
		all = append(all, jailFile{fmt.Sprintf("Disks[%d]", i), d.Path, jailDisk(i), d.ReadOnly})
	}
	return all
}

// link puts the machine's files into the jail.
func (j *jail) link(s vm.Spec, log *slog.Logger) error {
	for _, c := range jailFiles(s) {
		file, err := c.open()
		if err != nil {
			return err
		}
		err = j.linkFile(c, file, s, log)
		file.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *jail) linkFile(c jailFile, file *os.File, s vm.Spec, log *slog.Logger) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := c.check(file, info, s); err != nil {
		return err
	}
	target := filepath.Join(j.root, c.name)
	// Through the descriptor, so that what was checked is what is linked.
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), unix.AT_FDCWD, target, unix.AT_SYMLINK_FOLLOW)
	switch {
	case err == nil && !c.readOnly:
		// The jail's identity has to write it. The link and the file are one.
		return give(target, s.UID, s.GID)
	case err == nil:
		return nil
	case !c.readOnly:
		return &vm.SpecError{Field: c.field, Reason: fmt.Sprintf("%s cannot be linked into a jail in %s (%v): a disk that is written to has to be on the same file system", c.path, filepath.Dir(j.dir), err)}
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EPERM):
		log.Warn("a file is copied because it cannot be linked; every start pays for it in time and space",
			"file", c.path, "bytes", info.Size(), "reason", err)
		return copyFile(target, file, s)
	}
	return fmt.Errorf("link %s into the jail: %w", c.path, err)
}

func copyFile(target string, from *os.File, s vm.Spec) error {
	to, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copy %s into the jail: %w", from.Name(), err)
	}
	return give(target, s.UID, s.GID)
}

func (c jailFile) open() (*os.File, error) {
	flags := os.O_RDWR
	if c.readOnly {
		flags = os.O_RDONLY
	}
	// Without O_NONBLOCK, opening a FIFO would wait for its other end.
	file, err := os.OpenFile(c.path, flags|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &vm.SpecError{Field: c.field, Reason: c.path + " does not exist"}
	}
	if err != nil {
		return nil, &vm.SpecError{Field: c.field, Reason: err.Error()}
	}
	return file, nil
}

// check says what Firecracker would say later, or not at all.
func (c jailFile) check(file *os.File, info fs.FileInfo, s vm.Spec) error {
	switch {
	case !info.Mode().IsRegular():
		return &vm.SpecError{Field: c.field, Reason: c.path + " is not a regular file"}
	case c.name == jailKernel:
		if err := checkKernel(file); err != nil {
			return &vm.SpecError{Field: c.field, Reason: fmt.Sprintf("%s is %v", c.path, err)}
		}
	case c.name != jailInitramfs && (info.Size() == 0 || info.Size()%512 != 0):
		return &vm.SpecError{Field: c.field, Reason: c.path + " is not a whole number of 512-byte sectors long, or empty"}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && c.readOnly && !readable(info.Mode(), st, s.UID, s.GID) {
		return &vm.SpecError{Field: c.field, Reason: fmt.Sprintf("%s cannot be read by uid %d, which the monitor runs as; run: chmod a+r %s", c.path, s.UID, c.path)}
	}
	return nil
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

// checkKernel refuses a compressed kernel, which no release of Firecracker boots.
func checkKernel(file *os.File) error {
	if runtime.GOARCH != "amd64" {
		return nil
	}
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := file.ReadAt(magic, 0); err != nil || string(magic) != elf.ELFMAG {
		return errors.New("no uncompressed ELF kernel (vmlinux), which is all that Firecracker boots")
	}
	return nil
}
