package proxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// lingerFor bounds how long a side is still listened to that talks to somebody who has left.
const lingerFor = 5 * time.Second

// A relay carries one connection. Bytes go from socket to socket inside the kernel (splice).
type relay struct {
	client, server *net.TCPConn
}

// run carries both directions until both have ended, and closes both connections.
func (r *relay) run() {
	var there sync.WaitGroup
	there.Go(func() { r.carry(r.server, r.client) })
	r.carry(r.client, r.server)
	there.Wait()
	_ = r.client.Close()
	_ = r.server.Close()
}

// carry moves bytes from src to dst until src says that it is done, and says so to dst: the other direction
// goes on. The ways to end otherwise:
//
//   - src or dst was aborted: so is the other, and both directions end.
//   - dst had said that it was done, and then left altogether, as a web server does that answers before it has
//     read the whole request. Its answer may still be on the way to src, and closing now, with bytes of src
//     unread, would make the kernel throw it away. So what src still sends is read and dropped for a while.
func (r *relay) carry(dst, src *net.TCPConn) {
	_, err := dst.ReadFrom(src)
	switch {
	case err == nil:
		// A dst that is gone shows in the other direction.
		_ = dst.CloseWrite()
	case errors.Is(err, syscall.EPIPE):
		// It can be src, too, that was done and then left.
		_ = dst.CloseWrite()
		_ = src.SetReadDeadline(time.Now().Add(lingerFor))
		_, _ = io.Copy(io.Discard, src)
	default:
		r.abort()
	}
}

// abort ends both connections at once; both peers see a reset.
func (r *relay) abort() {
	reset(r.client)
	reset(r.server)
}

func reset(c *net.TCPConn) {
	// If lingering can't be switched off, the peer sees an ordinary end instead: no reason to keep it waiting.
	_ = c.SetLinger(0)
	_ = c.Close()
}
