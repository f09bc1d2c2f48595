package server

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

// control answers people and their scripts. Handlers translate, check, call and translate.
type control struct{ *Server }

var _ pinnacev1connect.ControlServiceHandler = (*control)(nil)

func (c *control) GetServerInfo(ctx context.Context, req *connect.Request[pb.GetServerInfoRequest]) (*connect.Response[pb.GetServerInfoResponse], error) {
	head := c.ledger.log.Head()
	info := &pb.GetServerInfoResponse{
		Version: c.opts.Version, ClusterId: c.ledger.log.ID().String(), HeadSeq: head.Seq, HeadHash: head.Hash[:],
		StartedAt: timestamppb.New(c.startedAt), Leads: c.leads(),
	}
	if c.opts.LogKey != nil {
		info.LogKey = c.opts.LogKey.Public().(ed25519.PublicKey)
	}
	var err error
	if info.SeenHash, err = c.seenHash(ctx, req.Msg.GetSeenSeq()); err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(info), nil
}

// SignCheckpoint signs the log as it is now.
func (c *control) SignCheckpoint(ctx context.Context, _ *connect.Request[pb.SignCheckpointRequest]) (*connect.Response[pb.SignCheckpointResponse], error) {
	p, err := c.ledger.log.Checkpoint(ctx)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.SignCheckpointResponse{
		ClusterId: c.ledger.log.ID().String(), Seq: p.Seq, Hash: p.Hash[:], TimeUnixNano: p.Time,
		StateVersion: p.StateVersion, State: p.State[:], Key: p.Key[:], Signature: p.Signature[:],
	}), nil
}

func (c *control) CreateEnvironment(ctx context.Context, req *connect.Request[pb.CreateEnvironmentRequest]) (*connect.Response[pb.CreateEnvironmentResponse], error) {
	name := req.Msg.GetName()
	if !fleet.ValidName(name) {
		return nil, refuse(connect.CodeInvalidArgument, "environment name %q: want a lower-case letter, then at most 39 lower-case letters, digits and dashes", name)
	}
	key := requestKey("environment", req.Msg.GetIdempotencyKey())
	_, repeated, err := once(ctx, c, key, func(p *fleet.EnvironmentCreated) bool { return p.Name == name })
	if err != nil {
		return nil, err
	}
	if !repeated {
		if err := c.ledger.append(ctx, actorOf(ctx), key, &fleet.EnvironmentCreated{Name: name}); err != nil {
			return nil, c.onWire(ctx, err)
		}
	}
	env, err := c.environment(name)
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(&pb.CreateEnvironmentResponse{Environment: environmentProto(env)}), nil
}

// environment finds an environment, or says how to make it.
func (c *control) environment(name string) (env *fleet.Environment, err error) {
	c.ledger.read(func(st *fleet.State) { env, err = environmentIn(st, name) })
	return env, err
}

func environmentIn(st *fleet.State, name string) (*fleet.Environment, error) {
	if name == "" {
		return nil, refuse(connect.CodeInvalidArgument, "no environment was named: pass -e")
	}
	env := st.Environment(name)
	if env != nil {
		return env, nil
	}
	return nil, noEnvironment(name, st.Environments())
}

// noEnvironment says that there is no environment of a name among those that a caller sees.
func noEnvironment(name string, visible []*fleet.Environment) error {
	known := ""
	for _, e := range visible {
		known += " " + e.Name
	}
	if known == "" {
		known = " none"
	}
	return refuse(connect.CodeNotFound, "environment %q does not exist (there are:%s). Create it: pinnace env create %s", cut(name), known, cut(name))
}

func (c *control) ListEnvironments(ctx context.Context, req *connect.Request[pb.ListEnvironmentsRequest]) (*connect.Response[pb.ListEnvironmentsResponse], error) {
	out := &pb.ListEnvironmentsResponse{}
	var err error
	c.ledger.read(func(st *fleet.State) {
		name := func(e *fleet.Environment) string { return e.Name }
		out.Environments, out.NextPageToken, err = pageOf(req.Msg, visible(st, callerOf(ctx)), name, environmentProto)
	})
	return connect.NewResponse(out), err
}

