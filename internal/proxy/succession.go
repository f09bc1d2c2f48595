package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// handOver gives everything to the newer proxy that asks on c, and returns nil when that has it.
func (s *control) handOver(c *net.UnixConn) error {
	e := s.engine
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left {
		err := errors.New("another proxy has taken over already")
		return errors.Join(err, writeMessage(c, handoverMessage{Error: err.Error()}))
	}
	if err := s.offer(c); err != nil {
		e.resume()
		return err
	}
	e.leave()
	s.mu.Lock()
	for other := range s.open {
		if other != net.Conn(c) {
			_ = other.Close()
		}
	}
	_ = s.lock.Close() // the other one has it too
	s.lock = nil
	s.mu.Unlock()
	_ = s.socket.Close()
	close(s.left)
	if err := writeMessage(c, response{Status: e.statusLocked()}); err != nil {
		e.log.Warn("the newer proxy is gone at once", "err", err)
	}
	return c.SetDeadline(time.Time{})
}

// offer sends everything, and returns nil when the other side says that it has it. The caller holds engine.mu.
func (s *control) offer(c *net.UnixConn) error {
	o := &offering{}
	defer o.close()
	if err := c.SetDeadline(time.Now().Add(handoverTimeout)); err != nil {
		return err
	}
	lock, err := s.lock.SyscallConn()
	if err == nil {
		err = o.add(passed{Kind: passedLock}, socket{&conn{raw: lock}})
	}
	if err == nil {
		lock, err = s.socket.SyscallConn()
	}
	if err == nil {
		err = o.add(passed{Kind: passedControl}, socket{&conn{raw: lock}})
	}
	if err == nil {
		err = s.engine.offer(o)
	}
	if err == nil {
		err = o.send(c, s.engine.config)
	}
	if err != nil {
		return err
	}
	var q request
	if err := readMessage(c, &q, func() error { return nil }); err != nil {
		return fmt.Errorf("wait for the newer proxy to take what it got: %w", err)
	}
	if q.Op != opTaken {
		return fmt.Errorf("the newer proxy said %q, not %q", q.Op, opTaken)
	}
	return nil
}

// succeeded says whether a newer proxy has taken over.
func (s *control) succeeded() bool {
	select {
	case <-s.left:
		return true
	default:
		return false
	}
}

// linger waits until all connections have ended, also those of a proxy that is older still, or until ctx is
// done.
func (s *control) linger(ctx context.Context) {
	const often = 100 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for s.engine.places.inside() > 0 || s.old.carries() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// A predecessor is the older proxy that this one has taken over from, for as long as it has connections. A nil
// one is none.
type predecessor struct {
	mu     sync.Mutex
	client *Client // guarded by mu; nil when it has ended
}

// predecessorTimeout bounds an exchange with it.
const predecessorTimeout = 2 * time.Second

// with exchanges something with the older proxy, if it is still there.
func (p *predecessor) with(f func(ctx context.Context, c *Client) (*Status, error)) *Status {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), predecessorTimeout)
	defer cancel()
	s, err := f(ctx, p.client)
	if errors.Is(err, ErrStale) {
		return s
	}
	if err != nil {
		// It has ended, as it should once it has no connections left.
		_ = p.client.Close()
		p.client = nil
		return nil
	}
	return s
}

// apply passes a configuration on, so that connections end whose backends have left.
func (p *predecessor) apply(c Config) {
	p.with(func(ctx context.Context, old *Client) (*Status, error) { return old.Apply(ctx, c) })
}

// addTo adds what the older proxy carries to s.
func (p *predecessor) addTo(s *Status) {
	old := p.with(func(ctx context.Context, old *Client) (*Status, error) { return old.Status(ctx) })
	if old != nil {
		s.add(old)
	}
}

func (p *predecessor) carries() bool {
	s := p.with(func(ctx context.Context, old *Client) (*Status, error) { return old.Status(ctx) })
	return s != nil && s.Connections > 0
}

// end ends the older proxy with this one.
func (p *predecessor) end(ctx context.Context) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), predecessorTimeout)
	defer cancel()
	_ = errors.Join(p.client.Shutdown(ctx), p.client.Close()) // it may have ended just now
	p.client = nil
}
