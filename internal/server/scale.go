package server

import (
	"context"
	"fmt"
	"maps"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

func (c *control) Scale(ctx context.Context, req *connect.Request[pb.ScaleRequest]) (*connect.Response[pb.ScaleResponse], error) {
	id, repeated, err := c.startedBy(ctx, "scale", req.Msg.GetEnvironment(), req.Msg.GetIdempotencyKey(), func(d *fleet.Deployment) bool {
		return d.App == req.Msg.GetApp() && d.Count == int(req.Msg.GetCount())
	})
	if err != nil || repeated != nil {
		return connect.NewResponse(&pb.ScaleResponse{Deployment: deploymentProto(repeated)}), c.onWire(ctx, err)
	}
	count := int(req.Msg.GetCount())
	if count < 1 || count > fleet.MaxCount {
		return nil, refuse(connect.CodeInvalidArgument, "%d instances: an app has 1 to %d; pinnace stop ends all of them", count, fleet.MaxCount)
	}
	var (
		live  *fleet.Deployment
		scale *fleet.DeploymentStarted
	)
	c.ledger.read(func(st *fleet.State) {
		live, scale, err = c.proposeScale(st, req.Msg.GetEnvironment(), req.Msg.GetApp(), count)
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if scale == nil {
		return connect.NewResponse(&pb.ScaleResponse{Deployment: deploymentProto(live), Unchanged: true}), nil
	}
	scale.Deployment = id
	d, err := c.start(ctx, scale)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.ScaleResponse{Deployment: deploymentProto(d)}), nil
}

// proposeScale checks everything that can be known before something is started. What it returns is nil when there are
// that many already.
func (c *control) proposeScale(st *fleet.State, environment, name string, count int) (live *fleet.Deployment, scale *fleet.DeploymentStarted, err error) {
	app, err := appIn(st, environment, name)
	if err != nil {
		return nil, nil, err
	}
	if active := st.Deployment(app.Active); active != nil {
		return nil, nil, &fleet.BusyError{Active: active}
	}
	live = st.Deployment(app.Live)
	switch {
	case live == nil:
		return nil, nil, refuse(connect.CodeFailedPrecondition, "no deployment of %s to %s has succeeded yet: there is nothing to scale", name, environment)
	case live.Count == 0:
		return nil, nil, refuse(connect.CodeFailedPrecondition, "%s is stopped in %s: deploy it, then scale it", name, environment)
	case live.Count == count && app.Count == count:
		return live, nil, nil
	}
	r, taken := st.Release(live.Release), map[int]bool{}
	if problems := r.Manifest.CheckCount(count); problems.HasErrors() {
		return nil, nil, refuse(connect.CodeInvalidArgument, "%s", list(problems.Errors()))
	}
	for _, i := range st.Instances(environment, name) {
		if i.Serves() && !i.Task {
			taken[i.Ordinal] = true
		}
	}
	var missing []int
	for o := range count {
		if !taken[o] {
			missing = append(missing, o)
		}
	}
	if _, err := c.schedule(st, environment, r, missing, c.now()); err != nil {
		return nil, nil, fmt.Errorf("scale %s to %d: %w", name, count, err)
	}
	return live, &fleet.DeploymentStarted{
		Environment: environment, App: name, Kind: fleet.KindScale, Release: string(live.Release), Count: count,
		Vars: maps.Clone(live.Vars), Secrets: maps.Clone(live.Secrets), Previous: live.ID,
	}, nil
}
