package network

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Dial connects over TCP to address as seen inside env. The connection stays in the environment wherever it
// is used afterwards. The error wraps ErrNotFound when env does not exist.
func (m *Manager) Dial(ctx context.Context, env string, address netip.AddrPort) (net.Conn, error) {
	if err := checkEnvironment(env); err != nil {
		return nil, err
	}
	ns, err := os.Open(m.netnsPath(env))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("dial in environment %s: %w", env, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("dial in environment %s: %w", env, err)
	}
	defer func() { _ = ns.Close() }()
	var conn net.Conn
	err = onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter namespace: %w", err)
		}
		// With an address there is no name to look up and nothing to race, so that the socket is made by
		// this goroutine, on this thread.
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", address.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial in environment %s: %w", env, err)
	}
	return conn, nil
}
