package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
)

// Bounds of one configuration. They are far above what a host carries and keep a mistake from eating it.
const (
	MaxConfigBytes         = 32 << 20
	MaxListeners           = 16384
	MaxBackendsPerListener = 4096
	MaxDNS                 = 4096
	MaxRecords             = 65536
	maxIDLength            = 255
	maxAddressesPerRecord  = 64
)

// TCP is the protocol of a Listener.
const TCP = "tcp"

// Zone is the top-level domain that the DNS servers answer for.
const Zone = "internal"

// A BackendState says what a backend is used for.
type BackendState string

// The states.
const (
	// Active backends get new connections.
	Active BackendState = "active"
	// Draining backends keep those that they have.
	Draining BackendState = "draining"
)

// A Config is everything that the proxy shall do. It is always sent whole.
type Config struct {
	// Revision orders configurations: one older than that in force is refused, the same again is accepted.
	// Zero lets the proxy number it itself.
	Revision  uint64     `json:"revision"`
	Listeners []Listener `json:"listeners,omitempty"`
	DNS       []DNS      `json:"dns,omitempty"`
}

// A Listener accepts connections at one address and spreads them over its backends. Its socket is known by
// namespace and address, so a listener whose ID or backends change keeps it.
type Listener struct {
	ID string `json:"id"`
	// Netns is the path of the namespace to listen in; empty means the proxy's own.
	Netns   string         `json:"netns,omitempty"`
	Address netip.AddrPort `json:"address"`
	// Protocol is TCP; empty means TCP too.
	Protocol string    `json:"protocol,omitempty"`
	Backends []Backend `json:"backends,omitempty"`
	// MaxConns bounds the open connections; further ones wait in the kernel's queue. Zero means the
	// proxy's default.
	MaxConns int `json:"max_conns,omitempty"`
}

// A Backend is where connections lead. Its connections live until they end or until no Listener at the same
// address names the backend any more (same ID, namespace and address); then they are closed.
type Backend struct {
	ID      string         `json:"id"`
	Netns   string         `json:"netns,omitempty"`
	Address netip.AddrPort `json:"address"`
	State   BackendState   `json:"state"`
}

// A DNS is one server, answering over UDP and TCP on every address.
type DNS struct {
	Netns     string           `json:"netns,omitempty"`
	Addresses []netip.AddrPort `json:"addresses"`
	// Records maps names below Zone, lower case and without the final dot, to their addresses. Other names
	// below Zone do not exist.
	Records map[string][]netip.Addr `json:"records,omitempty"`
	// Reverse lists networks whose reverse names are answered here, from Records, and never forwarded.
	Reverse []netip.Prefix `json:"reverse,omitempty"`
	// Forward sends other questions to the host's resolvers; otherwise they are refused.
	Forward bool `json:"forward,omitempty"`
}

// ParseConfig reads a configuration and checks it. Unknown fields are ignored, so that an agent may be newer
// than the proxy.
func ParseConfig(data []byte) (*Config, error) {
	if len(data) > MaxConfigBytes {
		return nil, fmt.Errorf("parse proxy configuration: %d bytes is more than %d", len(data), MaxConfigBytes)
	}
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("parse proxy configuration: %w", err)
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Validate reports everything that is wrong with c.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Listeners) > MaxListeners {
		return fmt.Errorf("proxy configuration has %d listeners, more than %d", len(c.Listeners), MaxListeners)
	}
	if len(c.DNS) > MaxDNS {
		return fmt.Errorf("proxy configuration has %d DNS servers, more than %d", len(c.DNS), MaxDNS)
	}
	ids, sockets := map[string]bool{}, map[socketKey]string{}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if err := l.validate(); err != nil {
			errs = append(errs, fmt.Errorf("listener %d %q: %w", i, l.ID, err))
			continue
		}
		if ids[l.ID] {
			errs = append(errs, fmt.Errorf("listener %d %q: id is used twice", i, l.ID))
		}
		ids[l.ID] = true
		if other, taken := sockets[l.key()]; taken {
			errs = append(errs, fmt.Errorf("listener %d %q: %v is also the address of %q", i, l.ID, l.Address, other))
		}
		sockets[l.key()] = l.ID
	}
	seen := map[socketKey]bool{}
	for i := range c.DNS {
		d := &c.DNS[i]
		err := d.validate()
		for _, a := range d.Addresses {
			key := socketKey{d.Netns, a}
			if seen[key] {
				err = errors.Join(err, fmt.Errorf("address %v is used twice", a))
			}
			seen[key] = true
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("dns %d: %w", i, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("proxy configuration: %w", err)
	}
	return nil
}

// socketKey is what a socket is known by.
type socketKey struct {
	netns   string
	address netip.AddrPort
}

func (l *Listener) key() socketKey { return socketKey{l.Netns, l.Address} }

func (l *Listener) validate() error {
	switch {
	case l.Protocol != "" && l.Protocol != TCP:
		return fmt.Errorf("protocol %q is not %q", l.Protocol, TCP)
	case l.MaxConns < 0:
		return fmt.Errorf("max_conns %d is negative", l.MaxConns)
	case len(l.Backends) > MaxBackendsPerListener:
		return fmt.Errorf("has %d backends, more than %d", len(l.Backends), MaxBackendsPerListener)
	}
	if err := validatePlace(l.ID, l.Netns, l.Address); err != nil {
		return err
	}
	ids := make(map[string]bool, len(l.Backends))
	for i := range l.Backends {
		b := &l.Backends[i]
		err := validatePlace(b.ID, b.Netns, b.Address)
		switch {
		case err != nil:
		case ids[b.ID]:
			err = errors.New("id is used twice")
		case b.Address.Addr().IsUnspecified():
			err = fmt.Errorf("address %v cannot be dialed", b.Address)
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
