package fleet

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// Bounds of the routes of an environment.
const (
	MaxRoutes     = 4096
	MaxRouteNames = 64
	maxHostName   = 253
)

// RouteSet says where a public port of an app is reached in an environment, instead of what its manifest says; in place
// of what was said before. The app need not have been deployed.
type RouteSet struct {
	Environment string   `json:"environment"`
	App         string   `json:"app"`
	Port        string   `json:"port"`
	Address     string   `json:"address,omitempty"`
	PublicPort  int      `json:"public_port,omitempty"`
	Names       []string `json:"names,omitempty"`
}

// RouteUnset leaves it to the manifest again.
type RouteUnset struct {
	Environment string `json:"environment"`
	App         string `json:"app"`
	Port        string `json:"port"`
}

// Route is where a port is reached.
type Route struct {
	// Address of the hosts to listen on; that of their agents when empty.
	Address string
	// PublicPort is the manifest's when 0.
	PublicPort int
	// Names are sorted host names, for TLS passed on by the name that clients ask for.
	Names []string
}

// Endpoint is a public port of a release as it is reached in an environment.
type Endpoint struct {
	Name       string // of the port in the manifest
	Port       manifest.Port
	Address    string // "" for that of the agents
	PublicPort int
	Names      []string
	// Routed is true when the environment says something of it.
	Routed bool
}

// EventType and EventVersion implement Payload.
func (*RouteSet) EventType() string      { return "route.set" }
func (*RouteUnset) EventType() string    { return "route.unset" }
func (*RouteSet) EventVersion() uint16   { return 1 }
func (*RouteUnset) EventVersion() uint16 { return 1 }

