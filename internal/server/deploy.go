package server

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *control) Deploy(ctx context.Context, req *connect.Request[pb.DeployRequest]) (*connect.Response[pb.DeployResponse], error) {
	id, repeated, err := c.startedBy(ctx, "deploy", req.Msg.GetEnvironment(), req.Msg.GetIdempotencyKey(), func(d *fleet.Deployment) bool {
		return refersTo(req.Msg.GetRelease(), d.Release)
	})
	if err != nil || repeated != nil {
		return connect.NewResponse(&pb.DeployResponse{Deployment: deploymentProto(repeated)}), c.onWire(ctx, err)
	}
	var p *proposal
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		var r *fleet.Release
		if r, err = findRelease(ctx, st, req.Msg.GetRelease()); err != nil {
			return
		}
		p, err = c.propose(st, req.Msg.GetEnvironment(), r, nil, c.now(), true)
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if want := req.Msg.GetPlanToken(); want != "" && want != p.token {
		return nil, refuse(connect.CodeAborted, "the plan %s is stale: something was deployed, stopped or has ended since. Plan again", want)
	}
	if p.unchanged {
		return connect.NewResponse(&pb.DeployResponse{Deployment: deploymentProto(p.live), Unchanged: true}), nil
	}
	d, err := c.start(ctx, p.started(id))
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.DeployResponse{Deployment: deploymentProto(d)}), nil
}

