package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Probe tells what keeps this host from having networks for guests: it makes an environment with a guest in it, uplink
// and filters included, and removes it again. A namespace that is gone afterwards plays the host, so that nothing of the
// host's own network changes. dir is an empty directory for what that takes.
func Probe(ctx context.Context, dir string) (err error) {
	host := filepath.Join(dir, "host")
	if err := createNamespace(host); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeNamespace(host)) }()
	m, err := New(Options{RunDir: filepath.Join(dir, "run"), Prefix: "pinchk", HostNetns: host, Uplink: Uplink{Mode: UplinkHost}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.CleanUp(context.WithoutCancel(ctx)), m.Close()) }()
	const env, guest = "probe", "probe-1"
	if _, err := m.EnsureEnvironment(ctx, env); err != nil {
		return fmt.Errorf("make a network for an environment: %w", err)
	}
	if _, err := m.Attach(ctx, env, guest, uint32(os.Geteuid())); err != nil {
		return fmt.Errorf("make a tap device for a guest: %w", err)
	}
	if err := m.Detach(ctx, env, guest); err != nil {
		return err
	}
	return m.RemoveEnvironment(ctx, env)
}
