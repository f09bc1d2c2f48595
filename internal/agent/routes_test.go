package agent

import (
	"slices"
	"strings"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

func backends(ln proxy.Listener) []string {
	var ids []string
	for _, b := range ln.Backends {
		ids = append(ids, b.ID+" "+b.Address.String()+" "+string(b.State))
	}
	return ids
}

// TestOldAndNewShareAPort rolls from one instance to the next behind one public port, whatever number the
// workloads listen on themselves.
func TestOldAndNewShareAPort(t *testing.T) {
	l := newLab(t)
	l.runs("api", inTurn(l.serves(&answer{}, 8080), l.serves(&answer{}, 9090)))
	l.start()
	l.deploy("api-1", l.app("api", webPort))
	l.deploy("api-2", l.app("api", `ports.web = { port = 9090, expose = "public", edge = "raw", public_port = 80 }`))

	public, _ := l.proxy.listener("public/0.0.0.0:80")
	if got, want := backends(public), []string{"api-1 10.100.0.2:8080 active", "api-2 10.100.0.3:9090 active"}; !slices.Equal(got, want) {
		t.Errorf("public: got %q, want %q", got, want)
	}
	// Inside, both numbers are in force until the old instance has gone.
	for id, want := range map[string]string{
		"internal/dev/api/10.101.0.2:8080": "api-1 10.100.0.2:8080 active",
		"internal/dev/api/10.101.0.2:9090": "api-2 10.100.0.3:9090 active",
	} {
		if ln, _ := l.proxy.listener(id); !slices.Equal(backends(ln), []string{want}) {
			t.Errorf("%s: got %q, want %q", id, backends(ln), want)
		}
	}
	// Both have ordinal 0; the newer one has its name.
	l.proxy.do(func() {
		for _, dns := range l.proxy.config.DNS {
			if got := dns.Records["0.api.internal"]; len(got) != 1 || got[0].String() != "10.100.0.3" {
				t.Errorf("0.api.internal: got %v", got)
			}
		}
	})

	l.stop("api-1")
	l.awaitEnd("api-1")
	if public, _ = l.proxy.listener("public/0.0.0.0:80"); !slices.Equal(backends(public), []string{"api-2 10.100.0.3:9090 active"}) {
		t.Errorf("public after the old one has gone: got %q", backends(public))
	}
	if _, ok := l.proxy.listener("internal/dev/api/10.101.0.2:8080"); ok {
		t.Error("the old number is still listened on")
	}
	if got, want := l.proxy.history("api-1"), []proxy.BackendState{proxy.Active, proxy.Draining, ""}; !slices.Equal(got, want) {
		t.Errorf("routing of the old one: got %q, want %q", got, want)
	}
}

// TestProxyStartsAnew: a proxy that has forgotten everything is told again without being asked.
func TestProxyStartsAnew(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	l.deploy("api-1", l.app("api", webPort))
	l.proxy.do(func() { l.proxy.err = errDown })
	l.proxy.do(func() { l.proxy.err, l.proxy.config = nil, proxy.Config{} })
	l.poll("the proxy knows the instance", func() bool {
		ln, ok := l.proxy.listener("public/0.0.0.0:80")
		return ok && len(ln.Backends) == 1
	})
}

// TestStopDoesNotCutTheProxyShort: an exchange that is given up costs the connection that all instances share.
func TestStopDoesNotCutTheProxyShort(t *testing.T) {
	l := newLab(t)
	hold := make(chan struct{})
	l.start()
	l.proxy.do(func() { l.proxy.hold = hold })
	l.assign("dev", "api-1", l.app("api"))
	l.await("api-1", "waits for the proxy", func(r *pinnacev1.InstanceReport) bool { return r.Message == "network" && r.Address != "" })
	l.stop("api-1")
	l.eventually("the agent has acted on it", func() bool { return l.server.last.Revision == l.server.set.Revision })
	close(hold)
	l.awaitEnd("api-1")
	l.proxy.do(func() {
		if l.proxy.gaveUp {
			t.Error("the exchange was given up")
		}
	})
}

// TestUIDs gives every machine an identity of its own, the lowest that is free.
func TestUIDs(t *testing.T) {
	a := &Agent{Options: Options{FirstUID: 700}, uids: map[uint32]string{}}
	if one, two, again := a.takeUID("api-1"), a.takeUID("api-2"), a.takeUID("api-1"); one != 700 || two != 701 || again != 700 {
		t.Errorf("got %d, %d and %d", one, two, again)
	}
	a.giveUID(700)
	if three := a.takeUID("api-3"); three != 700 {
		t.Errorf("got %d, want the one that was given back", three)
	}
}

// TestRoutesOfTheEnvironment: where an environment says how a port is reached, the manifest's own say does not count.
func TestRoutesOfTheEnvironment(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080, 9090, 9091, 443))
	l.start()
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		set.Environments = append(set.Environments, &pinnacev1.AssignedEnvironment{Name: "dev", Apps: []*pinnacev1.AssignedApp{{
			App: "api", VirtualAddress: "10.101.0.2", Routes: []*pinnacev1.AssignedRoute{
				{Port: "web", Address: "127.0.0.1", PublicPort: 8081},
				{Port: "tls", Address: "127.0.0.1", PublicPort: 8443},
				{Port: "hidden", Address: "127.0.0.1", PublicPort: 9091},
				{Port: "gone", Address: "127.0.0.1", PublicPort: 1},
				{Port: "inside", Address: "nowhere", PublicPort: 2},
				{Port: "inside", Address: "127.0.0.1", PublicPort: 65536 + 80},
			},
		}}})
	})
	l.deploy("api-1", l.app("api", webPort,
		`ports.tls = { port = 443, expose = "public", edge = "sni" }`,
		`ports.hidden = { port = 9091, expose = "none" }`,
		`ports.inside = { port = 9090 }`,
	))
	var public []string
	l.proxy.do(func() {
		for _, ln := range l.proxy.config.Listeners {
			if ln.Netns == "" {
				public = append(public, ln.Address.String()+" "+strings.Join(backends(ln), " "))
			}
		}
	})
	slices.Sort(public)
	want := []string{
		"127.0.0.1:8081 api-1 10.100.0.2:8080 active", "127.0.0.1:8443 api-1 10.100.0.2:443 active", "127.0.0.1:9091 api-1 10.100.0.2:9091 active",
	}
	if !slices.Equal(public, want) {
		t.Errorf("got %q, want %q", public, want)
	}
}

// TestOneRouteOneApp: an instance whose route is another app's does not start, at the same address or at one that
// includes it.
func TestOneRouteOneApp(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "0.0.0.0"} {
		t.Run(address, func(t *testing.T) {
			l := newLab(t)
			l.runs("api", l.serves(&answer{}, 8080))
			l.runs("other", l.serves(&answer{}, 8080))
			l.start()
			route := func(app, at string) *pinnacev1.AssignedApp {
				return &pinnacev1.AssignedApp{App: app, Routes: []*pinnacev1.AssignedRoute{{Port: "web", Address: at, PublicPort: 8081}}}
			}
			l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
				set.Environments = []*pinnacev1.AssignedEnvironment{{Name: "dev", Apps: []*pinnacev1.AssignedApp{route("api", "127.0.0.1"), route("other", address)}}}
			})
			l.deploy("api-1", l.app("api", webPort))
			l.assign("dev", "other-1", l.app("other", webPort, `restart = "never"`))
			want := "public port 8081 is taken by app api of environment dev"
			if end := l.awaitEnd("other-1").End; end.Kind != causeStartFailed || end.Detail != want {
				t.Errorf("got %v, want %q", end, want)
			}
		})
	}
}
