package server

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// ListVolumes answers with what the log knows of volumes, and what their hosts have said of them last.
func (c *control) ListVolumes(ctx context.Context, req *connect.Request[pb.ListVolumesRequest]) (*connect.Response[pb.ListVolumesResponse], error) {
	out := &pb.ListVolumesResponse{}
	var err error
	now := c.now()
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.Msg.GetEnvironment()); err != nil {
			return
		}
		var all []*fleet.Volume
		for _, v := range st.Volumes(req.Msg.GetEnvironment()) {
			if app := req.Msg.GetApp(); app == "" || v.App == app {
				all = append(all, v)
			}
		}
		out.Volumes, out.NextPageToken, err = pageOf(req.Msg, all, volumeKey, func(v *fleet.Volume) *pb.Volume { return c.volumeProto(st, v, now) })
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}

// volumeKey is text that is ordered as State.Volumes orders volumes.
func volumeKey(v *fleet.Volume) string {
	return fmt.Sprintf("%s\x00%010d\x00%s\x00%s", v.App, v.Ordinal, v.Name, v.ID)
}

func (s *Server) volumeProto(st *fleet.State, v *fleet.Volume, now time.Time) *pb.Volume {
	on, _ := s.observed.connected(v.Host, now)
	out := &pb.Volume{
		Id: v.ID, Environment: v.Environment, App: v.App, Name: v.Name, Ordinal: uint32(v.Ordinal), Host: v.Host, SizeBytes: v.SizeBytes,
		State: "attached", BoundAt: timestampOrNil(v.BoundAt), Away: !on, OnHost: s.observed.volume(v.Host, v.ID),
	}
	switch {
	case !v.DeletedAt.IsZero():
		out.State = "removing"
	case !v.Attached():
		out.State = "detached"
	}
	for _, snap := range v.Snapshots {
		out.Snapshots = append(out.Snapshots, &pb.VolumeSnapshot{Name: snap.Name, SizeBytes: snap.SizeBytes, TakenAt: timestampOrNil(snap.TakenAt)})
	}
	if i := st.HolderOf(v); i != nil {
		out.Instance = i.ID
	}
	return out
}

// volumeNow is a volume as it is now; nil when there is none any more.
func (c *control) volumeNow(id string) (out *pb.Volume) {
	c.ledger.read(func(st *fleet.State) {
		if v := st.Volume(id); v != nil {
			out = c.volumeProto(st, v, c.now())
		}
	})
	return out
}

// volume is what a host has said of one of its volumes last; nil for nothing.
func (o *observed) volume(host, id string) *pb.VolumeReport {
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.hosts[host]; h != nil {
		return h.volumes[id]
	}
	return nil
}

// sawVolumes takes in what a host says of its volumes; o.mu is held.
func (h *seenHost) sawVolumes(r *pb.ReportRequest) {
	if !r.GetVolumesListed() {
		return
	}
	h.volumes = make(map[string]*pb.VolumeReport, len(r.GetVolumes()))
	for _, v := range r.GetVolumes() {
		h.volumes[v.GetId()] = v
	}
}

// GrowVolume says how large a volume is to be from the next start of its instance on.
func (c *control) GrowVolume(ctx context.Context, req *connect.Request[pb.GrowVolumeRequest]) (*connect.Response[pb.GrowVolumeResponse], error) {
	v, err := c.volumeFor(req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	size := req.Msg.GetSizeBytes()
	key := requestKey("grow", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.VolumeGrown) bool { return p.Volume == v.ID && p.SizeBytes == size })
	if err != nil || repeated {
		return connect.NewResponse(&pb.GrowVolumeResponse{Volume: c.volumeNow(v.ID)}), err
	}
	switch {
	case size == v.SizeBytes:
		return connect.NewResponse(&pb.GrowVolumeResponse{Volume: c.volumeNow(v.ID), Unchanged: true}), nil
	case size < v.SizeBytes:
		return nil, refuse(connect.CodeInvalidArgument, "volume %s is %s large and cannot become %s: volumes only grow", v.ID, sizeText(v.SizeBytes), sizeText(size))
	case size > fleet.MaxVolume:
		return nil, refuse(connect.CodeInvalidArgument, "volume %s cannot become %s large: the most is %s", v.ID, sizeText(size), sizeText(fleet.MaxVolume))
	}
	c.ledger.read(func(st *fleet.State) {
		err = lacksDisk(st, st.Host(v.Host), "volume "+v.ID+" to grow to "+sizeText(size), size-v.SizeBytes)
	})
	if err != nil {
		return nil, err
	}
	if err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.VolumeGrown{Volume: v.ID, SizeBytes: size}); err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.GrowVolumeResponse{Volume: c.volumeNow(v.ID)}), nil
}

// DetachVolume takes a volume away from its app.
func (c *control) DetachVolume(ctx context.Context, req *connect.Request[pb.DetachVolumeRequest]) (*connect.Response[pb.DetachVolumeResponse], error) {
	v, err := c.volumeFor(req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	key := requestKey("detach", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.VolumeDetached) bool { return p.Volume == v.ID })
	if err != nil {
		return nil, err
	}
	if v.Attached() && !repeated {
		if err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.VolumeDetached{Volume: v.ID}); err != nil {
			return nil, c.onWire(ctx, err)
		}
	}
	return connect.NewResponse(&pb.DetachVolumeResponse{Volume: c.volumeNow(v.ID)}), nil
}

// DeleteVolume has a volume that is detached removed from its host, now or when that is back.
func (c *control) DeleteVolume(ctx context.Context, req *connect.Request[pb.DeleteVolumeRequest]) (*connect.Response[pb.DeleteVolumeResponse], error) {
	key := requestKey("delete-volume", req.Msg.GetIdempotencyKey())
	was, repeated, err := once(ctx, c, key, func(*fleet.VolumeDeleted) bool { return true })
	if err != nil || repeated {
		id := ""
		if was != nil {
			id = was.Volume
		}
		return connect.NewResponse(&pb.DeleteVolumeResponse{Volume: c.volumeNow(id)}), err
	}
	v, err := c.volumeFor(req.Msg)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if v.Attached() {
		return nil, refuse(connect.CodeFailedPrecondition, "volume %s is %s of %s/%d: detach it first\nhint: pinnace volumes detach %s -e %s", v.ID, v.Name, v.App, v.Ordinal, v.ID, v.Environment)
	}
	if err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.VolumeDeleted{Volume: v.ID}); err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.DeleteVolumeResponse{Volume: c.volumeNow(v.ID)}), nil
}
