package e2e

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
)

// TestGuestIsolation asks from inside a guest for everything that it must not reach, and for what it may.
func TestGuestIsolation(t *testing.T) {
	// The host as the way out: the guest then has a default route, and only filters between it and the host.
	l := newLab(t, "--uplink", "host")
	l.must("env", "create", "other")
	port, otherPort := freePort(t), freePort(t)
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	l.must("deploy", "-f", l.manifest("app", web("app", port)), "--image", ref)
	l.must("deploy", "-f", l.manifest("mate", web("mate", freePort(t))), "--image", ref)
	l.must("-e", "other", "deploy", "-f", l.manifest("foe", web("foe", otherPort)), "--image", ref)

	reach := func(addr string) string { return l.get(port, "/reach?addr="+url.QueryEscape(addr)) }
	resolve := func(name string) string { return l.get(port, "/resolve?name="+url.QueryEscape(name)) }

	// What it may: its neighbours in the environment, by name.
	if got := reach("mate.internal:8080"); got != "open" {
		t.Errorf("a neighbour by name: %s", got)
	}
	if got := reach("0.mate.internal:8080"); got != "open" {
		t.Errorf("one instance of a neighbour: %s", got)
	}
	virtual := resolve("app.internal")
	if !strings.Contains(virtual, "10.101.") {
		t.Errorf("its own virtual address: %s", virtual)
	}

	// What it must not.
	for _, name := range []string{"foe.internal", "0.foe.internal"} {
		if got := resolve(name); !strings.HasPrefix(got, "no:") {
			t.Errorf("a name of another environment resolves: %s is %s", name, got)
		}
	}
	var hosts []string
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		ip := a.(*net.IPNet).IP
		if !ip.IsLinkLocalUnicast() {
			hosts = append(hosts, ip.String())
		}
	}
	_, api, _ := net.SplitHostPort(l.api)
	_, agents, _ := net.SplitHostPort(l.agents)
	_, registry, _ := net.SplitHostPort(l.registry)
	ports := []string{api, agents, registry, fmt.Sprint(port), fmt.Sprint(otherPort)}
	// Something of the host's that listens on every address, as sshd does.
	everywhere, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer everywhere.Close()
	ports = append(ports, fmt.Sprint(everywhere.Addr().(*net.TCPAddr).Port))
	hosts = append(hosts, "10.100.0.1", "169.254.169.254")
	for _, host := range hosts {
		for _, p := range ports {
			// In the guest, loopback is its own; nothing of the host must answer there either.
			if got := reach(net.JoinHostPort(host, p)); got == "open" {
				t.Errorf("the guest reaches %s of the host", net.JoinHostPort(host, p))
			}
		}
	}
	// The other environment has the same subnet in a namespace of its own: its addresses lead to nothing,
	// or to the guest's own neighbours, never there.
	for _, i := range l.instances("-e", "other") {
		if self := l.get(otherPort, "/self"); !strings.Contains(self, i.ID) {
			t.Errorf("the other environment does not answer as itself: %s", self)
		}
	}
	if got := reach(fmt.Sprintf("10.101.0.3:%d", 8080)); got == "open" {
		t.Error("the guest reaches a virtual address that its environment does not have")
	}
}
