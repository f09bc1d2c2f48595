package agent

import (
	"slices"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/proxy"
)

// named are the environments of TestHostNames.
func named(api, web []string, port uint32) []*pinnacev1.AssignedEnvironment {
	app := func(name, virtual string, names []string, port uint32) *pinnacev1.AssignedApp {
		return &pinnacev1.AssignedApp{App: name, VirtualAddress: virtual, Routes: []*pinnacev1.AssignedRoute{{Port: "tls", PublicPort: port, Names: names}}}
	}
	return []*pinnacev1.AssignedEnvironment{
		{Name: "dev", Apps: []*pinnacev1.AssignedApp{app("api", "10.101.0.2", api, 443)}},
		{Name: "prod", Apps: []*pinnacev1.AssignedApp{app("web", "10.101.0.3", web, port)}},
	}
}

// TestHostNames: two apps of two environments share a port, told apart by host names, which can change while both run.
func TestHostNames(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8443))
	l.runs("web", l.serves(&answer{}, 8443))
	l.start()
	become := func(envs []*pinnacev1.AssignedEnvironment) {
		l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) { set.Environments = envs })
	}
	routes := func(at string) (found []string) {
		ln, ok := l.proxy.listener("public/" + at)
		if !ok || ln.Protocol != proxy.SNI || len(ln.Backends) != 0 {
			return nil
		}
		for _, r := range ln.Routes {
			for _, name := range r.Names {
				found = append(found, name+" "+r.Backends[0].ID+" "+r.Backends[0].Address.String())
			}
		}
		slices.Sort(found)
		return found
	}
	const tls = `ports.tls = { port = 8443, expose = "public", edge = "sni" }`
	become(named([]string{"api.example", "www.api.example"}, []string{"web.example"}, 443))
	l.deploy("api-1", l.app("api", tls))
	l.assign("prod", "web-1", l.app("web", tls))
	l.awaitState("web-1", stateReady)
	l.poll("both are led to by their names", func() bool {
		return slices.Equal(routes("0.0.0.0:443"), []string{"api.example api-1 10.100.0.2:8443", "web.example web-1 10.100.0.3:8443", "www.api.example api-1 10.100.0.2:8443"})
	})

	// A name goes, another port comes, and nothing is started again.
	become(named([]string{"api.example"}, []string{"web.example"}, 8443))
	l.poll("the names are others", func() bool {
		return slices.Equal(routes("0.0.0.0:443"), []string{"api.example api-1 10.100.0.2:8443"}) &&
			slices.Equal(routes("0.0.0.0:8443"), []string{"web.example web-1 10.100.0.3:8443"})
	})
	for _, id := range []string{"api-1", "web-1"} {
		if r := l.awaitState(id, stateReady); r.GetAttempt() != 1 {
			t.Errorf("%s is in attempt %d", id, r.GetAttempt())
		}
	}

	// A server that gave a name twice would not break the rest.
	become(named([]string{"api.example", "same.example"}, []string{"same.example"}, 443))
	l.poll("the name is one's", func() bool {
		return slices.Equal(routes("0.0.0.0:443"), []string{"api.example api-1 10.100.0.2:8443", "same.example api-1 10.100.0.2:8443"})
	})
}

func TestWithRoutes(t *testing.T) {
	route := func(id string, names ...string) proxy.Route {
		return proxy.Route{ID: id, Names: names, Backends: []proxy.Backend{{ID: id}}}
	}
	got := withRoutes(nil, []proxy.Route{route("a", "a.example")})
	got = withRoutes(got, []proxy.Route{route("a", "a.example", "new.example")})
	got = withRoutes(got, []proxy.Route{route("b", "a.example"), route("c", "a.example", "c.example")})
	if len(got) != 2 || len(got[0].Backends) != 2 || !slices.Equal(got[0].Names, []string{"a.example", "new.example"}) || got[1].ID != "c" || !slices.Equal(got[1].Names, []string{"c.example"}) {
		t.Errorf("got %+v", got)
	}
}
