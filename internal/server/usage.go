package server

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// ListUsage answers with what the workloads of instances use, as their guests have said last.
func (c *control) ListUsage(ctx context.Context, req *connect.Request[pb.ListUsageRequest]) (*connect.Response[pb.ListUsageResponse], error) {
	out := &pb.ListUsageResponse{}
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
		}
		slices.SortFunc(all, byPlace)
		out.Instances, out.NextPageToken, err = pageOf(req.Msg, all, placeKey, func(i *fleet.Instance) *pb.InstanceUsage {
			seen, res := c.observed.instance(i.ID), st.Release(i.Release).Manifest.Resources
			u := &pb.InstanceUsage{
				Instance: i.ID, App: i.App, Ordinal: uint32(i.Ordinal), Host: i.Host, State: c.stateOf(i, seen, now), Attempt: seen.report.GetAttempt(),
				CpuRequestedMilli: res.CPUMilli, MemoryBytes: res.MemoryBytes,
			}
			if u.State != stateUnknown {
				u.Usage = seen.report.GetUsage()
			}
			return u
		})
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}
