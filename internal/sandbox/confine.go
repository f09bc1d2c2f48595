package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// nobody owns nothing on any host: distributions give out ids below 2^31, and services that hand out ranges
// to containers stay below this one too.
const nobody = 0x7ffe7069

const (
	maxDescriptors = 1024
	maxThreads     = 4096
)

// confine gives up all that the process does not need, in all of its threads, for good.
func confine(l limits) error {
	// The filter is loaded by one thread for all; what that thread is told before must be the same one.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := limit(l); err != nil {
		return fmt.Errorf("set limits: %w", err)
	}
	if err := leaveFiles(); err != nil {
		return fmt.Errorf("leave the file system: %w", err)
	}
	if err := dropIdentity(); err != nil {
		return fmt.Errorf("drop privileges: %w", err)
	}
	if err := seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: policy()}); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	return nil
}

// closeOthers closes what is open and not ours: descriptors that were not meant to be inherited.
func closeOthers() error {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no /proc; Go itself passes on only what it is told to
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= rootFD {
			continue
		}
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") {
			continue // the listing's own, which is closed already; the runtime's
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

func limit(l limits) error {
	bounds := map[int]uint64{
		unix.RLIMIT_CORE:     0,
		unix.RLIMIT_FSIZE:    l.file,
		unix.RLIMIT_NOFILE:   maxDescriptors,
		unix.RLIMIT_MEMLOCK:  0,
		unix.RLIMIT_MSGQUEUE: 0,
		unix.RLIMIT_DATA:     l.data,
	}
	if becomesNobody() {
		bounds[unix.RLIMIT_NPROC] = maxThreads // of nobody, in all processes like this one
	}
	for resource, value := range bounds {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: value, Max: value}); err != nil {
			return fmt.Errorf("resource %d to %d: %w", resource, value, err)
		}
	}
	return nil
}

// leaveFiles makes the directory that the process was given, which is empty and has no name any more, its
// root. Only a process that may not do it, for want of namespaces, keeps the old one; it cannot open
// anything there either.
func leaveFiles() error {
	err := unix.Fchdir(rootFD)
	if err == nil {
		err = unix.Chroot(".")
	}
	if errors.Is(err, unix.EPERM) {
		err = nil
	}
	return errors.Join(err, unix.Close(rootFD))
}

func dropIdentity() error {
	for c := uintptr(0); ; c++ {
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if errno == unix.EINVAL || errno == unix.EPERM {
			break // past the last one there is, or there are none to drop
		}
		if errno != 0 {
			return fmt.Errorf("capability %d: %w", c, errno)
		}
	}
	if becomesNobody() {
		for _, set := range []func() error{
			func() error { return syscall.Setgroups(nil) },
			func() error { return syscall.Setresgid(nobody, nobody, nobody) },
			func() error { return syscall.Setresuid(nobody, nobody, nobody) },
		} {
			if err := set(); errors.Is(err, unix.EPERM) {
				break // root in name only, as in some containers
			} else if err != nil {
				return err
			}
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	//nolint:gosec // x/sys sets the capabilities of one thread; this is its call for all of them.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&none[0])), 0)
	runtime.KeepAlive(&none)
	if errno != 0 {
		return fmt.Errorf("capabilities: %w", errno)
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("no new privileges: %w", errno)
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}

// becomesNobody tells whether the process is root and can take another id. In the user namespace of a
// process without root there is no other.
func becomesNobody() bool { return os.Getuid() == 0 && os.Getenv(envUserNS) == "" }
