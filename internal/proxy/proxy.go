// Package proxy is the process that stands between the networks of a host's environments and everything that
// connects to them: `pinnace proxy`.
//
// It listens on public addresses in the host's namespace and on virtual addresses inside the environments',
// dials backends in theirs, and answers DNS there. Fed whole configurations over a unix socket, it keeps the
// last one for as long as it lives: that the agent goes away or is replaced resets no connection.
//
// The package knows nothing of apps or releases, decides nothing about health, and moves bytes without
// looking at them.
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Options configures Run. Zero values mean the defaults named.
type Options struct {
	// Socket is the path of the control socket. Whoever can connect to it controls the proxy, so it is made
	// with mode 0600; "<Socket>.lock" beside it keeps a second proxy away.
	Socket string
	// ConnectTimeout bounds one attempt to reach a backend (3 s); all attempts for one connection together
	// get three times as long.
	ConnectTimeout time.Duration
	// MaxConns bounds all open connections (what the limit of open files allows, at six for each).
	MaxConns int
	// ResolvConf names the resolvers that DNS questions are forwarded to ("/etc/resolv.conf").
	ResolvConf string
	// Log receives what operators should know. Nil discards it.
	Log *slog.Logger
}

// Run serves until ctx is done or a client asks for Shutdown, closes every connection, and returns when all
// it started has ended.
func Run(_ context.Context, _ Options) error { return errors.New("not built yet") }
