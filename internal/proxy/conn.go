package proxy

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A conn is a socket that Go's poller waits for. Unlike net.TCPConn it is made of a descriptor without a
// copy, leaves its options to those of the socket that accepted it, and lets splice in.
type conn struct {
	file *os.File
	raw  syscall.RawConn
}

// newConn takes over fd, which must not block.
func newConn(fd int, name string) (*conn, error) {
	f := os.NewFile(uintptr(fd), name)
	if f == nil {
		return nil, unix.EBADF
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &conn{file: f, raw: raw}, nil
}

// Read and Write are those of io; CloseWrite says that nothing more will be written.
func (c *conn) Read(b []byte) (int, error) { return c.file.Read(b) }

func (c *conn) Write(b []byte) (int, error) { return c.file.Write(b) }

// CloseWrite is answered by the peer in its own time. A peer that is gone shows when reading.
func (c *conn) CloseWrite() {
	_ = c.raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

func (c *conn) Close() error { return c.file.Close() }

// reset closes at once; the peer sees a reset, and bytes that were not sent yet are dropped.
func (c *conn) reset() {
	// If lingering can't be switched off, the peer sees an ordinary end instead: no reason to keep it waiting.
	_ = c.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	_ = c.file.Close()
}

func (c *conn) readUntil(at time.Time) { _ = c.file.SetReadDeadline(at) }

func (c *conn) writeUntil(at time.Time) { _ = c.file.SetWriteDeadline(at) }

// local is the address that the peer has connected to.
func (c *conn) local() netip.AddrPort {
	var a netip.AddrPort
	_ = c.raw.Control(func(fd uintptr) {
		if sa, err := unix.Getsockname(int(fd)); err == nil {
			a = addrOf(sa)
		}
	})
	return a
}

// isConnected says whether a connection in the making is there already.
func (c *conn) isConnected() (yes bool) {
	_ = c.raw.Control(func(fd uintptr) {
		_, err := unix.Getpeername(int(fd))
		yes = err == nil
	})
	return yes
}

// awaitConnected waits for a connection in the making.
func (c *conn) awaitConnected(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.writeUntil(time.Unix(1, 0)) })
	defer stop()
	var failed error
	err := c.raw.Write(func(fd uintptr) bool {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		switch {
		case err != nil:
			failed = err
			return true
		case code != 0:
			failed = unix.Errno(code)
			return true
		}
		// Writable is not connected yet: the poller may wake up too early.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.Cause(ctx)
	}
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	if !stop() {
		// It is being given up just now, and would have a deadline that has passed.
		return context.Cause(ctx)
	}
	return nil
}

// A socket is one that listens: for connections, or for datagrams.
type socket struct{ *conn }

// accept waits for a connection.
func (s socket) accept() (fd int, peer netip.AddrPort, err error) {
	fd = -1
	waitErr := s.raw.Read(func(listening uintptr) bool {
		var sa unix.Sockaddr
		for {
			fd, sa, err = unix.Accept4(int(listening), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != unix.EINTR {
				break
			}
		}
		if err == nil {
			peer = addrOf(sa)
		}
		return err != unix.EAGAIN
	})
	if waitErr != nil {
		// There is no deadline, so it was closed.
		return -1, netip.AddrPort{}, os.ErrClosed
	}
	return fd, peer, err
}

// dup is a descriptor of the same socket, for another process to have.
func (s socket) dup() (fd int, err error) {
	ctrlErr := s.raw.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) })
	if ctrlErr != nil {
		return -1, ctrlErr
	}
	return fd, err
}

// addrOf is an address of the kernel's, IPv4 always as such.
func addrOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func familyOf(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
