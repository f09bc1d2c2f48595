package server

import (
	"context"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// varsFor are the variables that a manifest asks its environment for. All that are missing are named at once.
func varsFor(env *fleet.Environment, m *manifest.Manifest) (map[string]string, error) {
	var vars map[string]string
	var missing []string
	for _, name := range m.Vars {
		value, ok := env.Vars[name]
		if !ok {
			missing = append(missing, name)
			continue
		}
		if vars == nil {
			vars = map[string]string{}
		}
		vars[name] = value
	}
	if len(missing) > 0 {
		return nil, refuse(connect.CodeFailedPrecondition, "environment %s lacks variables that %s needs: %s. Set them: pinnace vars set -e %s %s=…",
			env.Name, m.Name, strings.Join(missing, ", "), env.Name, strings.Join(missing, "=… "))
	}
	return vars, nil
}

// restoredVars are the variables that a rollback brings back for later deployments, too; none when they are as they
// were.
func restoredVars(env *fleet.Environment, target *fleet.Deployment) []fleet.Payload {
	changed := &fleet.VarsChanged{Environment: env.Name, Set: map[string]string{}, Restored: target.ID}
	for name, value := range target.Vars {
		if now, ok := env.Vars[name]; !ok || now != value {
			changed.Set[name] = value
		}
	}
	if len(changed.Set) == 0 {
		return nil
	}
	return []fleet.Payload{changed}
}

func (c *control) ListVars(_ context.Context, req *connect.Request[pb.ListVarsRequest]) (*connect.Response[pb.ListVarsResponse], error) {
	env, err := c.environment(req.Msg.GetEnvironment())
	if err != nil {
		return nil, err
	}
	name := func(name string) string { return name }
	one := func(name string) *pb.ListVarsResponse {
		return &pb.ListVarsResponse{Vars: map[string]string{name: env.Vars[name]}}
	}
	page, next, err := pageOf(req.Msg, slices.Sorted(maps.Keys(env.Vars)), name, one)
	out := &pb.ListVarsResponse{Vars: map[string]string{}, NextPageToken: next}
	for _, v := range page {
		maps.Copy(out.Vars, v.Vars)
	}
	return connect.NewResponse(out), err
}

func (c *control) SetVars(ctx context.Context, req *connect.Request[pb.SetVarsRequest]) (*connect.Response[pb.SetVarsResponse], error) {
	var (
		events []fleet.Payload
		ids    []string
		out    = &pb.SetVarsResponse{}
	)
	key := requestKey("vars", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.VarsChanged) bool { return madeBy(p, req.Msg) })
	if err != nil {
		return nil, err
	}
	c.ledger.read(func(st *fleet.State) {
		if repeated {
			ids, err = c.startedByVars(st, req.Msg)
		} else {
			events, ids, err = c.proposeVars(st, req.Msg, out)
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if len(events) > 0 {
		if err := c.ledger.append(ctx, actorOf(ctx), key, events...); err != nil {
			return nil, c.onWire(ctx, err)
		}
	}
	out.Unchanged = len(events) == 0 && !repeated
	c.ledger.read(func(st *fleet.State) {
		for _, id := range ids {
			out.Deployments = append(out.Deployments, deploymentProto(st.Deployment(id)))
		}
	})
	return connect.NewResponse(out), nil
}

// madeBy tells whether a change of variables can be what came of a request: it has nothing in it that the request has not.
func madeBy(p *fleet.VarsChanged, req *pb.SetVarsRequest) bool {
	for name, value := range p.Set {
		if asked, ok := req.GetSet()[name]; !ok || asked != value {
			return false
		}
	}
	for _, name := range p.Unset {
		if !slices.Contains(req.GetUnset(), name) {
			return false
		}
	}
	return p.Environment == req.GetEnvironment()
}

// startedByVars are the deployments that a request started which is made again.
func (c *control) startedByVars(st *fleet.State, req *pb.SetVarsRequest) (ids []string, err error) {
	for _, app := range st.Apps(req.GetEnvironment()) {
		id, _, err := c.deploymentID("vars/"+app.Name, req.GetEnvironment(), req.GetIdempotencyKey())
		if err != nil {
			return nil, err
		}
		if st.Deployment(id) != nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// proposeVars gives the events of a change of variables, none when nothing changes, and the ids of the deployments among
// them. Apps that are left as they are it notes in out.
func (c *control) proposeVars(st *fleet.State, req *pb.SetVarsRequest, out *pb.SetVarsResponse) (events []fleet.Payload, ids []string, err error) {
	env, err := environmentIn(st, req.GetEnvironment())
	if err != nil {
		return nil, nil, err
	}
	after := *env
	after.Vars = maps.Clone(env.Vars)
	if after.Vars == nil {
		after.Vars = map[string]string{}
	}
	changed := &fleet.VarsChanged{Environment: env.Name, Set: map[string]string{}}
	for name, value := range req.GetSet() {
		if now, ok := env.Vars[name]; !ok || now != value {
			changed.Set[name] = value
		}
	}
	for _, name := range req.GetUnset() {
		if _, ok := req.GetSet()[name]; ok {
			return nil, nil, refuse(connect.CodeInvalidArgument, "variable %s is to be set and unset", name)
		}
		if _, ok := env.Vars[name]; ok {
			changed.Unset = append(changed.Unset, name)
			delete(after.Vars, name)
		}
	}
	maps.Copy(after.Vars, changed.Set)
	if len(changed.Set)+len(changed.Unset) == 0 {
		return nil, nil, nil
	}
	if err := fleet.CheckVars(after.Vars); err != nil {
		return nil, nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	slices.Sort(changed.Unset)
	events = append(events, changed)
	for _, app := range st.Apps(env.Name) {
		live := st.Deployment(app.Live)
		if live == nil || live.Count == 0 {
			continue
		}
		r := st.Release(live.Release)
		vars, err := varsFor(&after, r.Manifest)
		if err != nil {
			return nil, nil, refuse(connect.CodeFailedPrecondition, "%s is live in %s and needs %s: deploy a release without first", app.Name, env.Name, strings.Join(changed.Unset, ", "))
		}
		if maps.Equal(vars, live.Vars) {
			continue
		}
		if req.GetNoDeploy() {
			out.Pending = append(out.Pending, app.Name)
			continue
		}
		if active := st.Deployment(app.Active); active != nil {
			return nil, nil, &fleet.BusyError{Active: active}
		}
		if err := c.reachVolumes(st, env.Name, r.Manifest, live.Count, c.now()); err != nil {
			return nil, nil, unchangedFor(app, err)
		}
		id, _, err := c.deploymentID("vars/"+app.Name, env.Name, req.GetIdempotencyKey())
		if err != nil {
			return nil, nil, err
		}
		ids = append(ids, id)
		events = append(events, &fleet.DeploymentStarted{
			Deployment: id, Environment: env.Name, App: app.Name, Kind: fleet.KindSettings, Release: string(live.Release), Count: live.Count,
			Vars: vars, Secrets: maps.Clone(live.Secrets), Previous: live.ID,
		})
	}
	return events, ids, nil
}