func environmentProto(e *fleet.Environment) *pb.Environment {
	return &pb.Environment{Name: e.Name, CreatedAt: timestamppb.New(e.CreatedAt)}
}

func (c *control) ListHosts(ctx context.Context, req *connect.Request[pb.ListHostsRequest]) (*connect.Response[pb.ListHostsResponse], error) {
	out := &pb.ListHostsResponse{}
	var err error
	now := c.now()
	caller := callerOf(ctx)
	c.ledger.read(func(st *fleet.State) {
		id := func(h *fleet.Host) string { return h.ID }
		out.Hosts, out.NextPageToken, err = pageOf(req.Msg, visibleHosts(st, caller), id, func(h *fleet.Host) *pb.Host {
			return hostFor(st, caller, c.hostProto(st, h, now))
		})
	})
	return connect.NewResponse(out), err
}

func (c *control) hostProto(st *fleet.State, h *fleet.Host, now time.Time) *pb.Host {
	on, at := c.observed.connected(h.ID, now)
	b := st.Booking(h.ID)
	return &pb.Host{
		Id: h.ID, Name: h.Name, Architecture: h.Architecture, MemoryBytes: h.MemoryBytes, CpuMilli: h.CPUMilli, DiskBytes: h.DiskBytes,
		MemoryBookedBytes: scheduler.Footprints(len(b.Instances), b.MemoryBytes), DiskBookedBytes: b.DiskBytes + volumesBooked(st, h.ID),
		Labels: h.Labels, Version: h.Version, Driver: h.Driver, Accelerator: h.Accelerator,
		Connected: on, LastSeenAt: timestampOrNil(at), DrainingAt: timestampOrNil(h.DrainingAt), Instances: uint32(len(b.Instances)),
	}
}

func timestampOrNil(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Bounds of one message of ReadEvents.
const (
	batchEvents = 256
	batchBytes  = 1 << 20
)

func (c *control) ReadEvents(ctx context.Context, req *connect.Request[pb.ReadEventsRequest], stream *connect.ServerStream[pb.ReadEventsResponse]) error {
	b := batch{send: stream.Send, whole: callerOf(ctx).All}
	if !req.Msg.GetFollow() {
		for e, err := range c.ledger.log.Read(ctx, req.Msg.GetAfter()) {
			for _, e := range c.seesEvents(ctx, []eventlog.Event{e}) {
				if err == nil {
					err = b.add(&e)
				}
			}
			if err != nil {
				return c.onWire(ctx, fmt.Errorf("read events: %w", err))
			}
		}
		return b.flush()
	}
	for events, err := range c.ledger.log.Watch(ctx, req.Msg.GetAfter()) {
		events = c.seesEvents(ctx, events)
		for i := range events {
			if err == nil {
				err = b.add(&events[i])
			}
		}
		if err == nil {
			err = b.flush()
		}
		if err != nil {
			return c.onWire(ctx, fmt.Errorf("follow events: %w", err))
		}
	}
	return nil
}

// batch puts events into messages of a bounded size.
type batch struct {
	send func(*pb.ReadEventsResponse) error
	// whole is false when events are left out: a chain of hashes with gaps would look like one that was tampered with.
	whole bool
	msg   pb.ReadEventsResponse
	bytes int
}

func (b *batch) add(e *eventlog.Event) error {
	if len(b.msg.Events) > 0 && (len(b.msg.Events) == batchEvents || b.bytes+len(e.Payload) > batchBytes) {
		if err := b.flush(); err != nil {
			return err
		}
	}
	out := &pb.Event{
		Seq: e.Seq, Stream: e.Stream, Version: e.Version, Type: e.Type, TypeVersion: uint32(e.TypeVersion), TimeUnixNano: e.Time,
		Actor: e.Actor, IdempotencyKey: e.IdempotencyKey, Payload: e.Payload,
	}
	if b.whole {
		out.Hash = e.Hash[:]
	}
	b.msg.Events = append(b.msg.Events, out)
	b.bytes += len(e.Payload)
	return nil
}

func (b *batch) flush() error {
	if len(b.msg.Events) == 0 {
		return nil
	}
	err := b.send(&pb.ReadEventsResponse{Events: b.msg.Events})
	b.msg.Events, b.bytes = nil, 0
	return err
}
