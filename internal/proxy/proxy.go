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
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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

	// resolverPort is 53 but in tests.
	resolverPort string
}

// filesPerConn is what a connection holds: two sockets and, for splice, two pipes of two ends each.
const filesPerConn = 6

// Run serves until ctx is done or a client asks for Shutdown, closes every connection, and returns when all
// it started has ended. It returns an error when it could not begin.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	lock, err := takeLock(o.Socket + ".lock")
	if err != nil {
		return fmt.Errorf("run proxy: %w", err)
	}
	defer func() { _ = lock.Close() }()
	ctx, shutdown := context.WithCancel(ctx)
	defer shutdown()
	e := newEngine(ctx, o)
	c, err := openControl(o.Socket, e, shutdown)
	if err != nil {
		return fmt.Errorf("run proxy: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(c.serve)
	o.Log.Info("proxy is ready", "socket", o.Socket, "max_conns", o.MaxConns)
	again := time.NewTicker(retryEvery)
	defer again.Stop()
	for ctx.Err() == nil {
		select {
		case <-again.C:
			e.retry()
		case <-ctx.Done():
		}
	}
	err = c.close()
	serving.Wait()
	e.close()
	if err != nil {
		return fmt.Errorf("stop proxy: %w", err)
	}
	return nil
}

// retryEvery is how often it is tried again to get a port that was taken.
const retryEvery = time.Second

func (o Options) withDefaults() Options {
	if o.ConnectTimeout <= 0 {
		o.ConnectTimeout = 3 * time.Second
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.resolverPort == "" {
		o.resolverPort = "53"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MaxConns <= 0 {
		const reserve = 1024 // for listeners, namespaces and DNS
		o.MaxConns = max((raiseFileLimit()-reserve)/filesPerConn, 64)
	}
	return o
}

// raiseFileLimit gets as many open files as the kernel gives, up to a bound, and returns how many those are.
func raiseFileLimit() int {
	const enough = 1 << 20
	var have unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &have) != nil {
		return 1024
	}
	if have.Cur < enough {
		// Only root may raise the hard limit; others get as far as that.
		for _, want := range []unix.Rlimit{{Cur: enough, Max: max(enough, have.Max)}, {Cur: have.Max, Max: have.Max}} {
			if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
				return int(min(want.Cur, enough))
			}
		}
	}
	return int(min(have.Cur, enough))
}

// takeLock keeps a second proxy away from the socket for as long as this process lives.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another proxy runs on this socket: lock %s: %w", path, err), f.Close())
	}
	return f, nil
}
