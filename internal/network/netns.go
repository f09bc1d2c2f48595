package network

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ownNetns is the namespace of the calling thread. /proc/self would name that of the process's first thread.
const ownNetns = "/proc/thread-self/ns/net"

// A namespace is an open network namespace. It keeps the namespace alive until it is closed.
type namespace struct {
	file *os.File
	// links speaks rtnetlink inside the namespace.
	links *netlink.Handle
}

func openNamespace(path string) (*namespace, error) {
	if !isNamespace(path) {
		return nil, fmt.Errorf("open namespace %s: not a network namespace", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink in %s: %w", path, err), f.Close())
	}
	return &namespace{file: f, links: h}, nil
}

// openCallers opens the namespace at path, or the calling thread's when path is empty.
func openCallers(path string) (*namespace, error) {
	if path == "" {
		path = ownNetns
	}
	return openNamespace(path)
}

func (n *namespace) close() error {
	n.links.Close()
	return n.file.Close()
}

// filters opens nfnetlink in the namespace. Each Flush of the result is one transaction.
func (n *namespace) filters() (*nftables.Conn, error) {
	c, err := nftables.New(nftables.WithNetNSFd(int(n.file.Fd())))
	if err != nil {
		return nil, fmt.Errorf("open nfnetlink: %w", err)
	}
	return c, nil
}

// do runs f on a thread that is in the namespace. f must not start goroutines that rely on it.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace %s: %w", n.file.Name(), err)
		}
		return f()
	})
}

// lock takes the namespace for this manager alone: managers of the same host, which may be other processes,
// choose uplink addresses and switch forwarding one at a time. The lock is on the namespace itself, so it
// covers exactly those that share it, and no file is left behind.
func (n *namespace) lock() (unlock func(), err error) {
	// A descriptor of its own: flock belongs to the open file.
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(n.file.Fd())))
	if err != nil {
		return nil, fmt.Errorf("lock namespace: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock namespace: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// onThread runs f on a thread whose network namespace f may change. The thread goes back to where it came
// from, or ends with its goroutine when it can't.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		origin, err := os.Open(ownNetns)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer func() { _ = origin.Close() }()
		err = f()
		if back := unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// createNamespace makes a network namespace and binds it to path, where it stays when this process ends.
func createNamespace(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create namespace: %w", err)
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create namespace: unshare: %w", err)
		}
		if err := unix.Mount(ownNetns, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("create namespace: bind to %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// removeNamespace undoes createNamespace, also when it was interrupted, and when path is not there.
func removeNamespace(path string) error {
	for isNamespace(path) {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("remove namespace: unmount %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}

// isNamespace tells a bound namespace from the plain file that is left when its mount is gone.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// A sysctl is a setting below /proc/sys/net and its value.
type sysctl struct{ name, value string }

// writeSysctls sets them in the order given; the caller is in the namespace meant. Of names that the kernel
// does not have, those that begin with "?" are skipped.
func writeSysctls(settings ...sysctl) error {
	for _, s := range settings {
		name, optional := strings.CutPrefix(s.name, "?")
		// Not durable.WriteFile: this is a kernel interface, not a file.
		err := os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(s.value), 0o600)
		if err != nil && (!optional || !errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}
