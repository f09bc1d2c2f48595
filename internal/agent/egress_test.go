package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// TestEgress checks that what a manifest lets its instances reach gets to the network and to DNS, before the machine
// starts and under the next agent too, and that the DNS of other environments is none the wiser.
func TestEgress(t *testing.T) {
	l := newLab(t)
	started := map[string]network.Egress{}
	for _, app := range []string{"open", "inner", "closed"} {
		l.runs(app, playing(guesttest.Workload{}))
	}
	l.start()
	addresses := map[string][]netip.Addr{}
	for app, keys := range map[string][]string{
		"open": nil, "inner": {`network.egress = "internal"`}, "closed": {`network.egress = "none"`},
	} {
		r := l.deploy(app+"-1", l.app(app, keys...))
		l.net.mu.Lock()
		started[app] = l.net.egress[app+"-1"]
		at := l.net.attached["dev"][app+"-1"]
		l.net.mu.Unlock()
		addresses[app] = []netip.Addr{at.IPv4.Addr(), at.IPv6.Addr()}
		if r.Address != at.IPv4.Addr().String() {
			t.Errorf("%s has the address %s, and the network gave it %v", app, r.Address, at.IPv4)
		}
	}
	for app, want := range map[string]network.Egress{"open": network.EgressAll, "inner": network.EgressInternal, "closed": network.EgressNone} {
		if started[app] != want {
			t.Errorf("%s may reach %q, want %q", app, started[app], want)
		}
	}
	check := func() {
		t.Helper()
		d := l.dnsOf("dev")
		if d.Forward || slices.Contains(d.ForwardTo, addresses["closed"][0]) || slices.Contains(d.ForwardTo, addresses["closed"][1]) {
			t.Errorf("questions of an instance with egress none are forwarded: %+v", d)
		}
		for _, app := range []string{"open", "inner"} {
			for _, a := range addresses[app] {
				if !slices.Contains(d.ForwardTo, a) {
					t.Errorf("questions of %s from %v are not forwarded", app, a)
				}
			}
		}
	}
	check()
	l.net.mu.Lock()
	clear(l.net.egress)
	l.net.mu.Unlock()
	l.next()
	l.awaitState("closed-1", stateReady)
	l.net.mu.Lock()
	if got := l.net.egress["closed-1"]; got != network.EgressNone {
		t.Errorf("under the next agent it may reach %q", got)
	}
	l.net.mu.Unlock()
	check()
	l.stop("closed-1")
	l.awaitEnd("closed-1")
	if d := l.dnsOf("dev"); !d.Forward || len(d.ForwardTo) != 0 {
		t.Errorf("when it is gone: %+v", d)
	}
}

// dnsOf is the DNS of an environment as the proxy was told last.
func (l *lab) dnsOf(env string) proxy.DNS {
	l.t.Helper()
	l.agent.routes.mu.Lock()
	defer l.agent.routes.mu.Unlock()
	cfg, _ := l.agent.routes.config()
	for _, d := range cfg.DNS {
		if d.Netns == "/run/netns/"+env {
			return d
		}
	}
	l.t.Fatalf("environment %s has no DNS in %+v", env, cfg.DNS)
	return proxy.DNS{}
}
