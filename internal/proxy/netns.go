package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive finds peers that are gone after about two and a half minutes of silence.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 6}

// errGone means that the namespace was closed because no configuration names it any more.
var errGone = errors.New("namespace is not in use any more")

// A namespace is where sockets are made. A socket stays in its namespace whatever thread uses it, so only the
// moment of making it needs one that is there. A nil namespace is the proxy's own.
type namespace struct {
	inode uint64

	// Held for reading while a thread is inside.
	mu   sync.RWMutex
	file *os.File // nil once closed
}

// openNamespace opens the namespace at path; "" gives nil.
func openNamespace(path string) (*namespace, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(fmt.Errorf("%s is not a network namespace", path), err, f.Close())
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &namespace{inode: st.Ino, file: f}, nil
}

// is says whether path still leads to n.
func (n *namespace) is(path string) bool {
	if n == nil {
		return path == ""
	}
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Ino == n.inode
}

// close lets go of the namespace. Sockets made in it live on.
func (n *namespace) close() {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.file != nil {
		_ = n.file.Close()
		n.file = nil
	}
}

// do runs f on a thread that is in the namespace. f must not wait for anything.
func (n *namespace) do(f func() error) error {
	if n == nil {
		return f()
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.file == nil {
		return errGone
	}
	target := int(n.file.Fd())
	done := make(chan error, 1)
	go func() {
		// A thread that cannot go back ends together with this goroutine, which then is still locked to it.
		runtime.LockOSThread()
		origin, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(origin) }()
		if err = unix.Setns(target, unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("enter namespace: %w", err)
		} else {
			err = f()
		}
		if unix.Setns(origin, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// listen listens at exactly address: IPv4 only or IPv6 only.
func (n *namespace) listen(address netip.AddrPort) (l *net.TCPListener, err error) {
	err = n.do(func() error {
		lc := net.ListenConfig{KeepAliveConfig: keepAlive}
		lc.SetMultipathTCP(false) // splice needs plain TCP
		got, err := lc.Listen(context.Background(), "tcp"+version(address), address.String())
		if err == nil {
			l = got.(*net.TCPListener)
		}
		return err
	})
	return l, err
}

func (n *namespace) listenPacket(address netip.AddrPort) (p net.PacketConn, err error) {
	err = n.do(func() error {
		var lc net.ListenConfig
		p, err = lc.ListenPacket(context.Background(), "udp"+version(address), address.String())
		return err
	})
	return p, err
}

func version(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "4"
	}
	return "6"
}

// dial connects to address from inside the namespace, until ctx is done.
func (n *namespace) dial(ctx context.Context, address netip.AddrPort) (*net.TCPConn, error) {
	family := unix.AF_INET6
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(address.Port()), Addr: address.Addr().As16()}
	if address.Addr().Is4() {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
	}
	fd := -1
	err := n.do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	err = unix.Connect(fd, to)
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// From here on Go's poller waits for the socket.
	f := os.NewFile(uintptr(fd), address.String())
	defer func() { _ = f.Close() }() // FileConn takes a copy
	if err := awaitConnected(ctx, f); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp := c.(*net.TCPConn)
	// Without keep-alive a peer that is gone would merely be noticed later.
	_ = tcp.SetKeepAliveConfig(keepAlive)
	return tcp, nil
}

func awaitConnected(ctx context.Context, f *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			failed = errors.Join(err, unix.Errno(code))
			if err == nil {
				failed = unix.Errno(code)
			}
			return true
		}
		// Writable is not connected yet: the poller may wake up too early.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	return errors.Join(failed, err)
}
