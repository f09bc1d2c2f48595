package agent

import (
	"slices"

	"github.com/pinnacehq/pinnace/internal/proxy"
)

// byName makes a listener for one port into one that leads there only those who ask for one of the names.
func byName(l *proxy.Listener, id string, names []string) {
	l.Routes = []proxy.Route{{ID: id, Names: slices.Clone(names), Backends: l.Backends, ProxyProtocol: l.ProxyProtocol}}
	l.Protocol, l.Backends, l.ProxyProtocol = proxy.SNI, nil, ""
}

// withRoutes adds routes to those of a listener. Members of one app share a route. A name that another route has stays
// there: the server gives no name twice, and if it did, the proxy would refuse all of its configuration.
func withRoutes(routes, more []proxy.Route) []proxy.Route {
	for _, r := range more {
		same := slices.IndexFunc(routes, func(have proxy.Route) bool { return have.ID == r.ID })
		names := slices.DeleteFunc(slices.Clone(r.Names), func(name string) bool {
			return slices.ContainsFunc(routes, func(have proxy.Route) bool { return slices.Contains(have.Names, name) })
		})
		switch {
		case same >= 0:
			routes[same].Backends = append(routes[same].Backends, r.Backends...)
			routes[same].Names = append(routes[same].Names, names...)
		case len(names) > 0:
			r.Names = names
			routes = append(routes, r)
		}
	}
	return routes
}