func (c *control) Rollback(ctx context.Context, req *connect.Request[pb.RollbackRequest]) (*connect.Response[pb.RollbackResponse], error) {
	id, repeated, err := c.startedBy(ctx, "rollback", req.Msg.GetEnvironment(), req.Msg.GetIdempotencyKey(), func(d *fleet.Deployment) bool {
		return d.App == req.Msg.GetApp() && (req.Msg.GetDeployment() == "" || req.Msg.GetDeployment() == d.Target)
	})
	if err != nil || repeated != nil {
		return connect.NewResponse(&pb.RollbackResponse{Deployment: deploymentProto(repeated)}), c.onWire(ctx, err)
	}
	var p *proposal
	c.ledger.read(func(st *fleet.State) {
		p, err = c.proposeRollback(st, req.Msg.GetEnvironment(), req.Msg.GetApp(), req.Msg.GetDeployment(), req.Msg.GetSecrets())
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if p.unchanged {
		return connect.NewResponse(&pb.RollbackResponse{Deployment: deploymentProto(p.live)}), nil
	}
	d, err := c.start(ctx, p.started(id), p.restored...)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.RollbackResponse{Deployment: deploymentProto(d)}), nil
}

// Which secrets a rollback takes.
const (
	secretsThen = "then"
	secretsNow  = "now"
)

// proposeRollback proposes to restore a deployment record: its release, vars and secrets, with today's count.
func (c *control) proposeRollback(st *fleet.State, environment, name, deployment, secrets string) (*proposal, error) {
	app, err := appIn(st, environment, name)
	if err != nil {
		return nil, err
	}
	if active := st.Deployment(app.Active); active != nil {
		return nil, &fleet.BusyError{Active: active}
	}
	target, err := st.RollbackTarget(app, deployment)
	if err != nil {
		return nil, connect.NewError(codeOf(err), err)
	}
	newest := secrets == secretsNow
	if !newest && secrets != "" && secrets != secretsThen {
		return nil, refuse(connect.CodeInvalidArgument, "secrets %q: want %q for those that the deployment had, or %q for the newest", cut(secrets), secretsThen, secretsNow)
	}
	p, err := c.propose(st, environment, st.Release(target.Release), target, c.now(), newest)
	if err == nil {
		p.restored = restoredVars(st.Environment(environment), target)
	}
	return p, err
}

func (c *control) Stop(ctx context.Context, req *connect.Request[pb.StopRequest]) (*connect.Response[pb.StopResponse], error) {
	id, repeated, err := c.startedBy(ctx, "stop", req.Msg.GetEnvironment(), req.Msg.GetIdempotencyKey(), func(d *fleet.Deployment) bool { return d.App == req.Msg.GetApp() })
	if err != nil || repeated != nil {
		return connect.NewResponse(&pb.StopResponse{Deployment: deploymentProto(repeated)}), c.onWire(ctx, err)
	}
	var (
		live *fleet.Deployment
		stop *fleet.DeploymentStarted
	)
	c.ledger.read(func(st *fleet.State) {
		var app *fleet.App
		if app, err = appIn(st, req.Msg.GetEnvironment(), req.Msg.GetApp()); err != nil {
			return
		}
		live = st.Deployment(app.Live)
		last := live
		if last == nil {
			last = st.Deployment(app.Latest)
		}
		if last.Kind == fleet.KindStop && app.Active == "" && len(app.Instances) == 0 {
			return // it is stopped
		}
		stop = &fleet.DeploymentStarted{
			Deployment: id, Environment: app.Environment, App: app.Name, Kind: fleet.KindStop, Release: string(last.Release), Vars: last.Vars, Previous: app.Live,
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if stop == nil {
		return connect.NewResponse(&pb.StopResponse{Deployment: deploymentProto(live)}), nil
	}
	d, err := c.start(ctx, stop)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.StopResponse{Deployment: deploymentProto(d)}), nil
}

// start appends the beginning of a deployment, with what comes before it. Whatever changed since it was proposed, the
// fold finds out.
func (c *control) start(ctx context.Context, e *fleet.DeploymentStarted, before ...fleet.Payload) (d *fleet.Deployment, err error) {
	if err := c.ledger.append(ctx, actorOf(ctx), "", append(slices.Clone(before), e)...); err != nil {
		return nil, err
	}
	c.ledger.read(func(st *fleet.State) { d = st.Deployment(e.Deployment) })
	return d, nil
}

// deploymentID draws the id of a deployment. A caller that gave an idempotency key gets the same id for it each
// time, and the deployment when it exists: a repeated request starts nothing.
func (c *control) deploymentID(kind, environment, key string) (id string, repeated *fleet.Deployment, err error) {
	if key == "" {
		id, err = c.newID("dep")
		return id, nil, err
	}
	id = keyedDeployment(kind, environment, key)
	c.ledger.read(func(st *fleet.State) { repeated = st.Deployment(id) })
	return id, repeated, nil
}

func keyedDeployment(kind, environment, key string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + environment + "\x00" + key))
	return fmt.Sprintf("dep-%x", sum[:6])
}

// startingKinds are the requests that start a deployment each, and nothing else.
var startingKinds = []string{"deploy", "rollback", "stop", "restart", "scale"}

// startedBy is deploymentID for the kinds of requests that start a deployment and nothing else. A key that another of
// them came with is refused: of another kind, to another environment that the caller sees, or with a content for which
// same is false.
func (c *control) startedBy(ctx context.Context, kind, environment, key string, same func(*fleet.Deployment) bool) (id string, repeated *fleet.Deployment, err error) {
	id, repeated, err = c.deploymentID(kind, environment, key)
	if err != nil || key == "" {
		return id, repeated, err
	}
	if repeated != nil {
		if !same(repeated) {
			return "", nil, errOtherRequest()
		}
		return id, repeated, nil
	}
	c.ledger.read(func(st *fleet.State) {
		for _, env := range visible(st, callerOf(ctx)) {
			for _, other := range startingKinds {
				if st.Deployment(keyedDeployment(other, env.Name, key)) != nil {
					err = errOtherRequest()
				}
			}
		}
	})
	return id, nil, err
}

// refersTo tells whether a reference to a release, of those that findRelease takes, can be to this one.
func refersTo(ref string, id release.ID) bool {
	digits := strings.TrimPrefix(string(id), "sha256:")
	return ref == string(id) || strings.HasPrefix(ref, "rel-") && strings.HasPrefix(digits, strings.TrimPrefix(ref, "rel-"))
}

// appIn finds an app in an environment.
func appIn(st *fleet.State, environment, name string) (*fleet.App, error) {
	if _, err := environmentIn(st, environment); err != nil {
		return nil, err
	}
	app := st.App(environment, name)
	if app == nil {
		return nil, refuse(connect.CodeNotFound, "app %q was never deployed to %s: see `pinnace status -e %s`", name, environment, environment)
	}
	return app, nil
}

func deploymentProto(d *fleet.Deployment) *pb.Deployment {
	if d == nil {
		return nil
	}
	return &pb.Deployment{
		Id: d.ID, Environment: d.Environment, App: d.App, Release: string(d.Release), Count: uint32(d.Count), Kind: string(d.Kind),
		State: string(d.State), Reason: d.Reason, Previous: d.Previous, Actor: d.Actor,
		StartedAt: timestampOrNil(d.StartedAt), EndedAt: timestampOrNil(d.EndedAt), PausedAt: timestampOrNil(d.PausedAt),
	}
}
