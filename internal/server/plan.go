package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *control) Plan(ctx context.Context, req *connect.Request[pb.PlanRequest]) (*connect.Response[pb.PlanResponse], error) {
	var (
		p   *proposal
		err error
	)
	c.ledger.read(func(st *fleet.State) { p, err = c.proposeRequest(st, req.Msg) })
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	out := &pb.PlanResponse{Token: p.token, Release: string(p.release.ID), Changes: !p.unchanged, Warnings: p.warnings()}
	if p.live != nil && p.live.Count > 0 {
		out.LiveRelease = string(p.live.Release)
	}
	if !p.unchanged {
		out.Steps = p.steps()
	}
	return connect.NewResponse(out), nil
}

func (c *control) proposeRequest(st *fleet.State, req *pb.PlanRequest) (*proposal, error) {
	environment := req.GetEnvironment()
	if _, err := environmentIn(st, environment); err != nil {
		return nil, err
	}
	switch target := req.GetTarget().(type) {
	case *pb.PlanRequest_Release:
		r, err := findRelease(st, target.Release)
		if err != nil {
			return nil, err
		}
		return c.propose(st, environment, r, nil, c.now())
	case *pb.PlanRequest_Rollback:
		// The request names no app: the record does, and without one there must be only one app.
		id := target.Rollback.GetDeployment()
		if d := st.Deployment(id); d != nil {
			return c.proposeRollback(st, environment, d.App, id)
		}
		apps := st.Apps(environment)
		if id == "" && len(apps) == 1 {
			return c.proposeRollback(st, environment, apps[0].Name, "")
		}
		if id == "" {
			return nil, refuse(connect.CodeInvalidArgument, "%s has %d apps: name the deployment to go back to", environment, len(apps))
		}
		return nil, refuse(connect.CodeNotFound, "deployment %q does not exist", id)
	default:
		return nil, refuse(connect.CodeInvalidArgument, "nothing to plan: name a release or a deployment to go back to")
	}
}

// steps are what a deployment would do, in order, as long as everything goes well.
func (p *proposal) steps() []*pb.Step {
	var steps []*pb.Step
	add := func(action, instance string, ordinal int, host, format string, args ...any) {
		steps = append(steps, &pb.Step{Action: action, Instance: instance, Ordinal: uint32(ordinal), Host: host, Text: fmt.Sprintf(format, args...)})
	}
	m := p.release.Manifest
	var old []*fleet.Instance
	for _, i := range p.running {
		if i.Serves() {
			old = append(old, i)
		}
	}
	for o := range p.count {
		host, where := "", "a host to be chosen then"
		if o < len(p.hosts) {
			host, where = p.hosts[o], p.hosts[o]
		}
		add("start", "", o, host, "start %s/%d of %s on %s", p.release.App, o, p.release.ID.Short(), where)
		add("ready", "", o, host, "wait until %s/%d is ready, at most %s after its VM started", p.release.App, o, m.Rollout.BootTimeout)
		if m.Rollout.Hold > 0 {
			add("hold", "", o, host, "%s/%d must stay ready for %s", p.release.App, o, m.Rollout.Hold)
		}
		if len(old) > max(p.count-o-1, 0) {
			gone := old[:len(old)-max(p.count-o-1, 0)]
			for _, i := range gone {
				add("stop", i.ID, i.Ordinal, i.Host, "stop %s of %s", i.ID, i.Release.Short())
			}
			old = old[len(gone):]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Ports)) {
		if port := m.Ports[name]; port.Expose == manifest.ExposePublic {
			add("route", "", 0, "", "public port %d (%s) leads to ports.%s", port.PublicPort, port.Protocol, name)
		}
	}
	return steps
}

// codeOf is NotFound for what does not exist, and FailedPrecondition for what exists and does not fit.
func codeOf(err error) connect.Code {
	if errors.Is(err, fleet.ErrNotFound) {
		return connect.CodeNotFound
	}
	return connect.CodeFailedPrecondition
}
