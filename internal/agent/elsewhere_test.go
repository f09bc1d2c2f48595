package agent

import (
	"net/netip"
	"slices"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// record is the address of a name in the environment dev.
func (l *lab) record(name string) (addr string) {
	l.proxy.do(func() {
		for _, dns := range l.proxy.config.DNS {
			if addrs := dns.Records[name]; len(addrs) == 1 {
				addr = addrs[0].String()
			}
		}
	})
	return addr
}

// routed returns when the proxy has been told what the server said last.
func (l *lab) routed() {
	l.t.Helper()
	l.eventually("the agent has acted on it", func() bool { return l.server.last.GetRevision() == l.server.set.Revision })
	if err := l.agent.routes.sync(l.t.Context()).all(); err != nil {
		l.t.Error(err)
	}
}

// theFleet is what a server says to the host "h1": api runs here and on h2, db on h3 alone, and the app far in an
// environment of which nothing is here.
func theFleet(set *pinnacev1.WatchAssignmentsResponse) {
	port := func(name string, port, public uint32) *pinnacev1.AssignedPort {
		expose := "internal"
		if public > 0 {
			expose = "public"
		}
		return &pinnacev1.AssignedPort{Name: name, Port: port, Protocol: "tcp", Expose: expose, Edge: "raw", PublicPort: public}
	}
	udp := port("dns", 53, 53)
	udp.Protocol = "udp"
	set.Peers = []*pinnacev1.Peer{{Host: "h2", Address: "192.0.2.2:7402", Admission: "a"}, {Host: "h3", Address: "192.0.2.3:7402", Admission: "b"}, {Host: "h4", Admission: "c"}}
	set.Environments = []*pinnacev1.AssignedEnvironment{
		{Name: "dev", Apps: []*pinnacev1.AssignedApp{
			{App: "api", VirtualAddress: "10.101.0.2", Elsewhere: []*pinnacev1.RemoteInstance{
				{Instance: "api-2", Ordinal: 1, Host: "h2", State: "active", Ports: []*pinnacev1.AssignedPort{port("web", 8080, 80), udp}},
				{Instance: "api-3", Ordinal: 2, Host: "h4", State: "active", Ports: []*pinnacev1.AssignedPort{port("web", 8080, 80)}},
			}},
			{App: "db", VirtualAddress: "10.101.0.3", Elsewhere: []*pinnacev1.RemoteInstance{
				{Instance: "db-1", Host: "h3", State: "draining", Ports: []*pinnacev1.AssignedPort{port("sql", 5432, 0)}},
			}},
		}},
		{Name: "prod", Apps: []*pinnacev1.AssignedApp{{App: "far", VirtualAddress: "10.101.0.1", Elsewhere: []*pinnacev1.RemoteInstance{
			{Instance: "far-1", Host: "h2", State: "active", Ports: []*pinnacev1.AssignedPort{port("web", 80, 90), port("inside", 81, 0)}},
			// Another app has this port already, and its clients are not this one's.
			{Instance: "far-2", Host: "h2", State: "active", Ports: []*pinnacev1.AssignedPort{port("web", 80, 80)}},
		}}}},
	}
}

// led says where a listener leads, and from host to host how.
func led(ln proxy.Listener) []string {
	var out []string
	for _, b := range ln.Backends {
		text := b.ID + " " + b.Address.String() + " " + string(b.State)
		if b.Peer != "" {
			text += " " + b.Peer + " " + b.Target
		}
		out = append(out, text)
	}
	return out
}

func TestPortsLeadToOtherHosts(t *testing.T) {
	l := newLab(t)
	l.peering = &Peering{
		Listen: netip.MustParseAddrPort("192.0.2.1:7402"),
		Files:  proxy.Peering{Certificate: "/c", Key: "/k", Authorities: "/a"},
	}
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.server.assign(theFleet)
	l.deploy("api-1", l.app("api", webPort))
	wants := func(want map[string][]string) {
		t.Helper()
		for id, want := range want {
			if ln, ok := l.proxy.listener(id); !slices.Equal(led(ln), want) {
				t.Errorf("%s: got %q (%v), want %q", id, led(ln), ok, want)
			}
		}
	}
	name := l.record("1.api.internal")
	all := map[string][]string{
		"public/0.0.0.0:80":                       {"api-1 10.100.0.2:8080 active", "api-2 192.0.2.2:7402 active h2/a api-2:8080"},
		"public/0.0.0.0:90":                       {"far-1 192.0.2.2:7402 active h2/a far-1:80"},
		"internal/dev/api/10.101.0.2:8080":        {"api-1 10.100.0.2:8080 active", "api-2 192.0.2.2:7402 active h2/a api-2:8080"},
		"internal/dev/db/10.101.0.3:5432":         {"db-1 192.0.2.3:7402 draining h3/b db-1:5432"},
		"internal/dev/api/" + name + ":8080":      {"api-2 192.0.2.2:7402 active h2/a api-2:8080"},
		"internal/prod/far/10.101.0.1:81":         nil,
		"public/0.0.0.0:53/udp":                   {"api-2 192.0.2.2:7402 active h2/a api-2:53/udp"},
		"internal/dev/api/10.100.0.2:8080":        nil,
		"internal/dev/api/" + name + ":53/udp":    {"api-2 192.0.2.2:7402 active h2/a api-2:53/udp"},
		"internal/dev/api/10.101.0.2:53/udp":      {"api-2 192.0.2.2:7402 active h2/a api-2:53/udp"},
		"internal/prod/far/10.101.0.1:80":         nil,
		"internal/dev/db/" + "10.101.0.2" + ":80": nil,
	}
	wants(all)
	if got := l.record("0.api.internal"); got != "10.100.0.2" {
		t.Errorf("0.api.internal: got %s", got)
	}
	peers, _ := l.proxy.listener("peers")
	if !slices.Equal(peers.Peers, []string{"h2/a", "h3/b", "h4/c"}) || len(peers.Routes) != 1 || peers.Routes[0].Names[0] != "api-1:8080" ||
		peers.Routes[0].Backends[0].Address.String() != "10.100.0.2:8080" || peers.Address.String() != "192.0.2.1:7402" {
		t.Errorf("for other hosts: %+v", peers)
	}
	l.proxy.do(func() {
		if err := l.proxy.config.Validate(); err != nil {
			t.Error(err)
		}
	})

	// A server that has just started knows where instances are, and not yet how they are.
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		for _, p := range set.Peers {
			p.Address = ""
		}
		for _, e := range set.Environments {
			for _, app := range e.Apps {
				for _, i := range app.Elsewhere {
					i.State = ""
				}
			}
		}
	})
	l.routed()
	wants(all)

	// An app that wants the port for other hosts does not get it, and nobody loses anything by that.
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		set.Environments[1].Apps[0].Routes = []*pinnacev1.AssignedRoute{{Port: "web", Address: "192.0.2.1", PublicPort: 7402}}
	})
	l.routed()
	l.proxy.do(func() {
		if err := l.proxy.config.Validate(); err != nil {
			t.Error(err)
		}
	})
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.Environments[1].Apps[0].Routes = nil })
	l.routed()
	wants(all)

	// Where other hosts have the public ports, this one has the rest.
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.NoIngress = true })
	l.routed()
	all["public/0.0.0.0:80"], all["public/0.0.0.0:90"], all["public/0.0.0.0:53/udp"] = nil, nil, nil
	wants(all)

	// The next agent of this host knows all of it before it has heard of a server.
	kept, err := l.agent.keptFleet()
	if err != nil || !kept.noIngress || len(kept.peers) != 3 || kept.peers[0].Address != "192.0.2.2:7402" || kept.environments[0].Apps[0].Elsewhere[0].State != "active" {
		t.Errorf("kept %v, %v", kept.message(), err)
	}
}
