package server

import (
	"context"
	"slices"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *control) SetRoute(ctx context.Context, req *connect.Request[pb.SetRouteRequest]) (*connect.Response[pb.SetRouteResponse], error) {
	r := req.Msg.GetRoute()
	event := &fleet.RouteSet{
		Environment: req.Msg.GetEnvironment(), App: r.GetApp(), Port: r.GetPort(), Address: r.GetAddress(), PublicPort: int(r.GetPublicPort()),
	}
	for _, name := range r.GetNames() {
		event.Names = append(event.Names, strings.TrimSuffix(strings.ToLower(name), "."))
	}
	slices.Sort(event.Names)
	event.Names = slices.Compact(event.Names)
	route := fleet.Route{Address: event.Address, PublicPort: event.PublicPort, Names: event.Names}
	if err := fleet.CheckRoute(event.App, event.Port, route); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	out := &pb.SetRouteResponse{}
	key := requestKey("route", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.RouteSet) bool {
		return p.Environment == event.Environment && p.App == event.App && p.Port == event.Port
	})
	if err != nil || repeated {
		return connect.NewResponse(out), err
	}
	c.ledger.read(func(st *fleet.State) {
		var env *fleet.Environment
		if env, err = environmentIn(st, event.Environment); err != nil {
			return
		}
		known, ok := env.Route(event.App, event.Port)
		out.Unchanged = ok && known.Address == route.Address && known.PublicPort == route.PublicPort && slices.Equal(known.Names, route.Names)
		out.Idle, err = fitsPort(st, event)
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if !out.Unchanged {
		if err := c.ledger.append(ctx, actorOf(ctx), key, event); err != nil {
			return nil, c.onWire(ctx, err)
		}
	}
	return connect.NewResponse(out), nil
}

// fitsPort says why what runs has no port for such a route; idle tells that nothing that runs has a port of that name.
func fitsPort(st *fleet.State, event *fleet.RouteSet) (idle bool, err error) {
	app := st.App(event.Environment, event.App)
	if app == nil {
		return true, nil
	}
	idle = true
	for _, r := range st.ReleasesInForce(app) {
		port, ok := r.Manifest.Ports[event.Port]
		if !ok {
			continue
		}
		idle = false
		switch {
		case port.Expose != manifest.ExposePublic:
			return false, refuse(connect.CodeFailedPrecondition, "ports.%s of %s has expose = %q: only a public port can be routed", event.Port, event.App, port.Expose)
		case port.Edge != manifest.EdgeSNI && len(event.Names) > 0:
			return false, refuse(connect.CodeFailedPrecondition, "ports.%s of %s has edge = %q: only with edge = \"sni\" are connections told apart by host names", event.Port, event.App, port.Edge)
		}
	}
	return idle, nil
}

func (c *control) UnsetRoute(ctx context.Context, req *connect.Request[pb.UnsetRouteRequest]) (*connect.Response[pb.UnsetRouteResponse], error) {
	if _, err := c.environment(req.Msg.GetEnvironment()); err != nil {
		return nil, err
	}
	event := &fleet.RouteUnset{Environment: req.Msg.GetEnvironment(), App: req.Msg.GetApp(), Port: req.Msg.GetPort()}
	key := requestKey("unroute", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.RouteUnset) bool { return *p == *event })
	if err == nil && !repeated {
		err = c.ledger.append(ctx, actorOf(ctx), key, event)
	}
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.UnsetRouteResponse{}), nil
}

func (c *control) ListRoutes(_ context.Context, req *connect.Request[pb.ListRoutesRequest]) (*connect.Response[pb.ListRoutesResponse], error) {
	env, err := c.environment(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	var all []*pb.Route
	for app, ports := range env.Routes {
		for port, r := range ports {
			all = append(all, &pb.Route{App: app, Port: port, Address: r.Address, PublicPort: uint32(r.PublicPort), Names: r.Names})
		}
	}
	key := func(r *pb.Route) string { return r.GetApp() + "/" + r.GetPort() }
	slices.SortFunc(all, func(a, b *pb.Route) int { return strings.Compare(key(a), key(b)) })
	out := &pb.ListRoutesResponse{}
	out.Routes, out.NextPageToken, err = pageOf(req.Msg, all, key, func(r *pb.Route) *pb.Route { return r })
	return connect.NewResponse(out), err
}

// assignedRoutes are where the public ports of an app are reached that the environment says something of.
func assignedRoutes(st *fleet.State, app *fleet.App) []*pb.AssignedRoute {
	var out []*pb.AssignedRoute
	seen := map[string]bool{}
	for _, r := range st.ReleasesInForce(app) {
		for _, e := range st.Endpoints(app.Environment, r) {
			if !e.Routed || seen[e.Name] {
				continue
			}
			seen[e.Name] = true
			out = append(out, &pb.AssignedRoute{Port: e.Name, Address: e.Address, PublicPort: uint32(e.PublicPort), Names: e.Names})
		}
	}
	slices.SortFunc(out, func(a, b *pb.AssignedRoute) int { return strings.Compare(a.GetPort(), b.GetPort()) })
	return out
}
