package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
)

// Bounds of one configuration. They are far above what a host carries and keep a mistake from eating it.
const (
	MaxConfigBytes         = 32 << 20
	MaxListeners           = 16384
	MaxBackendsPerListener = 4096 // for sni: of each route
	MaxRoutesPerListener   = 4096
	MaxNamesPerListener    = 16384
	MaxDNS                 = 4096
	MaxRecords             = 65536
	maxIDLength            = 255
	maxAddressesPerRecord  = 64
	maxForwardTo           = 2 * 65536 // two for each guest that an environment can have
)

// The protocols of a Listener.
const (
	TCP = "tcp"
	UDP = "udp"
	// SNI is TLS over TCP, passed through as it is to the backends of the server name that the client asks for.
	SNI = "sni"
)

// ProxyV2 is the PROXY protocol, version 2.
const ProxyV2 = "v2"

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
	// Peering is needed where something leads to other hosts, or comes from them.
	Peering *Peering `json:"peering,omitempty"`
}

// A Listener accepts connections at one address and spreads them over its backends. Its socket is known by
// namespace, address and transport (TCP or UDP), so a listener whose ID or backends change keeps it.
type Listener struct {
	ID string `json:"id"`
	// Netns is the path of the namespace to listen in; empty means the proxy's own.
	Netns   string         `json:"netns,omitempty"`
	Address netip.AddrPort `json:"address"`
	// Protocol is TCP, UDP, SNI or PEER; empty means TCP.
	Protocol string `json:"protocol,omitempty"`
	// Backends are those of TCP and UDP, Routes those of SNI and PEER.
	Backends []Backend `json:"backends,omitempty"`
	Routes   []Route   `json:"routes,omitempty"`
	// ProxyProtocol is ProxyV2 when connections to backends begin with its header, which tells them the
	// client's address. Routes have their own.
	ProxyProtocol string `json:"proxy_protocol,omitempty"`
	// AcceptProxy lists load balancers that begin their connections with the header of PROXY protocol v2:
	// from there it has to come, from elsewhere it is not looked for.
	AcceptProxy []netip.Prefix `json:"accept_proxy,omitempty"`
	// MaxConns bounds the open connections, of which further ones wait in the kernel's queue, or the clients
	// of UDP, of which further ones are dropped. Zero means the proxy's default.
	MaxConns int `json:"max_conns,omitempty"`
	// SlowStartMS is for how long a backend that becomes active beside others gets fewer connections than its
	// share, at first a tenth. Zero means that it gets its share at once.
	SlowStartMS int `json:"slow_start_ms,omitempty"`
	// IdleTimeoutMS is when a client of UDP that has been silent, and was not spoken to, is forgotten. Zero
	// means the proxy's default.
	IdleTimeoutMS int `json:"idle_timeout_ms,omitempty"`
	// Peers are the hosts that PEER lets in, as HostOf names them. What one has open that is not named any more ends.
	Peers []string `json:"peers,omitempty"`
}

// A Route of SNI says where clients are led that ask for one of its names, and one of PEER where other hosts are.
type Route struct {
	ID string `json:"id"`
	// Names are host names in lower case; "*.example.com" stands for every name one level below
	// example.com that no other route has. Those of PEER are the targets of backends on other hosts, as they are.
	Names         []string  `json:"names"`
	Backends      []Backend `json:"backends,omitempty"`
	ProxyProtocol string    `json:"proxy_protocol,omitempty"`
	// Protocol of a route of PEER is UDP when its backends are ports of UDP; otherwise it is empty.
	Protocol string `json:"protocol,omitempty"`
}

// A Backend is where connections lead. Its connections live until they end or until no Listener at the same
// address names the backend any more (same ID, namespace, address, peer and target); then they are closed.
type Backend struct {
	ID      string         `json:"id"`
	Netns   string         `json:"netns,omitempty"`
	Address netip.AddrPort `json:"address"`
	State   BackendState   `json:"state"`
	// Peer is the host that the backend is on, as HostOf names it, when it is another one. Address is then that of the PEER listener there,
	// and Target the name of a route of that.
	Peer   string `json:"peer,omitempty"`
	Target string `json:"target,omitempty"`
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
	// ForwardTo are the clients for whom other questions are forwarded although Forward is not set.
	ForwardTo []netip.Addr `json:"forward_to,omitempty"`
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
			key := socketKey{d.Netns, a, UDP}
			if seen[key] {
				err = errors.Join(err, fmt.Errorf("address %v is used twice", a))
			}
			seen[key] = true
			for _, transport := range []string{TCP, UDP} {
				if id, taken := sockets[socketKey{d.Netns, a, transport}]; taken {
					err = errors.Join(err, fmt.Errorf("address %v is also that of listener %q", a, id))
				}
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("dns %d: %w", i, err))
		}
	}
	errs = append(errs, c.validatePeers())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("proxy configuration: %w", err)
	}
	return nil
}
