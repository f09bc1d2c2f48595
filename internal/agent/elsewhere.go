package agent

import (
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// Peering is how this host's proxy leads connections to other hosts, and takes theirs.
type Peering struct {
	// Listen is where the proxies of other hosts come in.
	Listen netip.AddrPort
	// Files are what this host proves with who it is, and knows other hosts by.
	Files proxy.Peering
}

// fleet is what the server says of names, virtual addresses and other hosts.
type fleet struct {
	environments []*pinnacev1.AssignedEnvironment
	peers        []*pinnacev1.Peer
	noIngress    bool
}

func fleetOf(msg *pinnacev1.WatchAssignmentsResponse) fleet {
	return fleet{environments: msg.Environments, peers: msg.Peers, noIngress: msg.NoIngress}
}

// message is the fleet as it was sent.
func (f fleet) message() *pinnacev1.WatchAssignmentsResponse {
	return &pinnacev1.WatchAssignmentsResponse{Environments: f.environments, Peers: f.peers, NoIngress: f.noIngress}
}

// after fills in, from what was known before, what the server has not heard of: one that has just started knows where
// instances are, and learns later what becomes of them. Until then nobody's connections end.
func (f fleet) after(before fleet) fleet {
	addresses := map[string]string{}
	for _, p := range before.peers {
		addresses[p.Host] = p.Address
	}
	states := map[string]string{}
	for _, e := range before.environments {
		for _, app := range e.Apps {
			for _, i := range app.Elsewhere {
				states[i.Instance] = i.State
			}
		}
	}
	known := proto.CloneOf(f.message())
	for _, p := range known.Peers {
		if p.Address == "" {
			p.Address = addresses[p.Host]
		}
	}
	for _, e := range known.Environments {
		for _, app := range e.Apps {
			for _, i := range app.Elsewhere {
				if i.State == "" {
					i.State = states[i.Instance]
				}
			}
		}
	}
	return fleetOf(known)
}

// elsewhere are the instances on other hosts, in the order of their ids, as members of the environments that they are
// in. netns has the namespaces of those that this host has. It is called with mu held.
func (r *routes) elsewhere(netns map[string]string) []*member {
	if r.agent.Peering == nil {
		return nil
	}
	addresses, names := map[string]netip.AddrPort{}, map[string]string{}
	for _, p := range r.fleet.peers {
		names[p.Host] = peerName(p)
		if at, err := netip.ParseAddrPort(p.Address); err == nil && at.Port() != 0 && at.Addr().Zone() == "" {
			addresses[p.Host] = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
		}
	}
	var out []*member
	for _, e := range r.fleet.environments {
		standIns := r.standIns(e)
		for _, app := range e.Apps {
			for _, i := range app.Elsewhere {
				at, ok := addresses[i.Host]
				if !ok || i.Host == r.agent.Host.Id || r.members[i.Instance] != nil {
					continue
				}
				m := &member{
					instance: i.Instance, environment: e.Name, app: app.App, ordinal: i.Ordinal, netns: netns[e.Name],
					address: standIns[ordinalName(app.App, i.Ordinal)], ports: map[string]manifest.Port{}, state: routeState(i.State),
					peer: names[i.Host], peerAddress: at,
				}
				for _, p := range i.Ports {
					if 0 < p.Port && p.Port < 1<<16 && p.PublicPort < 1<<16 {
						m.ports[p.Name] = manifest.Port{
							Port: int(p.Port), Protocol: p.Protocol, Expose: p.Expose, Edge: p.Edge, PublicPort: int(p.PublicPort), ProxyProtocol: p.ProxyProtocol,
						}
					}
				}
				out = append(out, m)
			}
		}
	}
	slices.SortFunc(out, byInstance)
	return out
}

// peerName is what a host's certificate says that it is.
func peerName(p *pinnacev1.Peer) string { return p.Host + "/" + p.Admission }

func ordinalName(app string, ordinal uint32) string {
	return fmt.Sprintf("%d.%s.%s", ordinal, app, proxy.Zone)
}

// standIns are the addresses by which instances on other hosts are known here, by their names: their own lead nowhere on
// this host. They are taken from the upper half of the virtual addresses, and follow from the names, so that they stay
// when the agent is another one.
func (r *routes) standIns(e *pinnacev1.AssignedEnvironment) map[string]netip.Addr {
	const half = 1 << 15
	names, taken := map[string]netip.Addr{}, map[netip.Addr]bool{}
	for _, app := range e.Apps {
		for _, addr := range virtualAddresses(app) {
			taken[addr] = true
		}
		for _, i := range app.Elsewhere {
			names[ordinalName(app.App, i.Ordinal)] = netip.Addr{}
		}
	}
	if len(names) >= half {
		return nil // no host has as many connections
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		h := fnv.New32a()
		_, _ = h.Write([]byte(name))
		for n := h.Sum32(); ; n++ {
			addr := netip.AddrFrom4([4]byte{10, 101, 128 | byte(n>>8), byte(n)})
			if !taken[addr] {
				taken[addr], names[name] = true, addr
				break
			}
		}
	}
	return names
}

// remoteBackend is a member on another host as a backend at one of its ports.
func (m *member) remoteBackend(port manifest.Port) proxy.Backend {
	return proxy.Backend{ID: m.instance, Address: m.peerAddress, Peer: m.peer, Target: targetOf(m.instance, port)}
}

// targetOf is what hosts call a port of an instance among themselves. TCP and UDP may have the same number.
func targetOf(instance string, port manifest.Port) string {
	if port.Protocol == manifest.ProtocolUDP {
		return fmt.Sprintf("%s:%d/udp", instance, port.Port)
	}
	return fmt.Sprintf("%s:%d", instance, port.Port)
}

// peering adds what other hosts' proxies need to come to the members of this one, and only those of the fleet. It is
// called with mu held.
func (r *routes) peering(cfg *proxy.Config) {
	p := r.agent.Peering
	if p == nil {
		return
	}
	cfg.Peering = &p.Files
	// No app takes that port away: the proxy would refuse a configuration with both.
	cfg.Listeners = slices.DeleteFunc(cfg.Listeners, func(l proxy.Listener) bool {
		return l.Netns == "" && l.Address == p.Listen && l.Protocol != proxy.UDP
	})
	l := proxy.Listener{ID: "peers", Address: p.Listen, Protocol: proxy.PEER}
	for _, other := range r.fleet.peers {
		if other.Host != r.agent.Host.Id {
			l.Peers = append(l.Peers, peerName(other))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.members)) {
		m := r.members[id]
		ports := map[string]manifest.Port{} // by target
		for _, port := range m.ports {
			if port.Expose != manifest.ExposeNone {
				ports[targetOf(m.instance, port)] = port
			}
		}
		for _, port := range r.public(m) { // a route may lead to one that is not exposed
			ports[targetOf(m.instance, port.Port)] = port.Port
		}
		for _, name := range slices.Sorted(maps.Keys(ports)) {
			route := proxy.Route{ID: name, Names: []string{name}, Backends: m.backends(ports[name])}
			if ports[name].Protocol == manifest.ProtocolUDP {
				route.Protocol = proxy.UDP
			}
			l.Routes = append(l.Routes, route)
		}
	}
	cfg.Listeners = append(cfg.Listeners, l)
}
