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
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options configures Run. Zero values mean the defaults named.
type Options struct {
	// Socket is the path of the control socket. Whoever can connect to it controls the proxy, so it is made
	// with mode 0600; "<Socket>.lock" beside it keeps a second proxy away, and "<Socket>.config" is the
	// configuration in force, for the next process after one that was killed.
	Socket string
	// TakeOver takes the place of the proxy that runs on Socket, if there is one, without closing a socket or
	// a connection.
	TakeOver bool
	// Build names the program's version in Status.
	Build string
	// ConnectTimeout bounds one attempt to reach a backend (3 s); all attempts for one connection together
	// get three times as long.
	ConnectTimeout time.Duration
	// MaxConns bounds all open connections (what the limit of open files allows, at three for each).
	MaxConns int
	// ResolvConf names the resolvers that DNS questions are forwarded to ("/etc/resolv.conf").
	ResolvConf string
	// Log receives what operators should know. Nil discards it.
	Log *slog.Logger

	// resolverPort is 53, helloTimeout 5 s and chance random but in tests.
	resolverPort string
	helloTimeout time.Duration
	chance       func() float64
}

// filesPerConn is what a connection may hold: two sockets, and a share of the pipes. A stream that flows both ways
// just now takes four descriptors more, but with none left bytes are copied.
const filesPerConn = 3

// Run serves until ctx is done, a client asks for Shutdown, or a newer proxy has taken over and all connections
// have ended; then it closes what is left, and returns when all it started has ended. It returns an error when
// it could not begin.
func Run(ctx context.Context, o Options) error {
	o = o.withDefaults()
	ctx, shutdown := context.WithCancel(ctx)
	defer shutdown()
	e := newEngine(ctx, o)
	c, err := o.begin(e, shutdown)
	if err != nil {
		e.close()
		return fmt.Errorf("run proxy: %w", err)
	}
	var serving sync.WaitGroup
	serving.Go(c.serve)
	o.Log.Info("proxy is ready", "socket", o.Socket, "max_conns", o.MaxConns, "build", o.Build)
	again := time.NewTicker(retryEvery)
	defer again.Stop()
	for ctx.Err() == nil && !c.succeeded() {
		select {
		case <-again.C:
			e.retry()
		case <-c.left:
		case <-ctx.Done():
		}
	}
	if c.succeeded() {
		o.Log.Info("a newer proxy has taken over; carrying on with the open connections", "connections", e.places.inside())
		c.linger(ctx)
	}
	err = c.close(ctx)
	serving.Wait()
	e.close()
	if err != nil {
		return fmt.Errorf("stop proxy: %w", err)
	}
	return nil
}

// begin takes over from an older proxy or, when there is none, begins with the configuration of one that was
// killed.
func (o Options) begin(e *engine, shutdown context.CancelFunc) (*control, error) {
	if o.TakeOver {
		in, err := inherit(o.Socket)
		if err == nil {
			e.inherit(in)
			in.close()
			return newControl(in.control, o, e, in.lock, &predecessor{client: in.link}, shutdown), nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("take over from the proxy on %s: %w", o.Socket, err)
		}
	}
	lock, err := takeLock(o.Socket + ".lock")
	if err != nil {
		return nil, err
	}
	last, err := o.recall()
	if err == nil && last != nil {
		err = e.apply(last)
	}
	if err != nil {
		// The agent will tell it again.
		o.Log.Warn("beginning without a configuration", "err", err)
	}
	l, err := listenControl(o.Socket)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return newControl(l, o, e, lock, nil, shutdown), nil
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
	if o.helloTimeout == 0 {
		o.helloTimeout = helloTimeout
	}
	if o.chance == nil {
		o.chance = randomly
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	files := raiseFileLimit()
	if o.MaxConns <= 0 {
		const reserve = 1024 // for listeners, namespaces and DNS
		o.MaxConns = max((files-reserve)/filesPerConn, 64)
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
