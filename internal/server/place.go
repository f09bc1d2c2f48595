package server

import (
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

func (c *control) ListPlacements(_ context.Context, req *connect.Request[pb.ListPlacementsRequest]) (*connect.Response[pb.ListPlacementsResponse], error) {
	env, err := c.environment(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	out := &pb.ListPlacementsResponse{}
	name := func(app string) string { return app }
	out.Placements, out.NextPageToken, err = pageOf(req.Msg, slices.Sorted(maps.Keys(env.Placement)), name, func(app string) *pb.Placement {
		return &pb.Placement{App: app, Labels: env.Placement[app]}
	})
	return connect.NewResponse(out), err
}

func (c *control) SetPlacement(ctx context.Context, req *connect.Request[pb.SetPlacementRequest]) (*connect.Response[pb.SetPlacementResponse], error) {
	event := &fleet.AppPlaced{Environment: req.Msg.GetEnvironment(), App: req.Msg.GetApp(), Labels: req.Msg.GetLabels()}
	if !fleet.ValidName(event.App) {
		return nil, refuse(connect.CodeInvalidArgument, "%q cannot be the name of an app", cut(event.App))
	}
	out := &pb.SetPlacementResponse{}
	key := requestKey("place", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.AppPlaced) bool {
		return p.Environment == event.Environment && p.App == event.App && maps.Equal(p.Labels, event.Labels)
	})
	if err != nil {
		return nil, err
	}
	if repeated {
		return connect.NewResponse(out), nil
	}
	c.ledger.read(func(st *fleet.State) {
		var env *fleet.Environment
		if env, err = environmentIn(st, event.Environment); err != nil {
			return
		}
		if out.Unchanged = maps.Equal(env.Placement[event.App], event.Labels); !out.Unchanged {
			out.Moving, err = c.wouldMove(st, event)
		}
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

// wouldMove are the instances that run where they would not be placed any more. The error says why there is no room for
// them elsewhere.
func (c *control) wouldMove(st *fleet.State, event *fleet.AppPlaced) (moving []string, err error) {
	app := st.App(event.Environment, event.App)
	if app == nil {
		return nil, nil
	}
	var live *fleet.Deployment
	if live = st.Deployment(app.Live); live == nil || live.Count == 0 {
		return nil, nil
	}
	var ordinals []int
	for _, i := range st.Instances(event.Environment, event.App) {
		if h := st.Host(i.Host); i.Serves() && !i.Task && (h == nil || !fleet.HasLabels(h, event.Labels)) {
			moving, ordinals = append(moving, i.ID), append(ordinals, i.Ordinal)
		}
	}
	r := st.Release(live.Release)
	_, err = c.placesBy(st, event.Environment, r.Manifest, architectures(r), event.Labels, ordinals, c.now())
	return moving, err
}