var (
	portShape     = regexp.MustCompile(`^[a-z][a-z0-9-]{0,14}$`)
	hostNameShape = regexp.MustCompile(`^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
)

// CheckRoute says why a port cannot have such a route. Names have to be sorted.
func CheckRoute(app, port string, r Route) error {
	switch {
	case !ValidName(app):
		return fmt.Errorf("app name %q: want %s", app, nameShape)
	case !portShape.MatchString(port):
		return fmt.Errorf("port name %q: want %s", port, portShape)
	case r.Address == "" && r.PublicPort == 0 && len(r.Names) == 0:
		return fmt.Errorf("ports.%s of %s: the route says nothing: give it an address, a public port or host names", port, app)
	case r.PublicPort < 0 || r.PublicPort > 65535:
		return fmt.Errorf("ports.%s of %s: public port %d is not within 1 and 65535", port, app, r.PublicPort)
	case len(r.Names) > MaxRouteNames:
		return fmt.Errorf("ports.%s of %s: %d host names, the most is %d", port, app, len(r.Names), MaxRouteNames)
	}
	if r.Address != "" {
		a, err := netip.ParseAddr(r.Address)
		if err != nil || a.Zone() != "" || a.IsMulticast() || a.String() != r.Address {
			return fmt.Errorf("ports.%s of %s: %q is not an IPv4 or IPv6 address of a host, in its usual form", port, app, r.Address)
		}
	}
	for i, name := range r.Names {
		_, numeric := netip.ParseAddr(name)
		switch {
		case len(name) > maxHostName || !hostNameShape.MatchString(name) || numeric == nil:
			return fmt.Errorf("ports.%s of %s: %.*q is not a host name in lower case, or *.NAME", port, app, maxHostName, name)
		case i > 0 && r.Names[i-1] >= name:
			return fmt.Errorf("ports.%s of %s: host names are not sorted, or %s comes twice", port, app, name)
		}
	}
	return nil
}

// Route returns what an environment says of a port of an app, and whether it says something.
func (e *Environment) Route(app, port string) (Route, bool) {
	r, ok := e.Routes[app][port]
	return r, ok
}

// Endpoints are the public ports of a release as they would be reached in an environment, by name.
func (s *State) Endpoints(environment string, r *Release) []Endpoint {
	return endpointsIn(s.environments.get(environment), r)
}

func endpointsIn(env *Environment, r *Release) []Endpoint {
	var out []Endpoint
	for _, name := range sortedPorts(r.Manifest) {
		port := r.Manifest.Ports[name]
		if port.Expose != manifest.ExposePublic {
			continue
		}
		e := Endpoint{Name: name, Port: port, PublicPort: port.PublicPort}
		if route, ok := env.Route(r.App, name); ok {
			e.Routed, e.Address = true, route.Address
			if route.PublicPort != 0 {
				e.PublicPort = route.PublicPort
			}
			if e.sni() {
				e.Names = route.Names
			}
		}
		out = append(out, e)
	}
	return out
}

// String is what people are told of where it is: "public port 443 (tcp) of 192.0.2.1 for shop.example".
func (e Endpoint) String() string {
	text := fmt.Sprintf("public port %d (%s)", e.PublicPort, e.Port.Protocol)
	if e.Address != "" {
		text += " of " + e.Address
	}
	if len(e.Names) > 0 {
		text += " for " + strings.Join(e.Names, ", ")
	}
	return text
}

func (e *Endpoint) sni() bool { return e.Port.Edge == manifest.EdgeSNI }

// meets tells whether two ports would listen at the same address, which "" and the unspecified ones share with all.
func (e *Endpoint) meets(o *Endpoint) bool {
	return e.Port.Protocol == o.Port.Protocol && e.PublicPort == o.PublicPort &&
		(e.Address == o.Address || anywhere(e.Address) || anywhere(o.Address))
}

func anywhere(address string) bool {
	return address == "" || netip.MustParseAddr(address).IsUnspecified()
}

// clash is why the two cannot both be there: a host name, the port itself, or nothing. Ports that are told apart by host
// names share an address only when it is the same for both.
func (e *Endpoint) clash(o *Endpoint, sameApp bool) (clashes bool, name string) {
	meet := e.meets(o)
	if !e.sni() || !o.sni() {
		return meet, ""
	}
	for _, n := range e.Names {
		if slices.Contains(o.Names, n) && (meet || !sameApp) {
			return true, n
		}
	}
	return meet && e.Address != o.Address, ""
}

// routesFit says why a release cannot be reached in an environment as its routes and its manifest say: another app has
// what it wants, two of its own ports want the same, or a port has no host name to be told apart by.
func (s *State) routesFit(env *Environment, r *Release) error {
	want := endpointsIn(env, r)
	if len(want) == 0 {
		return nil
	}
	for i := range want {
		w := &want[i]
		if w.sni() && len(w.Names) == 0 {
			return &NoRouteError{Environment: env.Name, App: r.App, PortName: w.Name}
		}
		for k := range want[:i] {
			if yes, name := w.clash(&want[k], true); yes {
				return &PortConflictError{PortName: w.Name, Protocol: w.Port.Protocol, PublicPort: w.PublicPort, HostName: name, Environment: env.Name, App: r.App}
			}
		}
	}
	for _, app := range s.apps.sorted() {
		if app.Environment == env.Name && app.Name == r.App {
			continue
		}
		for _, held := range s.ReleasesInForce(app) {
			have := s.Endpoints(app.Environment, held)
			for i := range want {
				for k := range have {
					if yes, name := want[i].clash(&have[k], false); yes {
						return &PortConflictError{
							PortName: want[i].Name, Protocol: want[i].Port.Protocol, PublicPort: want[i].PublicPort, HostName: name,
							Environment: app.Environment, App: app.Name,
						}
					}
				}
			}
		}
	}
	return nil
}

// routesInForceFit is routesFit for everything of an app that runs or is about to.
func (s *State) routesInForceFit(env *Environment, name string) error {
	app := s.App(env.Name, name)
	if app == nil {
		return nil
	}
	for _, r := range s.ReleasesInForce(app) {
		if err := s.routesFit(env, r); err != nil {
			return err
		}
	}
	return nil
}

func (p *RouteSet) fold(s *State, _ Event) error {
	env := s.environments.get(p.Environment)
	if env == nil {
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	}
	route := Route{Address: p.Address, PublicPort: p.PublicPort, Names: slices.Clone(p.Names)}
	if err := CheckRoute(p.App, p.Port, route); err != nil {
		return err
	}
	for _, other := range s.environments.sorted() {
		if err := holdsName(other, p); err != nil {
			return err
		}
	}
	changed := *env
	changed.Routes = withRoute(env.Routes, p.App, p.Port, &route)
	n := 0
	for _, ports := range changed.Routes {
		n += len(ports)
	}
	if n > MaxRoutes {
		return fmt.Errorf("environment %s: it has %d routes, and the most is %d", env.Name, n, MaxRoutes)
	}
	if err := s.routesInForceFit(&changed, p.App); err != nil {
		return err
	}
	s.environments.put(p.Environment, &changed)
	return nil
}

// holdsName says which app of an environment has a host name of a route already, deployed or not.
func holdsName(env *Environment, p *RouteSet) error {
	for _, app := range slices.Sorted(maps.Keys(env.Routes)) {
		if env.Name == p.Environment && app == p.App {
			continue
		}
		for _, port := range slices.Sorted(maps.Keys(env.Routes[app])) {
			for _, name := range p.Names {
				if slices.Contains(env.Routes[app][port].Names, name) {
					return &PortConflictError{PortName: p.Port, PublicPort: p.PublicPort, HostName: name, Environment: env.Name, App: app}
				}
			}
		}
	}
	return nil
}

func (p *RouteUnset) fold(s *State, _ Event) error {
	env := s.environments.get(p.Environment)
	if env == nil {
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	}
	if _, ok := env.Route(p.App, p.Port); !ok {
		return fmt.Errorf("route of ports.%s of %s in %s: %w", p.Port, p.App, p.Environment, ErrNotFound)
	}
	changed := *env
	changed.Routes = withRoute(env.Routes, p.App, p.Port, nil)
	if err := s.routesInForceFit(&changed, p.App); err != nil {
		return err
	}
	s.environments.put(p.Environment, &changed)
	return nil
}

// withRoute is a copy of routes with another one of a port, or without it.
func withRoute(routes map[string]map[string]Route, app, port string, route *Route) map[string]map[string]Route {
	all, ports := maps.Clone(routes), maps.Clone(routes[app])
	if all == nil {
		all = map[string]map[string]Route{}
	}
	if ports == nil {
		ports = map[string]Route{}
	}
	delete(ports, port)
	if route != nil {
		ports[port] = *route
	}
	if all[app] = ports; len(ports) == 0 {
		delete(all, app)
	}
	return all
}
