package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// A Manager makes and removes the networks of one host. Its methods may be called concurrently; they take
// turns. Each is idempotent: done again after an error or a crash, it finishes what was begun.
type Manager struct {
	runDir, prefix string
	uplink         Uplink
	log            *slog.Logger
	lock           *durable.DirLock
	host           *namespace
	// outside is where uplinks lead; nil for UplinkNone, and the same as host for UplinkHost.
	outside *namespace
	mtu     int
	ipv6    bool

	mu sync.Mutex
	// Guarded by mu.
	closed bool
	// outsideReady means that the filters at the uplinks' outer ends are in place.
	outsideReady bool
	envs         map[string]*environment
}

// An environment is one network as far as this process knows it. Guarded by Manager.mu.
type environment struct {
	state *envState
	// ns is open from the first EnsureEnvironment on, and nil before.
	ns *namespace
}

// New takes RunDir over, together with the environments that a Manager before left in it: they are there to
// be used again or removed. Half-made ones are repaired by EnsureEnvironment; uplinks that belong to no
// environment are removed here.
func New(o Options) (*Manager, error) {
	m, err := open(o)
	if err != nil {
		return nil, fmt.Errorf("open network manager: %w", err)
	}
	if err := m.adopt(); err != nil {
		return nil, errors.Join(fmt.Errorf("open network manager: %w", err), m.Close())
	}
	return m, nil
}

func open(o Options) (_ *Manager, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("making network namespaces needs root")
	}
	m := &Manager{
		runDir: o.RunDir, prefix: o.Prefix, uplink: o.Uplink, log: o.Log, envs: map[string]*environment{},
	}
	if m.prefix == "" {
		m.prefix = DefaultPrefix
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if !m.uplink.Base.IsValid() {
		m.uplink.Base = DefaultUplinkBase
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
		}
	}()
	for _, dir := range []string{m.runDir, filepath.Join(m.runDir, "netns"), filepath.Join(m.runDir, "environments")} {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if m.lock, err = durable.Lock(m.runDir); err != nil {
		return nil, err
	}
	if m.host, err = openCallers(o.HostNetns); err != nil {
		return nil, err
	}
	switch m.uplink.Mode {
	case UplinkHost:
		m.outside = m.host
	case UplinkNetns:
		if m.outside, err = openNamespace(m.uplink.Netns); err != nil {
			return nil, fmt.Errorf("uplink: %w", err)
		}
	case UplinkNone:
	}
	if m.mtu, err = m.uplinkMTU(); err != nil {
		return nil, err
	}
	_, noIPv6 := os.Stat("/proc/sys/net/ipv6")
	m.ipv6 = noIPv6 == nil
	return m, nil
}

func (m *Manager) check() error {
	switch {
	case !filepath.IsAbs(m.runDir):
		return fmt.Errorf("run directory %q is not an absolute path", m.runDir)
	case !prefixName.MatchString(m.prefix):
		return fmt.Errorf("prefix %q is not a letter and up to five more of a-z and 0-9", m.prefix)
	case !m.uplink.Base.Addr().Is4() || m.uplink.Base.Bits() > 30 || m.uplink.Base.Bits() < 10:
		return fmt.Errorf("uplink base %v is not an IPv4 network of /10 to /30", m.uplink.Base)
	}
	for _, inside := range []netip.Prefix{Subnet4, Virtual4} {
		if m.uplink.Base.Overlaps(inside) {
			return fmt.Errorf("uplink base %v overlaps %v, which is inside every environment", m.uplink.Base, inside)
		}
	}
	m.uplink.Base = m.uplink.Base.Masked()
	switch m.uplink.Mode {
	case UplinkNone, UplinkHost, UplinkNetns:
		return nil
	default:
		return fmt.Errorf("uplink mode %q is none of %q, %q and %q", m.uplink.Mode, UplinkNone, UplinkHost, UplinkNetns)
	}
}

// adopt learns what a manager before left in RunDir.
func (m *Manager) adopt() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := map[string]bool{}
	for dir, suffix := range map[string]string{"netns": "", "environments": ".json"} {
		entries, err := os.ReadDir(filepath.Join(m.runDir, dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			name, ok := strings.CutSuffix(e.Name(), suffix)
			if ok && checkEnvironment(name) == nil {
				names[name] = true
				continue
			}
			// What else is here is the temporary file of a write that was interrupted.
			if err := os.Remove(filepath.Join(m.runDir, dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for name := range names {
		s, err := m.readState(name)
		if err == nil {
			m.envs[name] = &environment{state: s}
			continue
		}
		m.log.Warn("removing the network of an environment whose state cannot be read", "environment", name, "err", err)
		if err := m.dismantle(name, &environment{}); err != nil {
			return err
		}
	}
	return m.removeStrayUplinks()
}

// Close lets go of RunDir and leaves everything in place, for the next Manager to adopt.
func (m *Manager) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	for _, e := range m.envs {
		if e.ns != nil {
			_ = e.ns.close()
			e.ns = nil
		}
	}
	if err := m.release(); err != nil {
		return fmt.Errorf("close network manager: %w", err)
	}
	return nil
}

// release gives back what open took.
func (m *Manager) release() error {
	var errs []error
	if m.outside != nil && m.outside != m.host {
		errs = append(errs, m.outside.close())
	}
	if m.host != nil {
		errs = append(errs, m.host.close())
	}
	if m.lock != nil {
		errs = append(errs, m.lock.Unlock())
	}
	return errors.Join(errs...)
}

// CleanUp removes everything that this Manager, or one before it in the same RunDir, has made, and gives the
// host its settings back. It goes on after an error and reports all of them.
func (m *Manager) CleanUp(ctx context.Context) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	var errs []error
	for name, e := range m.envs {
		if err := m.dismantle(name, e); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(m.envs, name)
	}
	errs = append(errs, m.removeStrayUplinks(), m.closeOutside())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up networks: %w", err)
	}
	return nil
}

// begin takes mu for an operation, unless that shall not begin any more.
func (m *Manager) begin(ctx context.Context) error {
	m.mu.Lock()
	err := context.Cause(ctx)
	if m.closed {
		err = ErrClosed
	}
	if err != nil {
		m.mu.Unlock()
	}
	return err
}

// Environments lists the environments that exist, sorted.
func (m *Manager) Environments() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.envs))
}

// Attachments lists the guests of env, sorted by instance; ErrNotFound when there is no such environment.
func (m *Manager) Attachments(env string) ([]Attachment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.envs[env]
	if !ok {
		return nil, fmt.Errorf("environment %s: %w", env, ErrNotFound)
	}
	return sortedAttachments(m, env, e.state), nil
}
