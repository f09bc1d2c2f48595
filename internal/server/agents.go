package server

import (
	"context"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// agents answers the agents of hosts.
type agents struct{ *Server }

var _ pinnacev1connect.AgentServiceHandler = (*agents)(nil)

func (a *agents) Join(ctx context.Context, req *connect.Request[pb.JoinRequest]) (*connect.Response[pb.JoinResponse], error) {
	// Who follows places nothing: an agent belongs to the server that leads.
	if !a.leads() {
		return nil, a.onWire(ctx, eventlog.ErrFollowing)
	}
	h := req.Msg.GetHost()
	if h.GetId() == "" || len(h.GetId()) > 64 || h.GetArchitecture() == "" || h.GetMemoryBytes() <= 0 || h.GetCpuMilli() <= 0 || h.GetDiskBytes() <= 0 {
		return nil, refuse(connect.CodeInvalidArgument, "host %q: an id of at most 64 bytes, an architecture, memory, CPU and disk are needed", cut(h.GetId()))
	}
	joined := &fleet.HostJoined{
		Host: h.GetId(), Name: h.GetName(), Architecture: h.GetArchitecture(), MemoryBytes: h.GetMemoryBytes(), CPUMilli: h.GetCpuMilli(),
		DiskBytes: h.GetDiskBytes(), Labels: h.GetLabels(), Version: h.GetVersion(), Driver: h.GetDriver(), Accelerator: h.GetAccelerator(),
	}
	var known *fleet.Host
	a.ledger.read(func(st *fleet.State) { known = st.Host(h.GetId()) })
	// Coming back as it was is no news.
	if known == nil || !sameHost(known, joined) {
		if err := a.ledger.append(ctx, "host/"+h.GetId(), "", joined); err != nil {
			return nil, a.onWire(ctx, err)
		}
	}
	seen, err := a.seenHash(ctx, req.Msg.GetSeenSeq())
	if err != nil {
		return nil, a.onWire(ctx, err)
	}
	if err := checkPeerAddress(h.GetPeerAddress()); err != nil {
		return nil, err
	}
	a.observed.joined(h.GetId(), a.now())
	if a.observed.reachedAt(h.GetId(), h.GetPeerAddress()) {
		a.feeds.reached(h.GetId())
	}
	a.notice()
	return connect.NewResponse(&pb.JoinResponse{ServerVersion: a.opts.Version, Head: a.logHead(), SeenHash: seen}), nil
}

func sameHost(h *fleet.Host, j *fleet.HostJoined) bool {
	return h.Name == j.Name && h.Architecture == j.Architecture && h.MemoryBytes == j.MemoryBytes && h.CPUMilli == j.CPUMilli &&
		h.DiskBytes == j.DiskBytes && maps.Equal(h.Labels, j.Labels) && h.Version == j.Version && h.Driver == j.Driver && h.Accelerator == j.Accelerator
}

// knownHost refuses those who have not joined.
func (a *agents) knownHost(id string) error {
	var h *fleet.Host
	a.ledger.read(func(st *fleet.State) { h = st.Host(id) })
	if h == nil {
		return refuse(connect.CodeNotFound, "host %q has not joined", cut(id))
	}
	return nil
}

func (a *agents) Report(ctx context.Context, req *connect.Request[pb.ReportRequest]) (*connect.Response[pb.ReportResponse], error) {
	host := req.Msg.GetHost()
	if err := a.knownHost(host); err != nil {
		return nil, err
	}
	now := a.now()
	was, _ := a.observed.connected(host, now)
	// What is not placed on the host is none of its business, and would be kept for nothing.
	req.Msg.Instances = a.placedOn(host, req.Msg.GetInstances())
	changed, moved := a.observed.reported(req.Msg, now)
	reportTaken.Hit()
	if strays := a.straysOf(req.Msg); req.Msg.GetVolumesListed() && a.observed.sawStrays(host, strays) {
		if len(strays) > 0 {
			a.log.WarnContext(ctx, "volumes are left of imports that failed, and are removed", "host", host, "volumes", strays)
		}
		was = false // its assignments are others now
		a.feeds.wake([]string{host})
	}
	news := false
	a.ledger.read(func(st *fleet.State) {
		news = a.isNews(st, req.Msg, now)
		if len(moved) > 0 {
			a.feeds.moved(st, moved)
			a.feeds.wake([]string{host}) // what is assigned may wait for what the host says of itself
		}
		for _, r := range changed {
			i := st.Instance(r.GetInstance())
			if i == nil || i.Run != nil {
				continue
			}
			if d := st.Deployment(st.App(i.Environment, i.App).Active); d != nil {
				a.narrateReport(d, i, r, now)
			}
		}
	})
	if news {
		a.observed.queue(req.Msg)
		a.poke()
	}
	if len(changed) > 0 || !was {
		a.notice()
	}
	return connect.NewResponse(&pb.ReportResponse{Head: a.logHead()}), nil
}

// isNews reports whether a report has something that the log has not: most are signs of life and nothing else, which the
// loop need not look at.
func (a *agents) isNews(st *fleet.State, r *pb.ReportRequest, now time.Time) bool {
	return len(removals(st, r)) > 0 || slices.ContainsFunc(r.GetInstances(), func(report *pb.InstanceReport) bool {
		i := st.Instance(report.GetInstance())
		return i != nil && len(facts(i, report, a.observed.instance(i.ID), now)) > 0
	})
}

func (a *agents) placedOn(host string, reports []*pb.InstanceReport) []*pb.InstanceReport {
	var placed []*pb.InstanceReport
	a.ledger.read(func(st *fleet.State) {
		for _, r := range reports {
			if i := st.Instance(r.GetInstance()); i != nil && i.Host == host {
				placed = append(placed, r)
			}
		}
	})
	return placed
}

func (a *agents) WatchAssignments(ctx context.Context, req *connect.Request[pb.WatchAssignmentsRequest], stream *connect.ServerStream[pb.WatchAssignmentsResponse]) error {
	host := req.Msg.GetHost()
	if err := a.knownHost(host); err != nil {
		return err
	}
	if canFollow(req) {
		return a.follow(ctx, host, stream)
	}
	a.views.watched(1)
	defer a.views.watched(-1)
	var sent *pb.WatchAssignmentsResponse
	var seen *view
	told := newHanded()
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	quiet, lacking := false, false
	for {
		changed, wanted := a.changed.next(), a.asked.next()
		v := a.views.current(a.ledger, a.changed)
		set := sent
		if v != seen {
			seen, set = v, a.assignments(v, host)
		}
		// An agent knows of an instance by a view that has it. What somebody wants of one waits for that.
		early := func(instance string) bool { return !v.has(instance) && v.changes != a.changed.count() }
		requests, tasks, errands := a.wantedOf(host, told, early)
		switch {
		case sent == nil || (set != sent && !sameSet(sent, set)):
			sent = set
			full := proto.CloneOf(set)
			full.LogRequests, full.ExecTasks, full.HostTasks = requests, tasks, errands
			lacking = !a.deliver(ctx, full)
			assignBefore.Hit()
			if err := stream.Send(full); err != nil {
				return err
			}
			assignAfter.Hit()
		case len(requests) > 0 || len(tasks)+len(errands) > 0 || quiet:
			if err := stream.Send(&pb.WatchAssignmentsResponse{Revision: sent.GetRevision(), LogRequests: requests, ExecTasks: tasks, HostTasks: errands}); err != nil {
				return err
			}
		}
		// What changes while the view is new is looked at when it is not.
		var old <-chan time.Time
		if left := a.views.left(v); left > 0 {
			changed, old = nil, time.After(left)
		}
		select {
		case <-ctx.Done():
			return a.onWire(ctx, ctx.Err())
		case <-changed:
			quiet = false
		case <-old:
			quiet = false
		case <-wanted:
			quiet = false
		case <-alive.C:
			quiet = true
			if lacking { // what could not be opened is tried again
				sent, seen = nil, nil
			}
		}
	}
}

// handed is what an agent was told that somebody wants of its host, by kind and id.
type handed struct{ logs, execs, tasks map[string]bool }

func newHanded() handed { return handed{map[string]bool{}, map[string]bool{}, map[string]bool{}} }

// wantedOf is what is wanted of a host that its agent was not told yet.
func (a *agents) wantedOf(host string, t handed, early func(instance string) bool) (requests []*pb.LogRequest, tasks []*pb.ExecTask, errands []*pb.HostTask) {
	for _, w := range a.logs.waiting(host, t.logs, early) {
		requests = append(requests, w.request)
	}
	for _, w := range a.execs.waiting(host, t.execs, early) {
		tasks = append(tasks, w.task)
	}
	for _, w := range a.tasks.waiting(host, t.tasks, early) {
		errands = append(errands, w.task)
	}
	return requests, tasks, errands
}

// sameSet compares two sets without their revisions, which are positions in the log and grow with every event.
func sameSet(a, b *pb.WatchAssignmentsResponse) bool {
	revision := b.GetRevision()
	b.Revision = a.GetRevision()
	same := proto.Equal(a, b)
	b.Revision = revision
	return same
}
