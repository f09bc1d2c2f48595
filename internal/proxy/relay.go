package proxy

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// lingerFor bounds how long a side is still listened to that talks to somebody who has left.
const lingerFor = 5 * time.Second

// A relay carries one connection.
type relay struct {
	client, server side
	traffic        *traffic
	// done counts the directions whose source has said that it is done.
	done atomic.Int32
}

// traffic counts bytes: what clients sent, what they got, and how much of both went through splice.
type traffic struct {
	received, sent, splicedIn, splicedOut atomic.Uint64
}

// run carries both directions until both have ended, and closes both connections.
func (r *relay) run() {
	var there sync.WaitGroup
	in := moverOf(r.client, r.server, &r.traffic.received, &r.traffic.splicedIn)
	out := moverOf(r.server, r.client, &r.traffic.sent, &r.traffic.splicedOut)
	there.Go(func() { r.carry(out, r.server, r.client) })
	r.carry(in, r.client, r.server)
	there.Wait()
	_ = r.client.Close()
	_ = r.server.Close()
}

// carry moves bytes until the source says that it is done, and says so to the other side: the other direction
// goes on. The ways to end otherwise:
//
//   - One side was aborted: so is the other, and both directions end.
//   - The destination had said that it was done, and then left altogether, as a web server does that answers
//     before it has read the whole request. Its answer may still be on the way to the source, and closing now,
//     with bytes of the source unread, would make the kernel throw it away. So what the source still sends is
//     read and dropped for a while.
func (r *relay) carry(m mover, src, dst side) {
	err := m.run()
	switch {
	case err == nil && r.done.Add(1) == 2:
		// Both connections are closed now, which says it too.
	case err == nil:
		dst.CloseWrite()
	case errors.Is(err, unix.EPIPE):
		// It can be the source, too, that was done and then left.
		dst.CloseWrite()
		src.readUntil(time.Now().Add(lingerFor))
		_, _ = io.Copy(io.Discard, struct{ io.Reader }{src})
	default:
		r.abort()
	}
}

// abort ends both connections at once; both peers see a reset.
func (r *relay) abort() {
	r.client.reset()
	r.server.reset()
}
