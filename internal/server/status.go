package server

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *control) GetStatus(ctx context.Context, req *connect.Request[pb.GetStatusRequest]) (*connect.Response[pb.GetStatusResponse], error) {
	out := &pb.GetStatusResponse{}
	var err error
	now := c.now()
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		if name := req.Msg.GetApp(); name != "" {
			var app *fleet.App
			if app, err = appIn(st, req.Msg.GetEnvironment(), name); err == nil {
				out.Apps = append(out.Apps, c.appStatus(st, app, now))
			}
			return
		}
		name := func(a *fleet.App) string { return a.Name }
		out.Apps, out.NextPageToken, err = pageOf(req.Msg, st.Apps(req.Msg.GetEnvironment()), name, func(a *fleet.App) *pb.AppStatus { return c.appStatus(st, a, now) })
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}

func (c *control) appStatus(st *fleet.State, app *fleet.App, now time.Time) *pb.AppStatus {
	v4, _ := app.VirtualAddresses()
	out := &pb.AppStatus{
		App: app.Name, Environment: app.Environment, VirtualAddress: v4.String(),
		Live: deploymentProto(st.Deployment(app.Live)), Active: deploymentProto(st.Deployment(app.Active)),
		Latest: deploymentProto(st.Deployment(app.Latest)), Waits: c.waits.app(app),
	}
	if live := st.Deployment(app.Live); live != nil {
		out.Count = uint32(live.Count)
		if live.Count > 0 {
			out.Release = string(live.Release)
		}
	}
	for _, i := range st.Instances(app.Environment, app.Name) {
		if i.Serves() && !i.Task && c.stateOf(i, c.observed.instance(i.ID), now) == stateReady {
			out.Ready++
		}
	}
	for n, r := range st.ReleasesInForce(app) {
		if n == 0 {
			out.Endpoints = endpoints(st, app, r)
		}
	}
	return out
}

// endpoints are where the app can be reached: on every host for a public port, within the environment for an
// internal one.
func endpoints(st *fleet.State, app *fleet.App, r *fleet.Release) []*pb.Endpoint {
	var out []*pb.Endpoint
	for _, e := range st.Endpoints(app.Environment, r) {
		hosts := e.Names
		if len(hosts) == 0 {
			hosts = []string{e.Address}
		}
		for _, host := range hosts {
			out = append(out, &pb.Endpoint{
				PortName: e.Name, Protocol: e.Port.Protocol, Expose: e.Port.Expose, Address: net.JoinHostPort(host, strconv.Itoa(e.PublicPort)),
			})
		}
	}
	for name, p := range r.Manifest.Ports {
		if p.Expose == manifest.ExposeInternal {
			out = append(out, &pb.Endpoint{PortName: name, Protocol: p.Protocol, Expose: p.Expose, Address: fmt.Sprintf("%s.internal:%d", app.Name, p.Port)})
		}
	}
	slices.SortStableFunc(out, func(a, b *pb.Endpoint) int { return strings.Compare(a.PortName, b.PortName) })
	return out
}

func (c *control) ListInstances(ctx context.Context, req *connect.Request[pb.ListInstancesRequest]) (*connect.Response[pb.ListInstancesResponse], error) {
	out := &pb.ListInstancesResponse{}
	var err error
	now := c.now()
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		apps := st.Apps(req.Msg.GetEnvironment())
		if name := req.Msg.GetApp(); name != "" {
			var app *fleet.App
			if app, err = appIn(st, req.Msg.GetEnvironment(), name); err != nil {
				return
			}
			apps = []*fleet.App{app}
		}
		var all []*fleet.Instance
		for _, app := range apps {
			all = append(all, st.Instances(app.Environment, app.Name)...)
			all = append(all, st.Runs(app.Environment, app.Name)...)
			if req.Msg.GetAll() {
				all = append(all, st.EndedInstances(app.Environment, app.Name)...)
				all = append(all, st.EndedRuns(app.Environment, app.Name)...)
			}
		}
		slices.SortFunc(all, byPlace)
		out.Instances, out.NextPageToken, err = pageOf(req.Msg, all, placeKey, func(i *fleet.Instance) *pb.Instance { return c.instanceProto(st, i, now) })
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}

// byPlace orders instances by app and ordinal, and those of one ordinal as they were placed. That of an instance never
// changes, also not when it ends.
func byPlace(a, b *fleet.Instance) int {
	return cmp.Or(strings.Compare(a.App, b.App), cmp.Compare(a.Ordinal, b.Ordinal), a.PlacedAt.Compare(b.PlacedAt), strings.Compare(a.ID, b.ID))
}

// placeKey is text that is ordered as byPlace orders instances.
func placeKey(i *fleet.Instance) string {
	return fmt.Sprintf("%s\x00%010d\x00%020d\x00%s", i.App, i.Ordinal, max(0, i.PlacedAt.UnixNano()), i.ID)
}

