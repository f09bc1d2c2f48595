package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// socketKey is what a socket is known by.
type socketKey struct {
	netns     string
	address   netip.AddrPort
	transport string // TCP or UDP
}

func (l *Listener) key() socketKey {
	if l.Protocol == UDP {
		return socketKey{l.Netns, l.Address, UDP}
	}
	return socketKey{l.Netns, l.Address, TCP}
}

func (l *Listener) validate() error {
	if err := validatePlace(l.ID, l.Netns, l.Address); err != nil {
		return err
	}
	switch l.Protocol {
	case "", TCP, UDP, SNI, PEER:
	default:
		return fmt.Errorf("protocol %q is none of %q, %q, %q and %q", l.Protocol, TCP, UDP, SNI, PEER)
	}
	named := l.Protocol == SNI || l.Protocol == PEER
	switch {
	case l.MaxConns < 0:
		return fmt.Errorf("max_conns %d is negative", l.MaxConns)
	case l.SlowStartMS < 0:
		return fmt.Errorf("slow_start_ms %d is negative", l.SlowStartMS)
	case l.IdleTimeoutMS < 0:
		return fmt.Errorf("idle_timeout_ms %d is negative", l.IdleTimeoutMS)
	case named && len(l.Backends) > 0:
		return fmt.Errorf("backends of %s belong to its routes", l.Protocol)
	case named && l.ProxyProtocol != "":
		return fmt.Errorf("proxy_protocol of %s belongs to its routes", l.Protocol)
	case !named && len(l.Routes) > 0:
		return errors.New("routes are for sni and peer")
	case l.Protocol == UDP && (l.ProxyProtocol != "" || len(l.AcceptProxy) > 0):
		return errors.New("the PROXY protocol is not for udp")
	}
	for _, p := range l.AcceptProxy {
		if !p.IsValid() || p.Addr().Is4In6() {
			return fmt.Errorf("accept_proxy has the bad network %q", p)
		}
	}
	if err := l.validateHosts(); err != nil {
		return err
	}
	if err := validateTargets(l.Backends, l.ProxyProtocol); err != nil {
		return err
	}
	return l.validateRoutes()
}

func (l *Listener) validateRoutes() error {
	if len(l.Routes) > MaxRoutesPerListener {
		return fmt.Errorf("has %d routes, more than %d", len(l.Routes), MaxRoutesPerListener)
	}
	ids, names := map[string]bool{}, map[string]string{}
	for i := range l.Routes {
		r := &l.Routes[i]
		err := validateTargets(r.Backends, r.ProxyProtocol)
		switch {
		case r.ID == "" || len(r.ID) > maxIDLength:
			err = fmt.Errorf("id has %d bytes, not 1 to %d", len(r.ID), maxIDLength)
		case ids[r.ID]:
			err = errors.New("id is used twice")
		case len(r.Names) == 0:
			err = errors.New("has no name")
		case r.Protocol != "" && (r.Protocol != UDP || l.Protocol != PEER):
			err = fmt.Errorf("protocol %q: only routes of peer have one, %q", r.Protocol, UDP)
		case r.Protocol == UDP && r.ProxyProtocol != "":
			err = errors.New("the PROXY protocol is not for udp")
		}
		ids[r.ID] = true
		for _, name := range r.Names {
			plain := strings.TrimPrefix(name, "*.")
			switch {
			case l.Protocol == PEER:
				err = errors.Join(err, validateTarget(name))
			case !isHostName(plain) || plain != strings.ToLower(plain):
				err = errors.Join(err, fmt.Errorf("%q is not a host name in lower case", name))
			}
			if other, taken := names[name]; taken {
				err = errors.Join(err, fmt.Errorf("name %q is also that of route %q", name, other))
			}
			names[name] = r.ID
		}
		if err != nil {
			return fmt.Errorf("route %d %q: %w", i, r.ID, err)
		}
	}
	if len(names) > MaxNamesPerListener {
		return fmt.Errorf("has %d names, more than %d", len(names), MaxNamesPerListener)
	}
	return nil
}

func validateTargets(backends []Backend, proxyProtocol string) error {
	if proxyProtocol != "" && proxyProtocol != ProxyV2 {
		return fmt.Errorf("proxy_protocol %q is not %q", proxyProtocol, ProxyV2)
	}
	if len(backends) > MaxBackendsPerListener {
		return fmt.Errorf("has %d backends, more than %d", len(backends), MaxBackendsPerListener)
	}
	ids := make(map[string]bool, len(backends))
	for i := range backends {
		b := &backends[i]
		err := validatePlace(b.ID, b.Netns, b.Address)
		switch {
		case err != nil:
		case ids[b.ID]:
			err = errors.New("id is used twice")
		case b.Address.Addr().IsUnspecified():
			err = fmt.Errorf("address %v cannot be dialed", b.Address)
		case b.validatePeer() != nil:
			err = b.validatePeer()
		case b.State != Active && b.State != Draining:
			err = fmt.Errorf("state %q is neither %q nor %q", b.State, Active, Draining)
		}
		if err != nil {
			return fmt.Errorf("backend %d %q: %w", i, b.ID, err)
		}
		ids[b.ID] = true
	}
	return nil
}

// isHostName says whether s could be the name of a server in TLS: labels of letters, digits, hyphens and
// underscores, and no address.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return false
			}
		}
	}
	_, err := netip.ParseAddr(s)
	return err != nil
}

func (d *DNS) validate() error {
	if len(d.Addresses) == 0 {
		return errors.New("has no address")
	}
	if len(d.Records) > MaxRecords {
		return fmt.Errorf("has %d records, more than %d", len(d.Records), MaxRecords)
	}
	for _, a := range d.Addresses {
		if err := validatePlace("dns", d.Netns, a); err != nil {
			return err
		}
	}
	for name, addrs := range d.Records {
		if name != strings.ToLower(name) || !strings.HasSuffix(name, "."+Zone) || len(name) > 253 {
			return fmt.Errorf("record %q is not a lower-case name below %q", name, Zone)
		}
		if len(addrs) > maxAddressesPerRecord {
			return fmt.Errorf("record %q has %d addresses, more than %d", name, len(addrs), maxAddressesPerRecord)
		}
		for _, a := range addrs {
			if !a.IsValid() || a.Zone() != "" {
				return fmt.Errorf("record %q has the bad address %q", name, a)
			}
		}
	}
	if len(d.ForwardTo) > maxForwardTo {
		return fmt.Errorf("forwards to %d clients, more than %d", len(d.ForwardTo), maxForwardTo)
	}
	for _, a := range d.ForwardTo {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("forwards to the bad address %q", a)
		}
	}
	for _, p := range d.Reverse {
		if !p.IsValid() {
			return errors.New("reverse has a bad network")
		}
	}
	return nil
}

func validatePlace(id, netns string, address netip.AddrPort) error {
	switch {
	case id == "" || len(id) > maxIDLength:
		return fmt.Errorf("id has %d bytes, not 1 to %d", len(id), maxIDLength)
	case netns != "" && !filepath.IsAbs(netns):
		return fmt.Errorf("netns %q is not an absolute path", netns)
	case !address.IsValid():
		return errors.New("address is missing")
	case address.Addr().Is4In6():
		return fmt.Errorf("address %v must be written as IPv4", address)
	case address.Addr().Zone() != "":
		return fmt.Errorf("address %v has a zone", address)
	case address.Port() == 0:
		return fmt.Errorf("address %v has no port", address)
	}
	return nil
}
