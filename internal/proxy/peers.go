package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// How two proxies speak over TLS, before the bytes of the connection itself:
//
//	who dials  version 1, the length of the target's name, the name
//	who waits  0 when the target takes the connection, or why not
//
// Nothing of the connection is sent before the answer, so that one that is refused can be led elsewhere.
const (
	peerVersion = 1

	peerTaken   = 0
	peerUnknown = 1 // there is no such target, or it takes nothing new
	peerUnable  = 2 // it cannot be reached
)

var (
	errNoHost    = errors.New("is no host of the fleet")
	errHostFull  = errors.New("has its share of the connections already")
	errNoTarget  = errors.New("asks for a target that is not here")
	errPeerHello = errors.New("speaks another protocol between hosts")
)

// hosts are the other hosts of a PEER listener and what they have open.
type hosts struct {
	mu sync.Mutex
	// Guarded by mu.
	admitted map[string]bool
	share    int // of each host, of the listener's connections
	open     map[string]map[side]struct{}
}

// update lets in the hosts named, and ends at once what others have.
func (h *hosts) update(names []string, share int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.share, h.admitted = share, make(map[string]bool, len(names))
	for _, name := range names {
		h.admitted[name] = true
	}
	for name, streams := range h.open {
		if h.admitted[name] {
			continue
		}
		for s := range streams {
			s.reset()
		}
	}
}

// admits says why a host may not come in, or nil.
func (h *hosts) admits(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.admitted[name] {
		return fmt.Errorf("%q %w", name, errNoHost)
	}
	return nil
}

// enter notes a connection of a host, for leave to undo.
func (h *hosts) enter(name string, s side) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.admitted[name]:
		return fmt.Errorf("%q %w", name, errNoHost)
	case len(h.open[name]) >= h.share:
		return fmt.Errorf("%q %w", name, errHostFull)
	case h.open == nil:
		h.open = map[string]map[side]struct{}{}
	}
	if h.open[name] == nil {
		h.open[name] = map[side]struct{}{}
	}
	h.open[name][s] = struct{}{}
	return nil
}

func (h *hosts) leave(name string, s side) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.open[name], s)
	if len(h.open[name]) == 0 {
		delete(h.open, name)
	}
}

// greet makes a client of PEER one that is known: which host it is, and where it wants to go. Whoever waits for that
// has no more time than the deadline of its connection.
func (l *listener) greet(ctx context.Context, s *stranger) error {
	config, err := l.engine.identity().config(l.hosts.admits)
	if err != nil {
		return err
	}
	expectDeath(s.conn)
	t := tls.Server(underTLS{s.conn}, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	host, err := HostOf(t.ConnectionState().PeerCertificates[0])
	if err != nil {
		return err
	}
	through := &secured{conn: s.conn, tls: t}
	target, err := readPeerHello(through)
	if err != nil {
		return err
	}
	if err := l.hosts.enter(host, through); err != nil {
		return errors.Join(err, answerPeer(through, peerUnable))
	}
	s.through, s.host = through, host
	s.choose = func() *pool { return l.backends.of(target) }
	if s.choose() == nil {
		return errors.Join(fmt.Errorf("host %s %w: %q", host, errNoTarget, target), answerPeer(through, peerUnknown))
	}
	return nil
}

func readPeerHello(from io.Reader) (target string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return "", err
	}
	if head[0] != peerVersion || head[1] == 0 {
		return "", fmt.Errorf("%w: version %d, a name of %d bytes", errPeerHello, head[0], head[1])
	}
	name := make([]byte, head[1])
	if _, err := io.ReadFull(from, name); err != nil {
		return "", err
	}
	return string(name), nil
}

func answerPeer(to io.Writer, answer byte) error {
	_, err := to.Write([]byte{answer})
	return err
}

// welcome tells a host, if the client is one, that it has been led to its target, or why not.
func (l *listener) welcome(s *stranger, refused error) error {
	if s.through == nil {
		return refused
	}
	s.writeUntil(time.Now().Add(l.engine.helloTimeout))
	defer s.writeUntil(time.Time{})
	switch {
	case refused == nil:
		return answerPeer(s.through, peerTaken)
	case errors.Is(refused, errNoBackend):
		return errors.Join(refused, answerPeer(s.through, peerUnknown))
	default:
		return errors.Join(refused, answerPeer(s.through, peerUnable))
	}
}

// expectDeath has a connection end when the other host is gone: without a word, as after a power cut, nothing else says
// so to a connection on which nothing is sent. A host is given as long as the fleet gives it before others take over.
func expectDeath(c *conn) {
	const after, every, times = 6, 3, 3 // seconds, seconds, probes
	_ = c.raw.Control(func(fd uintptr) {
		for option, value := range map[int]int{
			unix.TCP_KEEPIDLE: after, unix.TCP_KEEPINTVL: every, unix.TCP_KEEPCNT: times, unix.TCP_USER_TIMEOUT: 1000 * (after + every*times),
		} {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) // without, it ends later
		}
	})
}

// secure leads a connection on to a target of another host, before ctx ends. It closes c when it fails.
func (e *engine) secure(ctx context.Context, c *conn, host, target string) (side, error) {
	config, err := e.identity().config(func(is string) error {
		if is != host {
			return fmt.Errorf("it is host %q", is)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	expectDeath(c)
	stop := context.AfterFunc(ctx, func() { c.readUntil(time.Unix(1, 0)); c.writeUntil(time.Unix(1, 0)) })
	s := &secured{conn: c, tls: tls.Client(underTLS{c}, config)}
	err = askPeer(ctx, s, target)
	if !stop() && err == nil {
		// It is being given up just now, and would have a deadline that has passed.
		err = context.Cause(ctx)
	}
	if err != nil {
		c.reset()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("host %s: %w", host, err)
	}
	return s, nil
}

func askPeer(ctx context.Context, s *secured, target string) error {
	if err := s.tls.HandshakeContext(ctx); err != nil {
		return err
	}
	if _, err := s.Write(slices.Concat([]byte{peerVersion, byte(len(target))}, []byte(target))); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(s, answer[:]); err != nil {
		return err
	}
	switch answer[0] {
	case peerTaken:
		return nil
	case peerUnknown:
		return fmt.Errorf("%s takes no new connections there", target)
	default:
		return fmt.Errorf("%s cannot be reached there", target)
	}
}
