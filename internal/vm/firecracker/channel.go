package firecracker

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
)

const (
	// A guest may connect as often as it likes; each time costs the host an accept. Beyond some at once, it is
	// paced: the monitor refuses what the socket's queue cannot hold.
	freeAccepts = 16
	acceptPause = 50 * time.Millisecond
)

// A channel is the host's end of one channel. The guest connects to it, again whenever its connection breaks; the
// caller dials, whether the guest has connected already or not. Their connections are matched in order.
type channel struct {
	listener *net.UnixListener
	accepted sync.WaitGroup

	mu sync.Mutex // guards what follows
	// arrived is the guest's last connection that no caller has: an earlier one is worth nothing, because a guest
	// that connects again has given it up.
	arrived net.Conn
	// waiting are callers' connections that wait for the guest's.
	waiting []*conn
	ended   bool
}

// listen makes the socket that the monitor will connect to for the guest.
func (j *jail) listen(ch vm.Channel, uid, gid uint32) (*channel, error) {
	path, done, err := j.socket(fmt.Sprintf("%s_%d", jailVsock, ports[ch]))
	if err != nil {
		return nil, err
	}
	defer done()
	// What is there is of an earlier process that had the machine. Monitors connect by name, each time anew.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("make the socket of channel %s: %w", ch, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the socket of channel %s: %w", ch, err)
	}
	l.SetUnlinkOnClose(false) // it goes with the jail, and by that name it may be another's then
	if err := errors.Join(os.Chmod(path, 0o600), give(path, uid, gid)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	c := &channel{listener: l}
	c.accepted.Go(c.accept)
	return c, nil
}

// accept takes the guest's connections at once, because the monitor does not wait.
func (c *channel) accept() {
	for n := 1; ; n++ {
		guest, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.arrive(guest)
		if n > freeAccepts {
			time.Sleep(acceptPause)
		}
	}
}

func (c *channel) arrive(guest net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.waiting) > 0 {
		first := c.waiting[0]
		c.waiting = c.waiting[1:]
		if first.bind(guest) {
			return
		}
	}
	if c.arrived != nil {
		_ = c.arrived.Close() // what it has to say does not matter any more
	}
	c.arrived = guest
}

// dial returns a connection to the guest. Reading and writing wait until the guest has connected.
func (c *channel) dial() (net.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, vm.ErrEnded
	}
	if guest := c.arrived; guest != nil {
		c.arrived = nil
		return guest, nil
	}
	caller := &conn{ready: make(chan struct{}), changed: make(chan struct{})}
	// Those that were closed meanwhile are forgotten.
	kept := c.waiting[:0]
	for _, w := range c.waiting {
		if !w.isClosed() {
			kept = append(kept, w)
		}
	}
	c.waiting = append(kept, caller)
	return caller, nil
}

// close ends the channel of a machine that has ended. Connections that a caller has with the guest end by
// themselves, after what the guest has sent was read.
func (c *channel) close() {
	_ = c.listener.Close() // fails only when it is closed already
	c.accepted.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	if c.arrived != nil {
		_ = c.arrived.Close()
	}
	for _, w := range c.waiting {
		w.fail()
	}
	c.waiting = nil
}

// A conn is a connection to a guest that may be yet to connect.
type conn struct {
	ready chan struct{} // closed when guest or closed is set

	mu            sync.Mutex // guards what follows
	guest         net.Conn
	closed        error         // why there is and will be no guest; nil while there may be
	changed       chan struct{} // closed and replaced when a deadline changes
	readDeadline  time.Time
	writeDeadline time.Time
}

var _ net.Conn = (*conn)(nil)

// bind gives the connection its guest. It tells whether the connection still wants one.
func (c *conn) bind(guest net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed != nil {
		return false
	}
	// Deadlines of a unix socket are the runtime's own and can't fail while it is open.
	_ = guest.SetReadDeadline(c.readDeadline)
	_ = guest.SetWriteDeadline(c.writeDeadline)
	c.guest = guest
	close(c.ready)
	return true
}

// fail ends a connection whose guest never came.
func (c *conn) fail() { c.end(io.EOF) }

func (c *conn) end(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guest == nil && c.closed == nil {
		c.closed = why
		close(c.ready)
	}
}

func (c *conn) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed != nil
}

// await returns the guest's connection when there is one, or fails when the deadline that which points to is over.
func (c *conn) await(which *time.Time) (net.Conn, error) {
	for {
		c.mu.Lock()
		guest, closed, changed, deadline := c.guest, c.closed, c.changed, *which
		c.mu.Unlock()
		if guest != nil || closed != nil {
			return guest, closed
		}
		if err := c.pause(changed, deadline); err != nil {
			return nil, err
		}
	}
}

// pause waits until something may have changed.
func (c *conn) pause(changed <-chan struct{}, deadline time.Time) error {
	var late <-chan time.Time
	if !deadline.IsZero() {
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-c.ready:
	case <-changed:
	case <-late:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	guest, err := c.await(&c.readDeadline)
	if err != nil {
		return 0, err
	}
	return guest.Read(b)
}

// Write implements net.Conn. It waits for the guest to connect.
func (c *conn) Write(b []byte) (int, error) {
	guest, err := c.await(&c.writeDeadline)
	if errors.Is(err, io.EOF) {
		err = vm.ErrEnded
	}
	if err != nil {
		return 0, err
	}
	return guest.Write(b)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.end(net.ErrClosed)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.guest == nil {
		return nil
	}
	return c.guest.Close()
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	return c.setDeadline(&c.readDeadline, t, net.Conn.SetReadDeadline)
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	return c.setDeadline(&c.writeDeadline, t, net.Conn.SetWriteDeadline)
}

func (c *conn) setDeadline(which *time.Time, t time.Time, pass func(net.Conn, time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	*which = t
	close(c.changed)
	c.changed = make(chan struct{})
	if c.guest != nil {
		return pass(c.guest, t)
	}
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return &net.UnixAddr{Net: "unix"} }
