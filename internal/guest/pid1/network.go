//go:build linux

package pid1

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	sysNet        = "/sys/class/net"
	loopbackIndex = 1 // by construction: the kernel makes it first
)

// SetUpNetwork switches on the loopback interface and the VM's own.
func (b *Boot) SetUpNetwork() error {
	nl, err := openNetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	if err := nl.linkUp(loopbackIndex, 0); err != nil {
		return fmt.Errorf("switch on loopback: %w", err)
	}
	if b.config.Network == nil {
		return nil
	}
	plan, err := planNetwork(*b.config.Network)
	if err != nil {
		return err
	}
	var index int
	if err := waitFor(deviceTimeout, func() (bool, error) {
		index, err = findInterface(sysNet, b.config.Network.MAC)
		return err == nil, err
	}); err != nil {
		return err
	}
	return plan.apply(nl, index)
}

// networkPlan is a guest.Network with its addresses read.
type networkPlan struct {
	mtu       int
	addresses []netip.Prefix
	gateways  []netip.Addr
}

func planNetwork(n guest.Network) (networkPlan, error) {
	plan := networkPlan{mtu: n.MTU}
	for _, s := range n.Addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return plan, fmt.Errorf("address: %w", err)
		}
		plan.addresses = append(plan.addresses, p)
	}
	for _, s := range []string{n.Gateway4, n.Gateway6} {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return plan, fmt.Errorf("gateway: %w", err)
		}
		plan.gateways = append(plan.gateways, a)
	}
	return plan, nil
}

func (p networkPlan) apply(nl *netlink, index int) error {
	if err := nl.linkUp(index, p.mtu); err != nil {
		return fmt.Errorf("switch on the interface: %w", err)
	}
	for _, a := range p.addresses {
		if err := nl.addAddress(index, a); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	for _, g := range p.gateways {
		onLink := !slices.ContainsFunc(p.addresses, func(a netip.Prefix) bool { return a.Contains(g) })
		if err := nl.addDefaultRoute(index, g, onLink); err != nil {
			return fmt.Errorf("add default route by %s: %w", g, err)
		}
	}
	return nil
}

// findInterface returns the index of the interface with this MAC address, or of the only one besides loopback when mac
// is empty.
func findInterface(dir, mac string) (int, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		if e.Name() == "lo" {
			continue
		}
		address, err := os.ReadFile(filepath.Join(dir, e.Name(), "address"))
		if err != nil || (mac != "" && !strings.EqualFold(strings.TrimSpace(string(address)), mac)) {
			continue
		}
		index, err := os.ReadFile(filepath.Join(dir, e.Name(), "ifindex"))
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(index)))
	}
	return 0, fmt.Errorf("the VM has no network interface with the address %q", mac)
}
