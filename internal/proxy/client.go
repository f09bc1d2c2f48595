package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// ErrStale means that the proxy has a newer configuration than the one it was sent.
var ErrStale = errors.New("configuration is older than the one in force")

// A Client controls a running proxy over its socket. Its methods may be called concurrently and take turns.
// After an error of the connection itself, Close it and Dial again.
type Client struct {
	mu   sync.Mutex
	conn net.Conn
}

// Dial connects to the proxy that listens on socket.
func Dial(ctx context.Context, socket string) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("reach the proxy: %w", err)
	}
	return &Client{conn: c}, nil
}

// Apply puts c in force and returns the status right after, bind errors included: those are no error of
// Apply's. It wraps ErrStale when the proxy has a newer revision.
func (c *Client) Apply(ctx context.Context, config Config) (*Status, error) {
	b, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("configure the proxy: %w", err)
	}
	s, err := c.do(ctx, request{Op: opApply, Config: b})
	if err != nil {
		return nil, fmt.Errorf("configure the proxy: %w", err)
	}
	return s, nil
}

// Status asks the proxy what it is doing.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	s, err := c.do(ctx, request{Op: opStatus})
	if err != nil {
		return nil, fmt.Errorf("ask the proxy for its status: %w", err)
	}
	return s, nil
}

// Shutdown tells the proxy to end, which closes every connection. It returns when the proxy has agreed; the
// socket is gone when it has ended.
func (c *Client) Shutdown(ctx context.Context) error {
	if _, err := c.do(ctx, request{Op: opShutdown}); err != nil {
		return fmt.Errorf("shut the proxy down: %w", err)
	}
	return nil
}

// Close ends the control connection. The proxy goes on.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) do(ctx context.Context, q request) (*Status, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// A request that is given up half way leaves the connection unusable: its answer may come later.
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var a response
	err := writeMessage(c.conn, q)
	if err == nil {
		err = readMessage(c.conn, &a, func() error { return nil })
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, errors.Join(context.Cause(ctx), c.conn.Close())
	case err != nil:
		return nil, err
	case a.Stale:
		return nil, fmt.Errorf("%w (%s)", ErrStale, a.Error)
	case a.Error != "":
		return nil, errors.New(a.Error)
	case a.Status == nil:
		return nil, errors.New("the proxy answered without a status")
	}
	return a.Status, c.conn.SetDeadline(time.Time{})
}
