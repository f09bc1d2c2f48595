package proxy

import (
	"context"
	"errors"
)

// ErrStale means that the proxy has a newer configuration than the one it was sent.
var ErrStale = errors.New("configuration is older than the one in force")

// A Client controls a running proxy over its socket. Its methods may be called concurrently and take turns.
type Client struct{}

// Dial connects to the proxy that listens on socket.
func Dial(_ context.Context, _ string) (*Client, error) { return nil, errors.New("not built yet") }

// Apply puts c in force and returns the status right after, bind errors included: those are no error of
// Apply's. It wraps ErrStale when the proxy has a newer revision.
func (c *Client) Apply(_ context.Context, _ Config) (*Status, error) {
	return nil, errors.New("not built yet")
}

// Status asks the proxy what it is doing.
func (c *Client) Status(_ context.Context) (*Status, error) { return nil, errors.New("not built yet") }

// Shutdown tells the proxy to end. Connections are closed.
func (c *Client) Shutdown(_ context.Context) error { return errors.New("not built yet") }

// Close ends the control connection. The proxy goes on.
func (c *Client) Close() error { return nil }
