package server

import (
	"context"
	"maps"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// aborted is the reason of a deployment that a person turned back.
const aborted = "it was aborted"

func (c *control) Steer(ctx context.Context, req *connect.Request[pb.SteerRequest]) (*connect.Response[pb.SteerResponse], error) {
	key := requestKey("steer/"+req.Msg.GetSteering().String(), req.Msg.GetIdempotencyKey())
	d, err := c.steered(ctx, key, req.Msg)
	if err != nil {
		return nil, err
	}
	if d != nil {
		return connect.NewResponse(&pb.SteerResponse{Deployment: deploymentProto(d)}), nil
	}
	c.ledger.read(func(st *fleet.State) {
		var app *fleet.App
		if app, err = appIn(st, req.Msg.GetEnvironment(), req.Msg.GetApp()); err != nil {
			return
		}
		if d = st.Deployment(app.Active); d == nil {
			err = refuse(connect.CodeFailedPrecondition, "no deployment of %s in %s is under way", app.Name, app.Environment)
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	event, err := steer(d, req.Msg.GetSteering())
	if err != nil {
		return nil, err
	}
	if event != nil {
		err := c.ledger.append(ctx, actorOf(ctx), key, event)
		if isRejected(err) {
			return nil, refuse(connect.CodeAborted, "deployment %s has gone on or ended meanwhile", d.ID)
		}
		if err != nil {
			return nil, c.onWire(ctx, err)
		}
	}
	c.ledger.read(func(st *fleet.State) { d = st.Deployment(d.ID) })
	return connect.NewResponse(&pb.SteerResponse{Deployment: deploymentProto(d)}), nil
}

// steered is the deployment that a request was about which is made again; nil when it is the first.
func (c *control) steered(ctx context.Context, key string, req *pb.SteerRequest) (d *fleet.Deployment, err error) {
	same := func(id string) (ok bool) {
		c.ledger.read(func(st *fleet.State) { d = st.Deployment(id) })
		return d != nil && d.Environment == req.GetEnvironment() && d.App == req.GetApp()
	}
	switch req.GetSteering() {
	case pb.Steering_STEERING_PAUSE:
		_, _, err = once(ctx, c, key, func(p *fleet.DeploymentPaused) bool { return same(p.Deployment) })
	case pb.Steering_STEERING_RESUME:
		_, _, err = once(ctx, c, key, func(p *fleet.DeploymentResumed) bool { return same(p.Deployment) })
	case pb.Steering_STEERING_ABORT:
		_, _, err = once(ctx, c, key, func(p *fleet.DeploymentTurnedBack) bool { return same(p.Deployment) })
	case pb.Steering_STEERING_UNSPECIFIED:
	}
	return d, err
}

// steer is the event of an intervention, nil when there is nothing to do.
func steer(d *fleet.Deployment, s pb.Steering) (fleet.Payload, error) {
	paused := !d.PausedAt.IsZero()
	switch s {
	case pb.Steering_STEERING_PAUSE:
		if paused {
			return nil, nil
		}
		return &fleet.DeploymentPaused{Deployment: d.ID}, nil
	case pb.Steering_STEERING_RESUME:
		if !paused {
			return nil, nil
		}
		return &fleet.DeploymentResumed{Deployment: d.ID}, nil
	case pb.Steering_STEERING_ABORT:
		switch {
		case d.Kind == fleet.KindStop:
			return nil, refuse(connect.CodeFailedPrecondition, "deployment %s stops %s, and there is no way back from that: deploy or roll back when it has ended", d.ID, d.App)
		case d.State == fleet.RollingBack:
			return nil, nil
		}
		return &fleet.DeploymentTurnedBack{Deployment: d.ID, Reason: aborted}, nil
	case pb.Steering_STEERING_UNSPECIFIED:
	}
	return nil, refuse(connect.CodeInvalidArgument, "nothing to do with deployment %s: pause, resume or abort it", d.ID)
}

func (c *control) Restart(ctx context.Context, req *connect.Request[pb.RestartRequest]) (*connect.Response[pb.RestartResponse], error) {
	id, repeated, err := c.startedBy(ctx, "restart", req.Msg.GetEnvironment(), req.Msg.GetIdempotencyKey(), func(d *fleet.Deployment) bool { return d.App == req.Msg.GetApp() })
	if err != nil || repeated != nil {
		return connect.NewResponse(&pb.RestartResponse{Deployment: deploymentProto(repeated)}), c.onWire(ctx, err)
	}
	var restart *fleet.DeploymentStarted
	c.ledger.read(func(st *fleet.State) {
		var app *fleet.App
		if app, err = appIn(st, req.Msg.GetEnvironment(), req.Msg.GetApp()); err != nil {
			return
		}
		live := st.Deployment(app.Live)
		switch active := st.Deployment(app.Active); {
		case active != nil:
			err = &fleet.BusyError{Active: active}
		case live == nil || live.Count == 0:
			err = refuse(connect.CodeFailedPrecondition, "nothing of %s is live in %s: there is nothing to restart", app.Name, app.Environment)
		default:
			if err = c.reachVolumes(st, app.Environment, st.Release(live.Release).Manifest, live.Count, c.now()); err != nil {
				return
			}
			restart = &fleet.DeploymentStarted{
				Deployment: id, Environment: app.Environment, App: app.Name, Kind: fleet.KindRestart, Release: string(live.Release), Count: live.Count,
				Vars: maps.Clone(live.Vars), Secrets: maps.Clone(live.Secrets), Previous: live.ID,
			}
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	d, err := c.start(ctx, restart)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.RestartResponse{Deployment: deploymentProto(d)}), nil
}
