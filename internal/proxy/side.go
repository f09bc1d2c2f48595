package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// A side is one end of a relay: a socket, or TLS over one.
type side interface {
	io.ReadWriter
	// CloseWrite tells the peer that nothing more comes; Close ends both directions in order, and reset at once.
	CloseWrite()
	Close() error
	reset()
	readUntil(at time.Time)
	writeUntil(at time.Time)
}

var _, _ side = (*conn)(nil), (*secured)(nil)

// A secured is a connection with the proxy of another host. The end of one direction is an alert of TLS, so that nobody
// between the hosts can cut a stream short without its being seen.
type secured struct {
	conn *conn
	tls  *tls.Conn
}

func (s *secured) Read(b []byte) (int, error)  { return s.tls.Read(b) }
func (s *secured) Write(b []byte) (int, error) { return s.tls.Write(b) }

// CloseWrite is answered by the peer in its own time. A peer that is gone shows when reading.
func (s *secured) CloseWrite() { _ = s.tls.CloseWrite() }

func (s *secured) Close() error { return s.tls.Close() }

func (s *secured) reset() { s.conn.reset() }

func (s *secured) readUntil(at time.Time) { s.conn.readUntil(at) }

func (s *secured) writeUntil(at time.Time) { s.conn.writeUntil(at) }

// underTLS is a conn as crypto/tls wants it. It is asked for no address.
type underTLS struct{ *conn }

func (underTLS) LocalAddr() net.Addr  { return nil }
func (underTLS) RemoteAddr() net.Addr { return nil }

func (u underTLS) SetDeadline(at time.Time) error {
	return errors.Join(u.SetReadDeadline(at), u.SetWriteDeadline(at))
}

func (u underTLS) SetReadDeadline(at time.Time) error { return u.file.SetReadDeadline(at) }

func (u underTLS) SetWriteDeadline(at time.Time) error { return u.file.SetWriteDeadline(at) }

// A mover moves the bytes of one direction until its source is done, which gives nil.
type mover interface{ run() error }

// moverOf chooses how to move bytes from one side to the other: what is encrypted can't go from socket to socket.
func moverOf(from, to side, moved, spliced *atomic.Uint64) mover {
	src, plain := from.(*conn)
	if dst, both := to.(*conn); plain && both {
		return &flow{src: src, dst: dst, bytes: moved, spliced: spliced}
	}
	return &copying{src: from, dst: to, bytes: moved}
}

// A copying moves bytes by reading and writing.
type copying struct {
	src, dst side
	bytes    *atomic.Uint64
}

func (c *copying) run() error {
	buf := buffers.Get().(*[copySize]byte)
	defer buffers.Put(buf)
	for {
		n, err := c.src.Read(buf[:])
		if n > 0 {
			if _, err := c.dst.Write(buf[:n]); err != nil {
				return err
			}
			c.bytes.Add(uint64(n))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
