package firecrackertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// A Guest plays the software of one machine and returns how the machine ends. It runs in the stand-in's process,
// which ends when it returns.
type Guest func(ctx context.Context, m *Machine) vmtest.End

// RealInit is the name of the guest that is played for an initramfs with pinnace-init in it.
const RealInit = "pinnace-init"

// cpioMagic is how archives in the format that the kernel takes begin.
const cpioMagic = "070701"

// A Machine is what a played guest has of its machine.
type Machine struct {
	// Console is the serial console. What does not fit is lost.
	Console io.Writer
	// Disks are in the order of their devices, with the serials that Firecracker makes up.
	Disks       []vmtest.SuiteDisk
	MemoryBytes int64

	uds string // path of the vsock's socket, relative to the working directory

	mu        sync.Mutex
	listeners map[uint32]chan net.Conn // guarded by mu
}

func newMachine(c config, console io.Writer) *Machine {
	m := &Machine{Console: console, MemoryBytes: int64(c.machine.MemSizeMiB) << 20, listeners: map[uint32]chan net.Conn{}}
	for i, d := range c.drives {
		m.Disks = append(m.Disks, vmtest.SuiteDisk{
			Serial: fmt.Sprintf("6476905243%d", i), Path: inJail(*d.PathOnHost), ReadOnly: *d.IsReadOnly,
		})
	}
	if c.vsock != nil {
		m.uds = inJail(c.vsock.UDSPath)
		go m.serveHost(c.vsockHost)
	}
	return m
}

// Dial connects to a vsock port of the host.
func (m *Machine) Dial(port uint32) (net.Conn, error) {
	if m.uds == "" {
		return nil, errors.New("no such device")
	}
	conn, err := net.Dial("unix", fmt.Sprintf("%s_%d", m.uds, port))
	if err != nil {
		return nil, fmt.Errorf("connection reset by peer: %w", err)
	}
	return conn, nil
}

// Stream connects to a vsock port of the host, and again whenever the connection breaks, as pinnace-init does.
func (m *Machine) Stream(port uint32) io.ReadWriteCloser {
	return &stream{dial: func() (net.Conn, error) { return m.Dial(port) }}
}

// Listen returns the connections that the host makes to a vsock port of the guest.
func (m *Machine) Listen(port uint32) <-chan net.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := make(chan net.Conn, 16)
	m.listeners[port] = c
	return c
}

// serveHost takes the host's connections on the vsock's own socket.
func (m *Machine) serveHost(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go m.forward(conn)
	}
}

// forward does what a host's connection asks for, which is said in its first line: "CONNECT <port>". A port where
// nobody listens is answered by hanging up.
func (m *Machine) forward(conn net.Conn) {
	const longest = 32
	line, err := bufio.NewReaderSize(io.LimitReader(oneByOne{conn}, longest), 1).ReadString('\n')
	word, number, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	port, numErr := strconv.ParseUint(number, 10, 32)
	m.mu.Lock()
	listener := m.listeners[uint32(port)]
	m.mu.Unlock()
	if err != nil || numErr != nil || !strings.EqualFold(word, "CONNECT") || listener == nil {
		_ = conn.Close() // which is the answer
		return
	}
	fmt.Fprintf(conn, "OK %d\n", 1<<30)
	listener <- conn
}

// oneByOne reads single bytes: what follows a line is the guest's.
type oneByOne struct{ io.Reader }

func (r oneByOne) Read(b []byte) (int, error) { return r.Reader.Read(b[:min(len(b), 1)]) }

// A stream is made of connections that follow each other.
type stream struct {
	dial func() (net.Conn, error)

	mu     sync.Mutex // guards what follows, also while dialling
	conn   net.Conn
	closed bool
}

var errClosed = errors.New("the stream is closed")

func (s *stream) Read(b []byte) (int, error) {
	for {
		conn, err := s.connected()
		if err != nil {
			return 0, io.EOF
		}
		if n, _ := conn.Read(b); n > 0 {
			return n, nil
		}
		s.drop(conn)
	}
}

func (s *stream) Write(b []byte) (int, error) {
	for {
		conn, err := s.connected()
		if err != nil {
			return 0, err
		}
		if n, err := conn.Write(b); err == nil {
			return n, nil
		}
		s.drop(conn)
	}
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		return s.conn.Close()
	}
	return nil
}

func (s *stream) connected() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.closed {
			return nil, errClosed
		}
		if s.conn != nil {
			return s.conn, nil
		}
		conn, err := s.dial()
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		s.conn = conn
	}
}

func (s *stream) drop(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == conn {
		s.conn = nil
		_ = conn.Close() // it is broken already
	}
}
