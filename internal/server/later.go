package server

import (
	"context"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// What is here is described and not there yet.

func notYet() error { return refuse(connect.CodeUnimplemented, "this server cannot do that yet") }

func (c *control) ListUsage(context.Context, *connect.Request[pb.ListUsageRequest]) (*connect.Response[pb.ListUsageResponse], error) {
	return nil, notYet()
}

func (c *control) ListVolumes(context.Context, *connect.Request[pb.ListVolumesRequest]) (*connect.Response[pb.ListVolumesResponse], error) {
	return nil, notYet()
}

func (c *control) GrowVolume(context.Context, *connect.Request[pb.GrowVolumeRequest]) (*connect.Response[pb.GrowVolumeResponse], error) {
	return nil, notYet()
}

func (c *control) DetachVolume(context.Context, *connect.Request[pb.DetachVolumeRequest]) (*connect.Response[pb.DetachVolumeResponse], error) {
	return nil, notYet()
}

func (c *control) DeleteVolume(context.Context, *connect.Request[pb.DeleteVolumeRequest]) (*connect.Response[pb.DeleteVolumeResponse], error) {
	return nil, notYet()
}

func (c *control) SnapshotVolume(context.Context, *connect.Request[pb.SnapshotVolumeRequest]) (*connect.Response[pb.SnapshotVolumeResponse], error) {
	return nil, notYet()
}

func (c *control) DeleteSnapshot(context.Context, *connect.Request[pb.DeleteSnapshotRequest]) (*connect.Response[pb.DeleteSnapshotResponse], error) {
	return nil, notYet()
}

func (c *control) GetQuota(context.Context, *connect.Request[pb.GetQuotaRequest]) (*connect.Response[pb.GetQuotaResponse], error) {
	return nil, notYet()
}

func (c *control) SetQuota(context.Context, *connect.Request[pb.SetQuotaRequest]) (*connect.Response[pb.SetQuotaResponse], error) {
	return nil, notYet()
}

func (c *control) DestroyApp(context.Context, *connect.Request[pb.DestroyAppRequest]) (*connect.Response[pb.DestroyAppResponse], error) {
	return nil, notYet()
}

func (c *control) DestroyEnvironment(context.Context, *connect.Request[pb.DestroyEnvironmentRequest]) (*connect.Response[pb.DestroyEnvironmentResponse], error) {
	return nil, notYet()
}

func (c *control) ForwardPort(context.Context, *connect.BidiStream[pb.ForwardPortRequest, pb.ForwardPortResponse]) error {
	return notYet()
}

func (c *control) ExportVolume(context.Context, *connect.Request[pb.ExportVolumeRequest], *connect.ServerStream[pb.ExportVolumeResponse]) error {
	return notYet()
}

func (c *control) ImportVolume(context.Context, *connect.ClientStream[pb.ImportVolumeRequest]) (*connect.Response[pb.ImportVolumeResponse], error) {
	return nil, notYet()
}

func (a *agents) ServeTask(context.Context, *connect.BidiStream[pb.ServeTaskRequest, pb.ServeTaskResponse]) error {
	return notYet()
}