func (c *control) GetInstance(ctx context.Context, req *connect.Request[pb.GetInstanceRequest]) (*connect.Response[pb.GetInstanceResponse], error) {
	var (
		out *pb.Instance
		err error
	)
	c.ledger.read(func(st *fleet.State) {
		var i *fleet.Instance
		if i, err = findInstance(st, req.Msg.GetEnvironment(), req.Msg.GetInstance()); err == nil {
			out = c.instanceProto(st, i, c.now())
		}
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.GetInstanceResponse{Instance: out}), nil
}

// findInstance finds an instance by its id, a beginning of it that only one has, or "app/ordinal", which
// means the newest one of that ordinal. With an environment given, only there.
func findInstance(st *fleet.State, environment, ref string) (*fleet.Instance, error) {
	if i := st.Instance(ref); i != nil && (environment == "" || i.Environment == environment) {
		return i, nil
	}
	if name, ordinal, ok := strings.Cut(ref, "/"); ok {
		return findOrdinal(st, environment, name, ordinal)
	}
	var found []*fleet.Instance
	if ref != "" {
		found = slices.DeleteFunc(st.InstancesByPrefix(ref), func(i *fleet.Instance) bool {
			return environment != "" && i.Environment != environment
		})
	}
	switch len(found) {
	case 0:
		return nil, refuse(connect.CodeNotFound, "instance %q does not exist, or ended long ago: see `pinnace instances --all`", ref)
	case 1:
		return found[0], nil
	}
	var ids []string
	for _, i := range found[:min(len(found), 8)] {
		ids = append(ids, i.ID)
	}
	return nil, refuse(connect.CodeInvalidArgument, "%q may be any of %d instances: %s", ref, len(found), strings.Join(ids, ", "))
}

func findOrdinal(st *fleet.State, environment, name, ordinal string) (*fleet.Instance, error) {
	n, err := strconv.Atoi(ordinal)
	if err != nil || n < 0 {
		return nil, refuse(connect.CodeInvalidArgument, "%q is not an ordinal: want app/0, app/1 …", ordinal)
	}
	if _, err := appIn(st, environment, name); err != nil {
		return nil, err
	}
	var newest *fleet.Instance
	for _, all := range [][]*fleet.Instance{st.Instances(environment, name), st.EndedInstances(environment, name)} {
		for _, i := range all {
			if i.Ordinal == n && !i.Task && (newest == nil || i.PlacedAt.After(newest.PlacedAt)) {
				newest = i
			}
		}
		if newest != nil {
			return newest, nil
		}
	}
	return nil, refuse(connect.CodeNotFound, "%s has no instance %d in %s", name, n, environment)
}

// stateOf says what an instance does, as far as anybody knows.
func (s *Server) stateOf(i *fleet.Instance, seen seenInstance, now time.Time) string {
	on, _ := s.observed.connected(i.Host, now)
	switch {
	case i.Final:
		return stateEnded
	case !on:
		return stateUnknown
	case i.Stop:
		return stateStopping
	case seen.report.GetState() == "":
		return statePlaced
	default:
		return seen.report.GetState()
	}
}

func (s *Server) instanceProto(st *fleet.State, i *fleet.Instance, now time.Time) *pb.Instance {
	seen := s.observed.instance(i.ID)
	r := seen.report
	out := &pb.Instance{
		Id: i.ID, Environment: i.Environment, App: i.App, Ordinal: uint32(i.Ordinal), Host: i.Host, Release: string(i.Release),
		Deployment: i.Deployment, Attempt: max(r.GetAttempt(), i.StartedAttempt, i.EndedAttempt), State: s.stateOf(i, seen, now),
		Address: r.GetAddress(), Stages: r.GetStages(), Message: r.GetMessage(),
		PlacedAt: timestampOrNil(i.PlacedAt), ReadyAt: timestampOrNil(i.ReadyAt), Task: i.Task, Run: runDetails(i.Run),
	}
	if i.Booted != nil {
		out.Booted = bootedProto(i.Booted)
	}
	if i.LastEnd != nil {
		out.LastEnd = endProto(i.LastEnd)
	}
	if seen.lastEnd != nil && seen.lastEndAttempt >= i.EndedAttempt {
		out.LastEnd = seen.lastEnd // it is newer, or the same with the log lines
	}
	if i.Final && i.LastEnd != nil {
		out.EndedAt, out.Address = timestampOrNil(i.LastEnd.At), ""
	}
	if out.State == stateUnknown {
		out.Message = fmt.Sprintf("host %s is away; this is what it said last", i.Host)
		if !i.Task && len(st.Release(i.Release).Manifest.Volumes) > 0 {
			out.Message = fmt.Sprintf("waits for host %s, where its volumes are, which is away", i.Host)
		}
	}
	return out
}

func endProto(e *fleet.End) *pb.Cause {
	out := &pb.Cause{
		Kind: e.Cause.Kind, Code: e.Cause.Code, Signal: e.Cause.Signal, Stage: e.Cause.Stage, Detail: e.Cause.Detail,
		Planned: e.Planned, At: timestampOrNil(e.At),
	}
	if e.Cause.UnixMilli > 0 {
		out.At = timestampOrNil(time.UnixMilli(e.Cause.UnixMilli))
	}
	return out
}

func bootedProto(b *fleet.Booted) *pb.Booted {
	return &pb.Booted{
		ManifestHash: b.ManifestHash, ImageManifestDigest: b.ImageManifestDigest, DiffIds: b.DiffIDs, RootfsSha256: b.RootfsSHA256,
		Converter: b.Converter, KernelSha256: b.KernelSHA256, KernelVersion: b.KernelVersion, InitramfsSha256: b.InitramfsSHA256,
		Driver: b.Driver, DriverVersion: b.DriverVersion, Accelerator: b.Accelerator,
	}
}
