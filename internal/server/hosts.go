package server

import (
	"context"
	"strings"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// hostIn finds a host for people, who are told what hosts there are when it does not exist.
func hostIn(st *fleet.State, id string) (*fleet.Host, error) {
	if h := st.Host(id); h != nil {
		return h, nil
	}
	return nil, noHost(id, st.Hosts())
}

// noHost says that there is no host of an id among those that a caller sees.
func noHost(id string, visible []*fleet.Host) error {
	var known []string
	for _, h := range visible {
		known = append(known, h.ID)
	}
	if len(known) == 0 {
		return refuse(connect.CodeNotFound, "host %q does not exist: no host has joined", cut(id))
	}
	return refuse(connect.CodeNotFound, "host %q does not exist (there are: %s)", cut(id), strings.Join(known, ", "))
}

// hostFor leaves out of a host what a token for some environments does not see: what else it is for.
func hostFor(st *fleet.State, t *fleet.Token, h *pb.Host) *pb.Host {
	if t.All {
		return h
	}
	h.MemoryBytes, h.CpuMilli, h.DiskBytes, h.MemoryBookedBytes, h.DiskBookedBytes, h.Labels = 0, 0, 0, 0, 0, nil
	h.Instances = 0
	for _, i := range st.InstancesOn(h.GetId()) {
		if t.Sees(i.Environment) {
			h.Instances++
		}
	}
	return h
}

func (c *control) DrainHost(ctx context.Context, req *connect.Request[pb.DrainHostRequest]) (*connect.Response[pb.DrainHostResponse], error) {
	id := req.Msg.GetHost()
	var (
		host *fleet.Host
		err  error
	)
	c.ledger.read(func(st *fleet.State) { host, err = hostIn(st, id) })
	if err != nil {
		return nil, err
	}
	var event fleet.Payload = &fleet.HostDrainStarted{Host: id}
	kind := "drain"
	if req.Msg.GetEnd() {
		event, kind = &fleet.HostDrainEnded{Host: id}, "undrain"
	}
	if drains := !host.DrainingAt.IsZero(); drains == req.Msg.GetEnd() {
		// Somebody may have asked for the same meanwhile, which is as good. A request that is repeated appends nothing.
		if err := c.ledger.append(ctx, actorOf(ctx), requestKey(kind+"/"+id, req.Msg.GetIdempotencyKey()), event); err != nil && !isRejected(err) {
			return nil, c.onWire(ctx, err)
		}
	}
	out := &pb.DrainHostResponse{}
	c.ledger.read(func(st *fleet.State) {
		if host, err = hostIn(st, id); err == nil {
			out.Host = c.hostProto(st, host, c.now())
		}
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

func (c *control) RemoveHost(ctx context.Context, req *connect.Request[pb.RemoveHostRequest]) (*connect.Response[pb.RemoveHostResponse], error) {
	id := req.Msg.GetHost()
	removed := &fleet.HostRemoved{Host: id}
	key := requestKey("remove", req.Msg.GetIdempotencyKey())
	was, repeated, err := once(ctx, c, key, func(p *fleet.HostRemoved) bool { return p.Host == id })
	if err != nil {
		return nil, err
	}
	if repeated {
		return connect.NewResponse(&pb.RemoveHostResponse{Lost: was.Lost}), nil
	}
	c.ledger.read(func(st *fleet.State) {
		if _, err = hostIn(st, id); err != nil {
			return
		}
		if on, _ := c.observed.connected(id, c.now()); on {
			err = refuse(connect.CodeFailedPrecondition, "host %s is connected: drain it (pinnace host drain %s), then end its agent; %s later it counts as gone", id, id, c.opts.HostTimeout)
			return
		}
		for _, i := range st.InstancesOn(id) {
			if i.Serves() {
				removed.Lost = append(removed.Lost, i.ID)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if volumes := c.volumesOn(id); len(volumes) > 0 && !req.Msg.GetLose() {
		return nil, refuse(connect.CodeFailedPrecondition, "host %s has volumes that are nowhere else: %s. Give them up, with all that is in them: --lose",
			id, strings.Join(volumes[:min(len(volumes), 8)], ", "))
	}
	if len(removed.Lost) > 0 && !req.Msg.GetLose() {
		return nil, refuse(connect.CodeFailedPrecondition, "host %s has instances that nothing has succeeded yet: %s. Wait for their successors, or give the instances up, with their volumes: --lose",
			id, strings.Join(removed.Lost[:min(len(removed.Lost), 8)], ", "))
	}
	err = c.ledger.append(ctx, actorOf(ctx), key, removed)
	if isRejected(err) {
		return nil, refuse(connect.CodeAborted, "host %s was changed meanwhile; look again: %v", id, err)
	}
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	c.observed.forgetHost(id)
	return connect.NewResponse(&pb.RemoveHostResponse{Lost: removed.Lost}), nil
}
