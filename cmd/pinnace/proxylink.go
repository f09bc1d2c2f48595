package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/proxy"
)

// startProxy connects to the host's proxy, starting it when none runs, and a newer one when one of another
// version does. It tells whether there was none before. The function that it returns ends the proxy.
func (r *agentRole) startProxy(ctx context.Context) (link *proxyLink, end func() error, fresh bool, err error) {
	link = &proxyLink{socket: proxySocket(r.dirs.run), start: r.spawnProxy, log: r.log}
	end = func() error { return link.shutdown(ctx) }
	build, err := proxyBuild(ctx, link.socket)
	if err == nil && build == version {
		r.log.Info("found the proxy of an earlier run; using it")
		return link, end, false, nil
	}
	fresh = err != nil
	if !fresh {
		r.log.Info("found a proxy of another version; upgrading it", "from", build, "to", version)
	}
	if link.process, err = r.spawnProxy(ctx); err != nil {
		if p := link.process; fresh && p != nil {
			// It has no connections that it would have to be left to, and the caller will not end it.
			_ = p.cmd.Process.Kill() // it may have ended
		}
		return nil, nil, false, err
	}
	return link, end, fresh, nil
}

// A proxyProcess is a proxy that this agent has started.
type proxyProcess struct {
	cmd    *exec.Cmd
	exited chan error
}

// spawnProxy starts a proxy, which takes over from one that runs, and returns when it answers.
func (r *agentRole) spawnProxy(ctx context.Context) (*proxyProcess, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	// The proxy must not die of the Ctrl-C that is meant for the agent, which stops it in order.
	cmd := exec.Command(self, "proxy", "--take-over", "--run-dir", r.dirs.run, "--log-level", r.logLevel.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the proxy: %w", err)
	}
	p := &proxyProcess{cmd: cmd, exited: make(chan error, 1)}
	go func() { p.exited <- cmd.Wait() }()
	return p, awaitProxy(ctx, proxySocket(r.dirs.run), cmd.Process.Pid, p.exited)
}

// proxyBuild is the version of the proxy that listens on socket.
func proxyBuild(ctx context.Context, socket string) (string, error) {
	status, err := proxyStatus(ctx, socket)
	if err != nil {
		return "", err
	}
	return status.Build, nil
}

func proxyStatus(ctx context.Context, socket string) (*proxy.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client, err := proxy.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }()
	return client.Status(ctx)
}

// awaitProxy waits until it is the proxy just started that listens on socket.
func awaitProxy(ctx context.Context, socket string, pid int, exited <-chan error) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		status, err := proxyStatus(ctx, socket)
		if err == nil && status.PID == pid {
			return nil
		}
		select {
		case exitErr := <-exited:
			return fmt.Errorf("the proxy ended at once: %w", exitErr)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return errors.Join(errors.New("the proxy just started does not answer"), err)
		}
	}
}

// restartProxyAfter is the least pause between two starts of a proxy that has died.
const restartProxyAfter = time.Second

// proxyLink is the agent's connection to the proxy, made again when it was lost: a newer proxy may have taken
// over, or it has died, and then another one is started, which begins with the last configuration.
type proxyLink struct {
	socket string
	start  func(ctx context.Context) (*proxyProcess, error)
	log    *slog.Logger

	mu sync.Mutex
	// Guarded by mu.
	client  *proxy.Client // nil when the connection was lost
	process *proxyProcess // nil when an earlier agent has started it
	started time.Time     // when one that had died was last replaced
	ended   bool
}

// with calls f with a connection. One that failed is not used again, and if it was an old one, a new one gets
// a chance. All requests can be made twice.
func (l *proxyLink) with(ctx context.Context, f func(*proxy.Client) (*proxy.Status, error)) (*proxy.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		fresh := l.client == nil
		if fresh {
			client, err := l.dial(ctx)
			if err != nil {
				return nil, err
			}
			l.client = client
		}
		status, err := f(l.client)
		if err == nil || errors.Is(err, proxy.ErrStale) {
			return status, err
		}
		_ = l.client.Close() // it is of no use any more
		l.client = nil
		if fresh || ctx.Err() != nil {
			return status, err
		}
	}
}

// dial connects to the proxy, and to another one when it has died. The caller holds mu.
func (l *proxyLink) dial(ctx context.Context) (*proxy.Client, error) {
	client, err := proxy.Dial(ctx, l.socket)
	died := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
	if !died || l.ended || time.Since(l.started) < restartProxyAfter {
		return client, err
	}
	l.started = time.Now()
	l.log.Error("the proxy has died, and its connections with it; starting another one", "err", err)
	process, err := l.start(ctx)
	if err != nil {
		return nil, err
	}
	l.process = process
	return proxy.Dial(ctx, l.socket)
}

// Apply implements agent.Proxy.
func (l *proxyLink) Apply(ctx context.Context, c proxy.Config) (*proxy.Status, error) {
	return l.with(ctx, func(p *proxy.Client) (*proxy.Status, error) { return p.Apply(ctx, c) })
}

// Status implements agent.Proxy.
func (l *proxyLink) Status(ctx context.Context) (*proxy.Status, error) {
	return l.with(ctx, func(p *proxy.Client) (*proxy.Status, error) { return p.Status(ctx) })
}

// shutdown ends the proxy, also when ctx is done.
func (l *proxyLink) shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
	_, err := l.with(ctx, func(p *proxy.Client) (*proxy.Status, error) { return nil, p.Shutdown(ctx) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.process == nil {
		return err
	}
	select {
	case exitErr := <-l.process.exited:
		return errors.Join(err, exitErr)
	case <-time.After(5 * time.Second):
		return errors.Join(err, l.process.cmd.Process.Kill(), <-l.process.exited)
	}
}
