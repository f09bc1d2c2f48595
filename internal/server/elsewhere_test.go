package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// reachedAt has a host lead connections to others, and take theirs.
func reachedAt(address string) func(*pb.HostFacts) {
	return func(h *pb.HostFacts) { h.PeerAddress = address }
}

// elsewhereOf says what a host is told of an app on other hosts.
func elsewhereOf(set *pb.WatchAssignmentsResponse, env, app string) []string {
	var out []string
	for _, e := range set.GetEnvironments() {
		for _, a := range e.GetApps() {
			if e.GetName() != env || a.GetApp() != app {
				continue
			}
			for _, i := range a.GetElsewhere() {
				out = append(out, fmt.Sprintf("%d %s %s", i.GetOrdinal(), i.GetHost(), i.GetState()))
			}
		}
	}
	slices.Sort(out)
	return out
}

// told waits until a host is told of an app on other hosts what is wanted.
func (p *plane) told(host, app string, want ...string) {
	p.t.Helper()
	p.eventually(fmt.Sprintf("%s is told of %s: %q", host, app, want), func() bool {
		return slices.Equal(elsewhereOf(p.assignments(p.freshView(), host), "dev", app), want)
	})
}

func TestHostsKnowOfEachOther(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1", reachedAt("192.0.2.1:7402"))
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	b := p.agent("h2", reachedAt("192.0.2.2:7402"))
	// This one takes part in nothing of that, as one of the version before.
	p.agent("h3")

	// Nothing of the environment is on h2, but its public port.
	p.told("h2", "api", "0 h1 active")
	p.told("h1", "api")
	p.told("h3", "api")
	set := p.assignments(p.freshView(), "h2")
	if len(set.GetPeers()) != 2 || set.GetPeers()[0].GetHost() != "h1" || set.GetPeers()[0].GetAddress() != "192.0.2.1:7402" || set.GetPeers()[1].GetAddress() != "" {
		t.Errorf("h2 knows the hosts %v", set.GetPeers())
	}
	port := set.GetEnvironments()[0].GetApps()[0].GetElsewhere()[0].GetPorts()
	if len(port) != 1 || port[0].GetPort() != 8080 || port[0].GetPublicPort() != 80 || port[0].GetExpose() != "public" {
		t.Errorf("h2 knows the ports %v", port)
	}

	// A host that was revoked is nobody's peer.
	p.agent("h4", reachedAt("192.0.2.4:7402"))
	if n := len(p.assignments(p.freshView(), "h2").GetPeers()); n != 3 {
		t.Errorf("h2 knows %d hosts", n)
	}
	if _, err := p.client.RevokeHost(t.Context(), connect.NewRequest(&pb.RevokeHostRequest{Host: "h4"})); err != nil {
		t.Fatal(err)
	}
	if peers := p.assignments(p.freshView(), "h2").GetPeers(); len(peers) != 2 || peers[0].GetAdmission() == "" || peers[1].GetHost() != "h3" {
		t.Errorf("h2 knows the hosts %v", peers)
	}

	// An instance that is to stop keeps what it has, and its successor gets the rest.
	release := b.hold()
	if _, err := p.client.DrainHost(t.Context(), connect.NewRequest(&pb.DrainHostRequest{Host: "h1"})); err != nil {
		t.Fatal(err)
	}
	p.eventually("a successor is on its way", func() bool { return len(p.instances("dev", false)) == 2 })
	release()
	p.eventually("it has moved", func() bool { return len(p.instances("dev", false)) == 1 && len(a.running()) == 0 })
	successor := p.instances("dev", false)[0]
	if successor.GetId() == first.GetId() {
		t.Fatal("nothing has moved")
	}
	where := successor.GetHost()
	p.eventually("h1 is told where it went", func() bool {
		return slices.Equal(elsewhereOf(p.assignments(p.freshView(), "h1"), "dev", "api"), []string{"0 " + where + " active"})
	})
}

// TestUnknownIsNotGone: a server that has just started says that it does not know, rather than that there is nothing.
func TestUnknownIsNotGone(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1", reachedAt("192.0.2.1:7402"))
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	b := p.agent("h2", reachedAt("192.0.2.2:7402"))
	p.told("h2", "api", "0 h1 active")
	a.leave()
	b.leave()
	p.kill()
	p.boot()
	p.agent("h2", reachedAt("192.0.2.2:7402"))
	p.told("h2", "api", "0 h1 ")
	if peers := p.assignments(p.freshView(), "h2").GetPeers(); len(peers) != 1 || peers[0].GetAddress() != "" {
		t.Errorf("h2 knows the hosts %v", peers)
	}
}

func TestIngress(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1", reachedAt("192.0.2.1:7402"))
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	p.agent("h2", reachedAt("192.0.2.2:7402"))
	for _, host := range []string{"h1", "h2"} {
		if p.assignments(p.freshView(), host).GetNoIngress() {
			t.Errorf("%s binds no public ports, although no host is labelled", host)
		}
	}
	p.agent("edge", reachedAt("192.0.2.3:7402"), func(h *pb.HostFacts) { h.Labels = map[string]string{"ingress": "true"} })
	for host, want := range map[string]bool{"h1": true, "h2": true, "edge": false} {
		if got := p.assignments(p.freshView(), host).GetNoIngress(); got != want {
			t.Errorf("%s: binds no public ports: %v, want %v", host, got, want)
		}
	}
	p.told("edge", "api", "0 h1 active")
	// It has nothing of the environment, and nobody comes to it from outside.
	p.told("h2", "api")
}

// TestPeerAddresses: what no host could connect to is refused when an agent joins.
func TestPeerAddresses(t *testing.T) {
	p := newPlane(t)
	for _, bad := range []string{"192.0.2.1", "0.0.0.0:7402", "192.0.2.1:0", "example.com:7402", "[fe80::1%eth0]:7402", strings.Repeat("x", 4096)} {
		facts := &pb.HostFacts{Id: "h1", Architecture: "amd64", MemoryBytes: 1 << 30, CpuMilli: 1000, DiskBytes: 1 << 30, PeerAddress: bad}
		_, err := (&agents{p.Server}).Join(t.Context(), connect.NewRequest(&pb.JoinRequest{Host: facts}))
		wantCode(t, err, connect.CodeInvalidArgument, "want where other hosts reach this one")
	}
	if on, _ := p.observed.connected("h1", time.Now()); on {
		t.Error("a host that was refused counts as connected")
	}
}

// TestStatusSaysWhatWaits: what cannot be helped is said where people look.
func TestStatusSaysWhatWaits(t *testing.T) {
	p := quick(newPlane(t))
	p.environment("dev")
	a := p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	p.agent("h2", func(h *pb.HostFacts) { h.MemoryBytes = 64 << 20 })
	waits := func() []string {
		res, err := p.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev", App: "api"}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetApps()[0].GetWaits()
	}
	if got := waits(); len(got) != 0 {
		t.Errorf("waits while all is well: %q", got)
	}
	a.leave()
	p.eventually("status says that there is no room", func() bool {
		got := waits()
		return len(got) == 1 && strings.Contains(got[0], "memory")
	})
	p.agent("h1")
	p.eventually("it waits no longer", func() bool { return len(waits()) == 0 && len(p.serving("dev")) == 1 })
}
