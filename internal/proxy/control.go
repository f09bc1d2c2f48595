package proxy

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The control protocol: the client sends a request, the proxy one answer, any number of times over one
// connection. Each is its length as 32 bits, big endian, and that many bytes of JSON. Unknown fields are
// ignored, so that versions mix.
const (
	protocolVersion = 1
	maxControl      = 16 // connections
	maxMessage      = MaxConfigBytes + 4096
	// messageTimeout bounds how long a message may take once it has begun.
	messageTimeout = 30 * time.Second
)

const (
	opApply    = "apply"
	opStatus   = "status"
	opShutdown = "shutdown"
)

type request struct {
	Op     string          `json:"op"`
	Config json.RawMessage `json:"config,omitempty"`
}

type response struct {
	Status *Status `json:"status,omitempty"`
	Error  string  `json:"error,omitempty"`
	// Stale means that Error stands for ErrStale.
	Stale bool `json:"stale,omitempty"`
}

func writeMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes is larger than %d", len(b), maxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// readMessage calls begun when the first bytes are there.
func readMessage(r io.Reader, v any, begun func() error) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if err := begun(); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxMessage {
		return fmt.Errorf("message of %d bytes is larger than %d", n, maxMessage)
	}
	// Grown as bytes arrive: the length alone allocates nothing.
	b, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(b) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// A control is the socket that the agent talks to.
type control struct {
	options  Options
	engine   *engine
	socket   *net.UnixListener
	shutdown context.CancelFunc
	// old is the proxy that this one has taken over from; nil without one.
	old *predecessor
	// left is closed when a newer proxy has taken over.
	left chan struct{}
	// ended means that a client has asked for the end, after which no proxy shall go on.
	ended atomic.Bool

	conns sync.WaitGroup
	mu    sync.Mutex
	// Guarded by mu.
	open map[net.Conn]struct{}
	lock *os.File
}

func newControl(l *net.UnixListener, o Options, e *engine, lock *os.File, old *predecessor, shutdown context.CancelFunc) *control {
	return &control{
		options: o, engine: e, socket: l, shutdown: shutdown, old: old, lock: lock,
		left: make(chan struct{}), open: map[net.Conn]struct{}{},
	}
}

// listenControl makes the socket under another name first: at path it appears with its mode, and takes the
// place of one that a killed proxy has left.
func listenControl(path string) (*net.UnixListener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, 0o600); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open control socket: %w", err), l.Close(), os.Remove(fresh))
	}
	return l, nil
}

// serve takes requests until close.
func (s *control) serve() {
	for {
		c, err := s.socket.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.engine.log.Warn("cannot accept a control connection, pausing", "err", err)
			select {
			case <-time.After(acceptPauseMax):
			case <-s.engine.ctx.Done():
			}
			continue
		}
		if err := s.admit(c); err != nil {
			s.engine.log.Warn("control connection refused", "err", err)
			_ = c.Close()
			continue
		}
		s.conns.Go(func() {
			s.talk(c)
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.open, c)
			_ = c.Close()
		})
	}
}

// admit checks who is there: the mode of the socket should have kept others out already.
func (s *control) admit(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, peerErr); err != nil {
		return fmt.Errorf("find out who connects: %w", err)
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("uid %d may not control this proxy", peer.Uid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.open) >= maxControl {
		return fmt.Errorf("%d control connections are open already", maxControl)
	}
	s.open[c] = struct{}{}
	return nil
}

// talk answers until the other side leaves or sends what is not a message.
func (s *control) talk(c *net.UnixConn) {
	hurry := func() error { return c.SetDeadline(time.Now().Add(messageTimeout)) }
	for {
		var q request
		if err := readMessage(c, &q, hurry); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.engine.log.Warn("control connection ended", "err", err)
			}
			return
		}
		if q.Op == opHandover {
			if err := s.handOver(c); err != nil {
				s.engine.log.Warn("could not hand over to a newer proxy; going on", "err", err)
				return
			}
			continue
		}
		a := s.answer(q)
		if err := writeMessage(c, a); err != nil {
			s.engine.log.Warn("control connection ended", "err", err)
			return
		}
		if q.Op == opShutdown {
			s.ended.Store(true)
			s.shutdown()
			return
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			return
		}
	}
}

func (s *control) answer(q request) response {
	switch q.Op {
	case opApply:
		c, err := ParseConfig(q.Config)
		if err == nil {
			err = s.engine.apply(c)
		}
		if err == nil {
			s.old.apply(s.engine.current())
		}
		if err != nil {
			return response{Error: err.Error(), Stale: errors.Is(err, ErrStale)}
		}
	case opStatus, opShutdown:
	default:
		return response{Error: fmt.Sprintf("unknown request %q", q.Op)}
	}
	status := s.engine.status()
	s.old.addTo(status)
	return response{Status: status}
}

// close ends all control connections and, when no other proxy goes on with them, removes the socket and what
// was kept.
func (s *control) close(ctx context.Context) error {
	var err error
	if !s.succeeded() {
		err = os.Remove(s.options.Socket)
		s.old.end(ctx)
		if s.ended.Load() {
			err = errors.Join(err, s.options.forget())
		}
	}
	if closeErr := s.socket.Close(); !errors.Is(closeErr, net.ErrClosed) {
		err = errors.Join(err, closeErr)
	}
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.conns.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lock != nil {
		_ = s.lock.Close()
	}
	return err
}
