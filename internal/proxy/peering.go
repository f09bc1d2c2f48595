package proxy

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

// PEER is the protocol of a Listener for the proxies of other hosts: mTLS, in which a host says which Route it wants.
const PEER = "peer"

// Bounds of what hosts say to each other.
const (
	MaxPeers        = 16384
	maxTargetLength = 255
)

// Peering is how this host shows other hosts that it is of the fleet, and how it knows them. A certificate names its
// host as HostOf says.
type Peering struct {
	// Certificate and Key are the paths of this host's, in PEM, and Authorities is that of the authorities that other
	// hosts' certificates come from. The files are read again when they have changed.
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	Authorities string `json:"authorities"`
}

func (p *Peering) validate() error {
	for _, path := range []string{p.Certificate, p.Key, p.Authorities} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("peering: %q is not an absolute path", path)
		}
	}
	return nil
}

// validatePeers checks what is about other hosts.
func (c *Config) validatePeers() error {
	if c.Peering != nil {
		return c.Peering.validate()
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Protocol == PEER {
			return fmt.Errorf("listener %q waits for other hosts, and there is no peering", l.ID)
		}
		for _, b := range l.everyBackend() {
			if b.Peer != "" {
				return fmt.Errorf("backend %q of listener %q is on another host, and there is no peering", b.ID, l.ID)
			}
		}
	}
	return nil
}

func (l *Listener) everyBackend() []Backend {
	all := l.Backends
	for _, r := range l.Routes {
		all = append(slices.Clip(all), r.Backends...)
	}
	return all
}

// validatePeer checks what says that a backend is on another host.
func (b *Backend) validatePeer() error {
	switch {
	case b.Peer == "" && b.Target == "":
		return nil
	case b.Peer == "" || len(b.Peer) > maxIDLength:
		return fmt.Errorf("peer has %d bytes, not 1 to %d", len(b.Peer), maxIDLength)
	case b.Netns != "":
		return errors.New("a backend of another host has no netns")
	}
	return validateTarget(b.Target)
}

// validateTarget checks the name of a route of PEER.
func validateTarget(name string) error {
	if name == "" || len(name) > maxTargetLength {
		return fmt.Errorf("target has %d bytes, not 1 to %d", len(name), maxTargetLength)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '*' {
			return fmt.Errorf("target %q has a byte that is no visible character, or a star", name)
		}
	}
	return nil
}

// validateHosts checks the hosts that a listener lets in.
func (l *Listener) validateHosts() error {
	switch {
	case l.Protocol != PEER && len(l.Peers) > 0:
		return errors.New("peers are for the protocol peer")
	case len(l.Peers) > MaxPeers:
		return fmt.Errorf("lets %d peers in, more than %d", len(l.Peers), MaxPeers)
	case l.Protocol != PEER:
		return nil
	case len(l.AcceptProxy) > 0:
		return errors.New("the PROXY protocol is not for peer: the proxy where a client came in sends its header")
	}
	for _, id := range l.Peers {
		if id == "" || len(id) > maxIDLength {
			return fmt.Errorf("a peer's name has %d bytes, not 1 to %d", len(id), maxIDLength)
		}
	}
	for i := range l.Routes {
		for _, b := range l.Routes[i].Backends {
			if b.Peer != "" {
				return fmt.Errorf("route %q leads to host %s: who comes from one host is not led on to another", l.Routes[i].ID, b.Peer)
			}
		}
	}
	return nil
}
