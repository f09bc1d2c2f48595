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

	"golang.org/x/sys/unix"
)

// errGone means that the namespace was closed because no configuration names it any more.
var errGone = errors.New("namespace is not in use any more")

// A namespace is where sockets are made. A socket stays in its namespace whatever thread uses it, so only the
// moment of making it needs one that is there. A nil namespace is the proxy's own.
type namespace struct {
	inode uint64

	// Held for reading while a thread is inside.
	mu   sync.RWMutex
	file *os.File // nil once closed

	stock stock
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

// id tells namespaces apart; that of the proxy's own is 0.
func (n *namespace) id() uint64 {
	if n == nil {
		return 0
	}
	return n.inode
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
		n.stock.close()
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

// listen listens at exactly address: IPv4 only or IPv6 only. Its connections inherit its options.
func (n *namespace) listen(address netip.AddrPort) (s socket, err error) {
	err = n.do(func() error {
		s, err = openSocket(address, unix.SOCK_STREAM, func(fd int) error {
			setTCPOptions(fd)
			// The kernel has a bound of its own for the queue.
			return os.NewSyscallError("listen", unix.Listen(fd, 1<<16-1))
		})
		return err
	})
	return s, err
}

// listenDatagrams is listen for UDP. Datagrams come with the address that they were sent to.
func (n *namespace) listenDatagrams(address netip.AddrPort) (s socket, err error) {
	err = n.do(func() error {
		s, err = openSocket(address, unix.SOCK_DGRAM, func(fd int) error {
			if address.Addr().Is4() {
				return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
			}
			return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
		})
		return err
	})
	return s, err
}

func openSocket(address netip.AddrPort, kind int, prepare func(fd int) error) (socket, error) {
	fd, err := unix.Socket(familyOf(address), kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return socket{}, os.NewSyscallError("socket", err)
	}
	if kind == unix.SOCK_STREAM {
		// Connections that have just ended must not keep the port.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil && address.Addr().Is6() {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	err = os.NewSyscallError("setsockopt", err)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(address)))
	}
	if err == nil {
		err = prepare(fd)
	}
	if err != nil {
		return socket{}, errors.Join(err, unix.Close(fd))
	}
	c, err := newConn(fd, address.String())
	return socket{c}, err
}

// setTCPOptions finds peers that are gone after about two and a half minutes of silence, and sends what there
// is at once. Without either, a connection works all the same.
func setTCPOptions(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 60)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 6)
}

// listenNet is listen as net has it.
func (n *namespace) listenNet(address netip.AddrPort) (l *net.TCPListener, err error) {
	err = n.do(func() error {
		got, err := new(net.ListenConfig).Listen(context.Background(), "tcp"+version(address), address.String())
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
func (n *namespace) dial(ctx context.Context, address netip.AddrPort) (*conn, error) {
	c, err := n.connect(address, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if err := c.awaitConnected(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// connect begins to connect to address from inside the namespace; with UDP there is nothing to wait for.
func (n *namespace) connect(address netip.AddrPort, kind int) (*conn, error) {
	fd, err := n.socket(familyOf(address), kind)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	if kind == unix.SOCK_STREAM {
		setTCPOptions(fd)
	}
	err = unix.Connect(fd, sockaddr(address))
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// From here on Go's poller waits for the socket.
	return newConn(fd, "backend")
}
