package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Attach makes the tap and the addresses of instance in env, which EnsureEnvironment must have made. The tap
// belongs to uid. Attaching again gives the same attachment, with the uid of the last time.
func (m *Manager) Attach(ctx context.Context, env, instance string, uid uint32) (*Attachment, error) {
	if err := checkInstance(instance); err != nil {
		return nil, err
	}
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	e, err := m.furnished(env)
	if err != nil {
		return nil, err
	}
	g, ok := e.state.Guests[instance]
	if !ok {
		if g, err = e.state.allocate(instance, uid); err != nil {
			return nil, fmt.Errorf("attach %s to %s: %w", instance, env, err)
		}
	}
	g.UID = uid
	if err := m.writeState(env, e.state); err != nil {
		if !ok {
			delete(e.state.Guests, instance)
		}
		return nil, err
	}
	if err := m.plug(e.ns, g); err != nil {
		err = fmt.Errorf("attach %s to %s: %w", instance, env, err)
		if !ok {
			err = errors.Join(err, m.detach(env, instance, e))
		}
		return nil, err
	}
	return m.attachment(env, instance, g), nil
}

// SetEgress says what outside of env instance may reach, from now on. A new attachment has EgressAll.
func (m *Manager) SetEgress(ctx context.Context, env, instance string, egress Egress) error {
	switch egress {
	case EgressAll, EgressInternal, EgressNone:
	default:
		return fmt.Errorf("set egress of %s in %s: %q is none of all, internal and none", instance, env, egress)
	}
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	e, err := m.furnished(env)
	if err != nil {
		return err
	}
	g, ok := e.state.Guests[instance]
	if !ok {
		return fmt.Errorf("set egress of %s in %s: %w", instance, env, ErrNotFound)
	}
	was := g.Egress
	g.Egress = egress
	if err := m.writeState(env, e.state); err != nil {
		g.Egress = was
		return err
	}
	if err := setEgress(e.ns, g, g.goesOut()); err != nil {
		return fmt.Errorf("set egress of %s in %s: %w", instance, env, err)
	}
	return nil
}

// Detach removes the tap of instance; its address is not given out again soon. Detaching what is not there
// succeeds.
func (m *Manager) Detach(ctx context.Context, env, instance string) error {
	if err := m.begin(ctx); err != nil {
		return err
	}
	defer m.mu.Unlock()
	e, ok := m.envs[env]
	if !ok || e.state.Guests[instance] == nil {
		return nil
	}
	if e.ns == nil {
		// Adopted and not looked at yet: the namespace may even be gone, and then this makes it anew, empty.
		if err := m.ensure(env); err != nil {
			return fmt.Errorf("detach %s from %s: %w", instance, env, err)
		}
	}
	return m.detach(env, instance, e)
}

func (m *Manager) detach(env, instance string, e *environment) error {
	g := e.state.Guests[instance]
	if g == nil {
		return nil
	}
	if err := m.unplug(e.ns, g); err != nil {
		return fmt.Errorf("detach %s from %s: %w", instance, env, err)
	}
	delete(e.state.Guests, instance)
	return m.writeState(env, e.state)
}

