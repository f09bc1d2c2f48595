// Package network gives every environment of a host its own network: a namespace with a bridge and a tap
// per guest, the virtual addresses of its apps, and an uplink to the outside.
//
// Isolation is by construction first: nothing in the host's namespace has an address or a route inside an
// environment, so there is nothing to filter between two of them. What filters there are stand at the two
// doors that exist: at each tap (a guest sends from its own addresses only) and at each uplink (it leads
// outward, never to the host and never to another environment). docs/design/network.md tells the whole story.
//
// The package knows nothing of apps, manifests or releases, and runs no program: links, addresses and
// filters are made over netlink. It does not serve DNS and forwards no connections; package proxy does that
// in the same namespaces.
package network

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
)

// The addresses inside every environment. They are the same in each, and no two environments ever meet.
var (
	Subnet4  = netip.MustParsePrefix("10.100.0.0/16")
	Subnet6  = netip.MustParsePrefix("fd00:7069:6e6e:100::/64")
	Virtual4 = netip.MustParsePrefix("10.101.0.0/16")
	Virtual6 = netip.MustParsePrefix("fd00:7069:6e6e:101::/64")
	Gateway4 = netip.MustParseAddr("10.100.0.1")
	Gateway6 = netip.MustParseAddr("fd00:7069:6e6e:100::1")
)

// DefaultUplinkBase is where uplinks get their addresses from unless Uplink.Base says otherwise: a corner of
// the shared address space (RFC 6598) that neither clouds nor overlay networks use by default.
var DefaultUplinkBase = netip.MustParsePrefix("100.127.0.0/16")

// DefaultPrefix begins the names of everything made in the host's namespace.
const DefaultPrefix = "pin"

// Errors that callers tell apart.
var (
	// ErrNotFound means that the environment or the attachment does not exist.
	ErrNotFound = errors.New("not found")
	// ErrFull means that no address is left, in the environment or for its uplink.
	ErrFull = errors.New("no address left")
	// ErrClosed means that the Manager was closed.
	ErrClosed = errors.New("network manager is closed")
)

// UplinkMode says where the traffic of an environment goes that is not for the environment itself.
type UplinkMode string

// The modes. The zero value is UplinkNone.
const (
	// UplinkNone gives environments no way out at all.
	UplinkNone UplinkMode = ""
	// UplinkHost leads through the host, which translates addresses and forwards outward only.
	UplinkHost UplinkMode = "host"
	// UplinkNetns leads into the namespace at Uplink.Netns, which then is "the outside": its own addresses
	// can be reached. For tests.
	UplinkNetns UplinkMode = "netns"
)

// Egress says what outside of its environment a guest may reach. The environment itself, its virtual addresses and
// the names of its DNS are in reach of every guest.
type Egress string

// What a guest may reach outside.
const (
	// EgressAll is everything that the uplink leads to.
	EgressAll Egress = "all"
	// EgressInternal is nothing.
	EgressInternal Egress = "internal"
	// EgressNone is nothing, and no word by way of DNS either: whoever serves it must not pass on the guest's
	// questions. The Manager serves none, and treats it as EgressInternal.
	EgressNone Egress = "none"
)

// An Uplink describes the way out of the environments.
type Uplink struct {
	Mode UplinkMode
	// Netns is the path of the namespace for UplinkNetns.
	Netns string
	// Base is the IPv4 network that uplink addresses come from, two per environment, skipping those that
	// the host uses; a /30 or wider. Zero means DefaultUplinkBase.
	Base netip.Prefix
}

// Options configures a Manager.
type Options struct {
	// RunDir is a directory of the Manager's own. It holds the namespaces' mount points and what is needed
	// to recognise left-overs after a crash. It should be lost at a reboot, as what it describes is.
	RunDir string
	// Prefix begins the names of links and filter tables in the host's namespace, so that several managers
	// live on one machine: one to six of a-z and 0-9, a letter first. Empty means DefaultPrefix.
	Prefix string
	// Uplink is the way out. The zero value is none.
	Uplink Uplink
	// HostNetns is the path of the namespace that plays the host; empty means that of the calling thread.
	HostNetns string
	// Log receives what is repaired and removed. Nil discards it.
	Log *slog.Logger
}

// A Namespace is the network of one environment.
type Namespace struct {
	// Name is the environment's.
	Name string
	// Path is what to open and pass to setns(2).
	Path string
	// MTU is that of the bridge, in bytes.
	MTU int
}

// An Attachment is the place of one guest in the network of its environment.
type Attachment struct {
	Environment, Instance string
	// Netns is the path of the namespace, and Tap the name of the tap device inside it.
	Netns, Tap string
	// UID owns the tap: that user opens it without privileges.
	UID uint32
	MAC net.HardwareAddr
	// IPv4 and IPv6 are the guest's address with the length of the subnet.
	IPv4, IPv6         netip.Prefix
	Gateway4, Gateway6 netip.Addr
	MTU                int
}
