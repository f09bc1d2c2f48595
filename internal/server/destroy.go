package server

import (
	"context"
	"maps"
	"slices"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// DestroyApp ends an app in an environment, or says what would go.
func (c *control) DestroyApp(ctx context.Context, req *connect.Request[pb.DestroyAppRequest]) (*connect.Response[pb.DestroyAppResponse], error) {
	env, name := req.Msg.GetEnvironment(), req.Msg.GetApp()
	key := requestKey("destroy-app", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.AppDestroyed) bool { return p.Environment == env && p.App == name })
	if err != nil || repeated {
		return connect.NewResponse(&pb.DestroyAppResponse{Destruction: &pb.Destruction{Apps: []string{name}, Done: true}}), err
	}
	var out *pb.Destruction
	c.ledger.read(func(st *fleet.State) {
		var app *fleet.App
		if app, err = appIn(st, env, name); err == nil {
			out, err = c.wouldDestroy(st, env, []*fleet.App{app})
		}
	})
	if err == nil && req.Msg.GetConfirm() != "" {
		err = c.destroy(ctx, key, name, req.Msg.GetConfirm(), out, &fleet.AppDestroyed{Environment: env, App: name})
	}
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.DestroyAppResponse{Destruction: out}), nil
}

// DestroyEnvironment ends an environment with all of its apps, or says what would go.
func (c *control) DestroyEnvironment(ctx context.Context, req *connect.Request[pb.DestroyEnvironmentRequest]) (*connect.Response[pb.DestroyEnvironmentResponse], error) {
	name := req.Msg.GetEnvironment()
	key := requestKey("destroy-environment", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.EnvironmentDestroyed) bool { return p.Environment == name })
	if err != nil || repeated {
		return connect.NewResponse(&pb.DestroyEnvironmentResponse{Destruction: &pb.Destruction{Done: true}}), err
	}
	var out *pb.Destruction
	c.ledger.read(func(st *fleet.State) {
		var env *fleet.Environment
		if env, err = environmentIn(st, name); err != nil {
			return
		}
		if out, err = c.wouldDestroy(st, name, st.Apps(name)); err == nil {
			out.Settings = append(out.Settings, ownSettings(st, env)...)
		}
	})
	if err == nil && req.Msg.GetConfirm() != "" {
		err = c.destroy(ctx, key, name, req.Msg.GetConfirm(), out, &fleet.EnvironmentDestroyed{Environment: name})
	}
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.DestroyEnvironmentResponse{Destruction: out}), nil
}

// destroy appends what destroys, when the name was given that it takes.
func (c *control) destroy(ctx context.Context, key, name, confirm string, out *pb.Destruction, event fleet.Payload) error {
	if confirm != name {
		return refuse(connect.CodeInvalidArgument, "%q is not the name of what is to be destroyed, which is %q", cut(confirm), name)
	}
	out.Done = true
	return c.ledger.append(ctx, actorOf(ctx), key, event)
}

// wouldDestroy is what goes with apps of an environment. While a deployment is under way nothing of it can.
func (c *control) wouldDestroy(st *fleet.State, env string, apps []*fleet.App) (*pb.Destruction, error) {
	out := &pb.Destruction{Kept: []string{"the event log", "the releases, and the records of the deployments"}}
	now, named := c.now(), map[string]bool{}
	for _, app := range apps {
		switch active := st.Deployment(app.Active); {
		case active != nil:
			return nil, &fleet.BusyError{Active: active}
		case !app.DestroyedAt.IsZero():
			return nil, &fleet.DestroyedError{Environment: env, App: app.Name}
		}
		named[app.Name] = true
		out.Apps = append(out.Apps, app.Name)
		for _, i := range slices.Concat(st.Instances(env, app.Name), st.Runs(env, app.Name)) {
			out.Instances = append(out.Instances, i.ID)
		}
		settings := st.Environment(env)
		if settings.Placement[app.Name] != nil {
			out.Settings = append(out.Settings, "placement of "+app.Name)
		}
		for _, port := range slices.Sorted(maps.Keys(settings.Routes[app.Name])) {
			out.Settings = append(out.Settings, "route to port "+port+" of "+app.Name)
		}
	}
	for _, v := range st.Volumes(env) {
		if named[v.App] && v.DeletedAt.IsZero() {
			out.Volumes = append(out.Volumes, c.volumeProto(st, v, now))
		}
	}
	return out, nil
}

// ownSettings are names of what an environment has beside its apps.
func ownSettings(st *fleet.State, env *fleet.Environment) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(env.Vars)) {
		out = append(out, "variable "+name)
	}
	for _, b := range st.Bundles(env.Name) {
		out = append(out, "secrets "+b.Name)
	}
	for _, l := range st.Logins(env.Name) {
		if l.Environment == env.Name {
			out = append(out, "login at "+l.Registry)
		}
	}
	return out
}

// GetQuota answers with what the instances of an environment may have together, and have.
func (c *control) GetQuota(ctx context.Context, req *connect.Request[pb.GetQuotaRequest]) (*connect.Response[pb.GetQuotaResponse], error) {
	out := &pb.GetQuotaResponse{}
	var err error
	c.ledger.read(func(st *fleet.State) {
		var env *fleet.Environment
		if env, err = environmentIn(st, req.Msg.GetEnvironment()); err == nil {
			out.Quota, out.Booked = quotaProto(env.Quota), quotaProto(st.Booked(env.Name))
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}

// SetQuota bounds what the instances of an environment may have together.
func (c *control) SetQuota(ctx context.Context, req *connect.Request[pb.SetQuotaRequest]) (*connect.Response[pb.SetQuotaResponse], error) {
	name, q := req.Msg.GetEnvironment(), req.Msg.GetQuota()
	event := &fleet.QuotaSet{Environment: name, Quota: fleet.Quota{Instances: int(q.GetInstances()), MemoryBytes: q.GetMemoryBytes(), CPUMilli: q.GetCpuMilli()}}
	if q.GetMemoryBytes() < 0 || q.GetCpuMilli() < 0 {
		return nil, refuse(connect.CodeInvalidArgument, "a quota of %d bytes and %d thousandths of a processor: neither can be negative", q.GetMemoryBytes(), q.GetCpuMilli())
	}
	key := requestKey("quota", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.QuotaSet) bool { return *p == *event })
	if err != nil {
		return nil, err
	}
	env, err := c.environment(name)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	out := &pb.SetQuotaResponse{Unchanged: env.Quota == event.Quota && !repeated}
	if !out.Unchanged && !repeated {
		if err := c.ledger.append(ctx, actorOf(ctx), key, event); err != nil {
			return nil, c.onWire(ctx, err)
		}
	}
	c.ledger.read(func(st *fleet.State) {
		out.Booked = quotaProto(st.Booked(name))
		if env := st.Environment(name); env != nil {
			out.Quota = quotaProto(env.Quota)
		}
	})
	return connect.NewResponse(out), nil
}

func quotaProto(q fleet.Quota) *pb.Quota {
	return &pb.Quota{Instances: uint32(q.Instances), MemoryBytes: q.MemoryBytes, CpuMilli: q.CPUMilli}
}
