package vmtest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// errUnplugged means that the machine is off.
var errUnplugged = errors.New("the machine is off")

// A Port is the guest's end of a channel, as a virtio-serial port is: reading and writing wait while the host
// is not connected, and connections of the host come and go without the guest noticing. It is for one reader
// and one writer at a time.
type Port struct {
	mu      sync.Mutex
	changed *sync.Cond // of what follows, guarded by mu
	conns   []net.Conn // the first is the current one, the others wait until it is closed
	off     bool
}

var _ io.ReadWriteCloser = (*Port)(nil)

func newPort() *Port {
	p := &Port{}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// Read reads what the host wrote. The error is io.EOF when the machine is off.
func (p *Port) Read(b []byte) (int, error) {
	for {
		conn, err := p.connected()
		if err != nil {
			return 0, io.EOF
		}
		if n, err := conn.Read(b); err == nil {
			return n, nil
		}
		p.drop(conn)
	}
}

// Write writes to the host. What a connection had taken when it was closed is lost, as it is with the real one.
func (p *Port) Write(b []byte) (int, error) {
	for {
		conn, err := p.connected()
		if err != nil {
			return 0, err
		}
		if n, err := conn.Write(b); err == nil {
			return n, nil
		}
		p.drop(conn)
	}
}

// connected waits for the host.
func (p *Port) connected() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.conns) == 0 && !p.off {
		p.changed.Wait()
	}
	if p.off {
		return nil, errUnplugged
	}
	return p.conns[0], nil
}

func (p *Port) drop(conn net.Conn) {
	_ = conn.Close() // it is broken already
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) > 0 && p.conns[0] == conn {
		p.conns = p.conns[1:]
	}
}

// connect makes a connection for the host.
func (p *Port) connect(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	host, guest, err := socketPair()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.off {
		return nil, errors.Join(errUnplugged, host.Close(), guest.Close())
	}
	p.conns = append(p.conns, guest)
	p.changed.Broadcast()
	return host, nil
}

// Close ends every connection and whoever waits for one. It never fails.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
	for _, conn := range p.conns {
		_ = conn.Close()
	}
	p.conns = nil
	p.changed.Broadcast()
	return nil
}

// socketPair makes two connected sockets: unlike net.Pipe's, they take some bytes before somebody reads.
func socketPair() (host, guest net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		var fileErr error
		conns[i], fileErr = net.FileConn(f)
		err = errors.Join(err, fileErr, f.Close())
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}
