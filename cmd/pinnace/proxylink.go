package main

import (
	"context"
	"errors"
	"fmt"
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
	socket := proxySocket(r.dirs.run)
	build, err := proxyBuild(ctx, socket)
	if err == nil && build == version {
		r.log.Info("found the proxy of an earlier run; using it")
		link := &proxyLink{socket: socket}
		return link, func() error { return link.shutdown(ctx) }, false, nil
	}
	fresh = err != nil
	if !fresh {
		r.log.Info("found a proxy of another version; upgrading it", "from", build, "to", version)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, false, err
	}
	// The proxy must not die of the Ctrl-C that is meant for the agent, which stops it in order.
	cmd := exec.Command(self, "proxy", "--take-over", "--run-dir", r.dirs.run, "--log-level", r.logLevel.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, nil, false, fmt.Errorf("start the proxy: %w", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if err := awaitProxy(ctx, socket, cmd.Process.Pid, exited); err != nil {
		return nil, nil, false, err
	}
	link = &proxyLink{socket: socket}
	return link, func() error {
		shutErr := link.shutdown(ctx)
		select {
		case err := <-exited:
			return errors.Join(shutErr, err)
		case <-time.After(5 * time.Second):
			return errors.Join(shutErr, cmd.Process.Kill(), <-exited)
		}
	}, fresh, nil
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

// proxyLink is the agent's connection to the proxy, made again when it was lost: the proxy may have been
// started anew, and the agent gives it the whole configuration from time to time.
type proxyLink struct {
	socket string

	mu     sync.Mutex
	client *proxy.Client // guarded by mu; nil when the connection was lost
}

// with calls f with a connection. One that failed is not used again, and if it was an old one, a new one gets
// a chance: a newer proxy may have taken over meanwhile. All requests can be made twice.
func (l *proxyLink) with(ctx context.Context, f func(*proxy.Client) (*proxy.Status, error)) (*proxy.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		fresh := l.client == nil
		if fresh {
			client, err := proxy.Dial(ctx, l.socket)
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
	_, err := l.with(ctx, func(p *proxy.Client) (*proxy.Status, error) { return nil, p.Shutdown(ctx) })
	return err
}
