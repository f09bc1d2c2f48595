package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/rollout"
)

func (c *control) Plan(ctx context.Context, req *connect.Request[pb.PlanRequest]) (*connect.Response[pb.PlanResponse], error) {
	var (
		p   *proposal
		err error
	)
	c.ledger.read(func(st *fleet.State) { p, err = c.proposeRequest(ctx, st, req.Msg) })
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

func (c *control) proposeRequest(ctx context.Context, st *fleet.State, req *pb.PlanRequest) (*proposal, error) {
	environment := req.GetEnvironment()
	if _, err := environmentIn(st, environment); err != nil {
		return nil, err
	}
	switch target := req.GetTarget().(type) {
	case *pb.PlanRequest_Release:
		r, err := findRelease(ctx, st, target.Release)
		if err != nil {
			return nil, err
		}
		return c.propose(st, environment, r, nil, c.now(), true)
	case *pb.PlanRequest_Rollback:
		// The request names no app: the record does, and without one there must be only one app.
		id, secrets := target.Rollback.GetDeployment(), target.Rollback.GetSecrets()
		if d := st.Deployment(id); d != nil && d.Environment == environment {
			return c.proposeRollback(st, environment, d.App, id, secrets)
		}
		apps := st.Apps(environment)
		if id == "" && len(apps) == 1 {
			return c.proposeRollback(st, environment, apps[0].Name, "", secrets)
		}
		if id == "" {
			return nil, refuse(connect.CodeInvalidArgument, "%s has %d apps: name the deployment to go back to", environment, len(apps))
		}
		return nil, noDeployment(id)
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
	m, started := p.release.Manifest, 0
	hosts := map[int]string{} // of ordinals
	for _, name := range slices.Sorted(maps.Keys(p.secrets)) {
		add("secrets", "", 0, "", "version %d of the secrets %s", p.secrets[name], name)
	}
	for _, step := range rollout.Foresee(p.view()) {
		name := fmt.Sprintf("%s/%d", p.release.App, step.Ordinal)
		switch {
		case step.Side == rollout.Task && step.Kind == rollout.StepStart:
			add("before", "", 0, "", "run %s once, for at most %s; when it fails nothing is touched", strings.Join(m.Rollout.Before.Command, " "), m.Rollout.Before.Timeout)
		case step.Side == rollout.Task:
		case step.Kind == rollout.StepStart:
			where := "a host to be chosen then"
			if host, ok := p.bound[step.Ordinal]; ok {
				hosts[step.Ordinal], where = host, host
			} else if started < len(p.hosts) {
				hosts[step.Ordinal], where = p.hosts[started], p.hosts[started]
			}
			started++
			add("start", "", step.Ordinal, hosts[step.Ordinal], "start %s of %s on %s%s", name, p.release.ID.Short(), where, p.volumesOf(step.Ordinal))
		case step.Kind == rollout.StepReady:
			add("ready", "", step.Ordinal, hosts[step.Ordinal], "wait until %s is ready, at most %s after its VM started", name, m.Rollout.BootTimeout)
		case step.Kind == rollout.StepHeld:
			add("hold", "", step.Ordinal, hosts[step.Ordinal], "%s must stay ready for %s", name, m.Rollout.Hold)
		case step.Kind == rollout.StepSwitch:
			add("switch", "", 0, "", "lead connections to %s, and no new ones to what served before", p.release.ID.Short())
		default:
			i := p.instance(step.Instance)
			if step.Kind == rollout.StepStop {
				add("stop", i.ID, i.Ordinal, i.Host, "stop %s of %s", i.ID, i.Release.Short())
			} else {
				add("ended", i.ID, i.Ordinal, i.Host, "wait until %s has ended", i.ID)
			}
		}
	}
	for _, e := range p.endpoints {
		add("route", "", 0, "", "%s leads to ports.%s", e, e.Name)
	}
	return steps
}

// view is what package rollout needs to know of a deployment that would be started now.
func (p *proposal) view() rollout.View {
	m := p.release.Manifest
	v := rollout.View{
		Count: p.count, MaxParallel: m.Rollout.MaxParallel, BootTimeout: m.Rollout.BootTimeout, Hold: m.Rollout.Hold, Deadline: m.Rollout.Deadline,
		HasPrevious: p.live != nil, Since: p.now,
	}
	takeOver(&v, m, p.kind)
	if p.live != nil {
		v.PreviousCount = p.live.Count
	}
	for _, i := range p.running {
		side := rollout.Other
		if p.live != nil && i.Deployment == p.live.ID {
			side = rollout.Previous
		}
		old := rollout.Instance{ID: i.ID, Ordinal: i.Ordinal, Side: side, Stopping: i.Stop, Reachable: true, StartedAt: i.FirstStartedAt, EverReady: i.ReadyAttempt > 0}
		if p.ready[i.ID] {
			old.Ready, old.ReadySince = true, i.ReadyAt
		}
		v.Instances = append(v.Instances, old)
	}
	return v
}

// volumesOf is what to say of the volumes of an instance.
func (p *proposal) volumesOf(ordinal int) string {
	if ordinal < len(p.volumes) {
		return p.volumes[ordinal]
	}
	return ""
}

func (p *proposal) instance(id string) *fleet.Instance {
	for _, i := range p.running {
		if i.ID == id {
			return i
		}
	}
	return nil
}

// codeOf is NotFound for what does not exist, and FailedPrecondition for what exists and does not fit.
func codeOf(err error) connect.Code {
	if errors.Is(err, fleet.ErrNotFound) {
		return connect.CodeNotFound
	}
	return connect.CodeFailedPrecondition
}