// OpenTap opens the tap of instance inside its namespace, for a VMM that is passed the descriptor. A tap has
// one opener at a time: a second one gets EBUSY. The descriptor frames packets with a virtio-net header.
func (m *Manager) OpenTap(ctx context.Context, env, instance string) (*os.File, error) {
	if err := m.begin(ctx); err != nil {
		return nil, err
	}
	defer m.mu.Unlock()
	e, err := m.furnished(env)
	if err != nil {
		return nil, err
	}
	g, ok := e.state.Guests[instance]
	if !ok {
		return nil, fmt.Errorf("open tap of %s in %s: %w", instance, env, ErrNotFound)
	}
	var f *os.File
	err = e.ns.do(func() (err error) {
		f, err = openTap(g.tap())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open tap of %s in %s: %w", instance, env, err)
	}
	return f, nil
}

// plug makes everything that g stands for.
func (m *Manager) plug(ns *namespace, g *guestState) error {
	if err := allowGuest(ns, g); err != nil {
		return err
	}
	if err := ns.do(func() error { return ensureTap(g.tap(), g.UID) }); err != nil {
		return err
	}
	tap, err := ns.links.LinkByName(g.tap())
	if err != nil {
		return fmt.Errorf("find tap: %w", err)
	}
	br, err := ns.links.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	if err := ns.links.LinkSetMTU(tap, m.mtu); err != nil {
		return fmt.Errorf("set MTU of tap: %w", err)
	}
	if err := ns.links.LinkSetMaster(tap, br); err != nil {
		return fmt.Errorf("put tap on bridge: %w", err)
	}
	// The bridge knows where each guest is and never learns it from frames, which a guest could forge: some,
	// such as LLDP, pass no filter before they teach.
	if err := errors.Join(ns.links.LinkSetLearning(tap, false), ns.links.LinkSetFlood(tap, false)); err != nil {
		return fmt.Errorf("stop the bridge from learning: %w", err)
	}
	// NUD_PERMANENT would mean an address of the bridge's own.
	fdb := &netlink.Neigh{
		Family: unix.AF_BRIDGE, LinkIndex: tap.Attrs().Index, HardwareAddr: g.mac(),
		State: unix.NUD_NOARP, Flags: unix.NTF_MASTER,
	}
	if err := ns.links.NeighSet(fdb); err != nil {
		return fmt.Errorf("tell the bridge where the guest is: %w", err)
	}
	for _, n := range m.neighbours(g, br.Attrs().Index) {
		if err := ns.links.NeighSet(n); err != nil {
			return fmt.Errorf("make neighbour %v permanent: %w", n.IP, err)
		}
	}
	if err := ns.links.LinkSetUp(tap); err != nil {
		return fmt.Errorf("bring tap up: %w", err)
	}
	return nil
}

// unplug undoes plug, as far as that got.
func (m *Manager) unplug(ns *namespace, g *guestState) error {
	tap, err := ns.links.LinkByName(g.tap())
	if err == nil {
		err = ns.links.LinkDel(tap)
	}
	if err != nil && !isNoLink(err) {
		return fmt.Errorf("remove tap: %w", err)
	}
	br, err := ns.links.LinkByName(bridgeName)
	if err != nil && !isNoLink(err) {
		return fmt.Errorf("find bridge: %w", err)
	}
	if err == nil {
		for _, n := range m.neighbours(g, br.Attrs().Index) {
			if err := ns.links.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("forget neighbour %v: %w", n.IP, err)
			}
		}
	}
	return forbidGuest(ns, g)
}

// neighbours are permanent entries for the guest: a connection to one that is just booting does not wait for
// a second ARP request, and nobody can claim the address.
func (m *Manager) neighbours(g *guestState, bridge int) []*netlink.Neigh {
	addrs := []netip.Addr{g.ipv4()}
	if m.ipv6 {
		addrs = append(addrs, g.ipv6())
	}
	out := make([]*netlink.Neigh, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, &netlink.Neigh{
			LinkIndex: bridge, IP: a.AsSlice(), HardwareAddr: g.mac(), State: unix.NUD_PERMANENT,
		})
	}
	return out
}

func isNoLink(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV)
}

// ensureTap makes a tap that outlives this process and belongs to uid. A tap that somebody has open stays as
// it is. The caller is in the namespace.
func ensureTap(name string, uid uint32) error {
	f, err := openTap(name)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	fd := int(f.Fd())
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(uid)); err != nil {
		return fmt.Errorf("give tap to uid %d: %w", uid, err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("make tap persistent: %w", err)
	}
	return nil
}

// openTap opens the tap with that name, making it when it is not there. The caller is in the namespace.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open tap %s: %w", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "/dev/net/tun"), nil
}
