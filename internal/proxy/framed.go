package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Between hosts a client of UDP has a stream of its own, in which each datagram comes after its length, in two bytes, the
// higher one first. What does not fit is dropped before it is in the stream, never within.
const (
	frameHead = 2
	// maxPayload is the most that a datagram of UDP over IPv4 can have.
	maxPayload = 1<<16 - 1 - 20 - 8
)

var (
	errFrame = errors.New("sends a datagram that is larger than there are")
	errIdle  = errors.New("nothing was said for a while")
)

// A framed is a socket of datagrams as one side of a relay: what is read of it are datagrams in frames, and what is
// written to it has to be that. Nothing is kept that the socket has no room for.
type framed struct {
	conn *conn
	// idle is when it ends if nothing comes and nothing goes; 0 for never. A stream is not kept alive by a part of a frame.
	idle    time.Duration
	active  atomic.Int64 // when something last came or went, in Unix nanoseconds
	ended   atomic.Bool
	limit   atomic.Int64 // of readUntil, in Unix nanoseconds; 0 for none
	dropped *atomic.Uint64

	rest []byte // of a frame that was read in part; owned by who reads
	cut  deframer
}

var _ side = (*framed)(nil)

func newFramed(c *conn, idle time.Duration, dropped *atomic.Uint64) *framed {
	f := &framed{conn: c, idle: idle, dropped: dropped}
	f.heard()
	return f
}

func (f *framed) heard() { f.active.Store(time.Now().UnixNano()) }

// Read gives the next datagram in its frame, or as much of it as b takes.
func (f *framed) Read(b []byte) (int, error) {
	if len(f.rest) == 0 {
		if err := f.receive(); err != nil {
			return 0, err
		}
	}
	n := copy(b, f.rest)
	if f.rest = f.rest[n:]; len(f.rest) == 0 {
		f.rest = nil // what waits needs no memory
	}
	return n, nil
}

// receive waits for a datagram and puts it into rest.
func (f *framed) receive() error {
	var err error
	pass := func(fd uintptr) bool {
		buf := datagramBuffers.Get().(*[maxDatagram]byte)
		defer datagramBuffers.Put(buf)
		var n int
		if n, _, err = unix.Recvfrom(int(fd), buf[:], 0); err != nil {
			return err != unix.EAGAIN && err != unix.EINTR
		}
		if n == 0 && hungUp(fd) {
			err = io.EOF
			return true
		}
		if n > maxPayload { // IPv6 has a few bytes more
			f.dropped.Add(1)
			return true
		}
		f.rest = append(binary.BigEndian.AppendUint16(make([]byte, 0, frameHead+n), uint16(n)), buf[:n]...)
		return true
	}
	for {
		f.setDeadline()
		waitErr := f.conn.raw.Read(pass)
		switch {
		case f.ended.Load(), errors.Is(err, unix.ECONNRESET):
			return io.EOF
		case errors.Is(waitErr, os.ErrDeadlineExceeded):
			if err := f.late(); err != nil {
				return err
			}
		case waitErr != nil:
			return waitErr
		case err == nil && len(f.rest) == 0: // it was dropped
		case err == nil:
			f.heard()
			return nil
		default:
			return err
		}
	}
}

// setDeadline has reading end when it may be time to.
func (f *framed) setDeadline() {
	var at time.Time
	if f.idle > 0 {
		at = time.Unix(0, f.active.Load()).Add(f.idle)
	}
	if limit := f.limit.Load(); limit != 0 && (at.IsZero() || limit < at.UnixNano()) {
		at = time.Unix(0, limit)
	}
	f.conn.readUntil(at)
	if f.ended.Load() {
		f.conn.readUntil(time.Unix(1, 0))
	}
}

// late says whether it is time to end.
func (f *framed) late() error {
	now := time.Now().UnixNano()
	if limit := f.limit.Load(); limit != 0 && limit <= now {
		return os.ErrDeadlineExceeded
	}
	if f.idle > 0 && f.active.Load()+int64(f.idle) <= now {
		return errIdle
	}
	return nil
}

// Write sends the datagrams that b completes. Where nobody listens, the flow is over; what finds no room is lost, as it
// may be with UDP.
func (f *framed) Write(b []byte) (int, error) {
	err := f.cut.feed(b, func(datagram []byte) error {
		err := sendDatagram(f.conn, datagram)
		switch {
		case err == nil:
			f.heard()
			return nil
		case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ECONNRESET), errors.Is(err, os.ErrClosed):
			return err
		}
		f.dropped.Add(1)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// CloseWrite ends both directions: a flow of datagrams has no half.
func (f *framed) CloseWrite() {
	f.ended.Store(true)
	f.conn.readUntil(time.Unix(1, 0))
}

func (f *framed) Close() error { return f.conn.Close() }

func (f *framed) reset() { _ = f.conn.Close() }

func (f *framed) readUntil(at time.Time) {
	if at.IsZero() {
		f.limit.Store(0)
	} else {
		f.limit.Store(at.UnixNano())
	}
	f.setDeadline()
}

// writeUntil has nothing to do: writing never waits.
func (*framed) writeUntil(time.Time) {}

// sendDatagram sends without waiting.
func sendDatagram(c *conn, b []byte) error {
	var err error
	closed := c.raw.Control(func(fd uintptr) {
		_, err = unix.SendmsgN(int(fd), b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	return errors.Join(err, closed)
}

// hungUp reports whether the other end of a pair of sockets is closed. A datagram can be empty, so that reading nothing
// does not say so.
func hungUp(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLRDHUP) != 0
}

// A deframer takes datagrams out of a stream. What it keeps is what has come of one datagram.
type deframer struct {
	head []byte // of the frame that has begun
	body []byte
	need int // bytes of body, once head is there
}

// feed hands each datagram that b completes to take, which must not keep it. An error is final.
func (d *deframer) feed(b []byte, take func([]byte) error) error {
	for len(b) > 0 {
		if len(d.head) < frameHead {
			n := min(frameHead-len(d.head), len(b))
			d.head, b = append(d.head, b[:n]...), b[n:]
			if len(d.head) < frameHead {
				return nil
			}
			if d.need = int(binary.BigEndian.Uint16(d.head)); d.need > maxPayload {
				return fmt.Errorf("%w: %d bytes", errFrame, d.need)
			}
		}
		n := min(d.need-len(d.body), len(b))
		whole := b[:n]
		if len(d.body) > 0 || n < d.need {
			d.body = append(d.body, whole...)
			whole = d.body
		}
		b = b[n:]
		if len(whole) < d.need {
			return nil
		}
		d.head, d.body = d.head[:0], nil
		if err := take(whole); err != nil {
			return err
		}
	}
	return nil
}
