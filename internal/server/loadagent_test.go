package server

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/feed"
)

const (
	loadHeartbeat = 2 * time.Second // as the agent's
	// loadReconnect is the agent's pause before it comes again, give or take half of it.
	loadReconnect = time.Second
	// loadWitnesses is how many of the agents keep what they are told of the fleet, to compare it.
	loadWitnesses = 5
)

// beAgents is the process of the agents.
func beAgents(t *testing.T, n int) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	control := pinnacev1connect.NewControlServiceClient(httpClient(adminToken), "http://"+os.Getenv(loadAPIAt))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	all := make([]*loadAgent, n)
	for i := range all {
		all[i] = &loadAgent{id: fmt.Sprintf("host-%04d", i), number: i, running: map[string]bool{}, again: loadReconnect, witness: i%(n/loadWitnesses) == 0}
		all[i].client = admitOverTLS(t, control, all[i].id)
		wg.Go(func() { all[i].run(ctx) })
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			joined, back, running, bytes := 0, 0, int64(0), int64(0)
			for _, a := range all {
				if a.joins.Load() > 0 {
					joined++
				}
				if a.back.Load() {
					back++
				}
				running += a.count.Load()
				bytes += a.bytes.Load()
			}
			fmt.Printf("agents %d %d %d %d\n", joined, back, running, bytes)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch lines.Text() {
		case "gone":
			for _, a := range all {
				a.back.Store(false)
			}
		case "check":
			agree, differ, first := 0, 0, ""
			for _, a := range all {
				if !a.witness {
					continue
				}
				if err := a.compare(ctx); err != nil {
					differ++
					first = fmt.Sprintf("%s: %.400v", a.id, err)
					continue
				}
				agree++
			}
			fmt.Printf("found %d %d %q\n", agree, differ, first)
		}
	}
}

// admitOverTLS has a host let in, and gives what it speaks to the server with.
func admitOverTLS(t *testing.T, control pinnacev1connect.ControlServiceClient, id string) pinnacev1connect.AgentServiceClient {
	t.Helper()
	at := "https://" + os.Getenv(loadAgentsAt)
	token, err := control.CreateJoinToken(t.Context(), connect.NewRequest(&pb.CreateJoinTokenRequest{Host: id}))
	if err != nil {
		t.Fatal(err)
	}
	nobody := overTLS(nil)
	defer nobody.CloseIdleConnections()
	res, err := pinnacev1connect.NewAgentServiceClient(nobody, at).Admit(t.Context(), connect.NewRequest(&pb.AdmitRequest{Token: token.Msg.GetSecret(), Host: id, Request: testRequest()}))
	if err != nil {
		t.Fatal(err)
	}
	return pinnacev1connect.NewAgentServiceClient(overTLS(res.Msg.GetCertificate()), at)
}

// loadAgent is a host whose instances are ready as soon as they are placed, and end as soon as they are to.
type loadAgent struct {
	id      string
	number  int
	client  pinnacev1connect.AgentServiceClient
	witness bool
	joins   atomic.Int64
	back    atomic.Bool // it has got a set since the server was last gone
	count   atomic.Int64
	bytes   atomic.Int64  // that it was sent
	again   time.Duration // how long it waits for a server that is gone, give or take half of it

	mu       sync.Mutex
	running  map[string]bool              // guarded by mu; false when it has ended
	revision uint64                       // guarded by mu
	known    feed.Known                   // guarded by mu; of a witness
	set      *pb.WatchAssignmentsResponse // guarded by mu; of a witness
	halfway  bool                         // guarded by mu
}

func (a *loadAgent) run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { a.reports(ctx, changed) })
	defer wg.Wait()
	for ctx.Err() == nil {
		_, err := a.client.Join(ctx, connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{
			Id: a.id, Name: a.id, Architecture: "amd64", MemoryBytes: 4 << 30, CpuMilli: 4000, DiskBytes: 64 << 30, Driver: "none",
			PeerAddress: fmt.Sprintf("192.0.%d.%d:7402", a.number/256, a.number%256),
		}}))
		if err == nil {
			a.joins.Add(1)
			a.follow(ctx, changed)
		}
		select {
		case <-ctx.Done():
		case <-time.After(a.again/2 + rand.N(a.again)):
		}
	}
}

func (a *loadAgent) follow(ctx context.Context, changed chan<- struct{}) {
	stream, err := a.client.WatchAssignments(ctx, connect.NewRequest(&pb.WatchAssignmentsRequest{Host: a.id, Follows: true}))
	if err != nil {
		return
	}
	defer stream.Close()
	a.mu.Lock()
	a.known, a.set, a.halfway = feed.Known{}, nil, true
	a.mu.Unlock()
	for stream.Receive() {
		msg := stream.Msg()
		a.bytes.Add(int64(proto.Size(msg)))
		a.back.Store(a.back.Load() || msg.GetComplete())
		if a.hear(msg) && msg.GetComplete() && a.take(msg) {
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}
}

// hear takes in what a message says of the fleet, and tells whether it is all there.
func (a *loadAgent) hear(msg *pb.WatchAssignmentsResponse) (whole bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.halfway = msg.GetMore()
	if a.witness {
		if err := a.known.Apply(msg.GetFleetChanges()); err != nil {
			fmt.Println(err)
		}
		if msg.GetComplete() {
			a.set = msg
		}
	}
	return !msg.GetMore()
}

// take becomes what an assignment says, and tells whether that is something else than before.
func (a *loadAgent) take(set *pb.WatchAssignmentsResponse) (changed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision = set.GetRevision()
	next := map[string]bool{}
	n := int64(0)
	for _, asg := range set.GetAssignments() {
		next[asg.GetInstance()] = !asg.GetStop()
		if !asg.GetStop() {
			n++
		}
		was, had := a.running[asg.GetInstance()]
		changed = changed || !had || was != !asg.GetStop()
	}
	a.running = next
	a.count.Store(n)
	return changed
}

// compare says what is other in what a witness knows than in a set that is made anew, for an agent that does not follow.
func (a *loadAgent) compare(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.client.WatchAssignments(ctx, connect.NewRequest(&pb.WatchAssignmentsRequest{Host: a.id}))
	if err != nil {
		return err
	}
	defer stream.Close()
	if !stream.Receive() {
		return stream.Err()
	}
	want := proto.CloneOf(stream.Msg())
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set == nil || a.halfway {
		return fmt.Errorf("it has been told half of it")
	}
	got := proto.CloneOf(a.set)
	got.FleetApart, got.FleetChanges = false, nil
	got.Peers, got.Environments = a.known.Fleet(a.id)
	if !sameSet(got, want) {
		return fmt.Errorf("knows %d instances in %d environments and %d hosts, want %d in %d and %d: %s", elsewhereIn(got), len(got.GetEnvironments()), len(got.GetPeers()),
			elsewhereIn(want), len(want.GetEnvironments()), len(want.GetPeers()), firstDifference(got, want))
	}
	return nil
}

func elsewhereIn(set *pb.WatchAssignmentsResponse) (n int) {
	for _, e := range set.GetEnvironments() {
		for _, app := range e.GetApps() {
			n += len(app.GetElsewhere())
		}
	}
	return n
}

func firstDifference(got, want *pb.WatchAssignmentsResponse) string {
	for n, e := range want.GetEnvironments() {
		if n >= len(got.GetEnvironments()) || proto.Equal(e, got.GetEnvironments()[n]) {
			continue
		}
		for m, app := range e.GetApps() {
			if m < len(got.GetEnvironments()[n].GetApps()) && !proto.Equal(app, got.GetEnvironments()[n].GetApps()[m]) {
				return fmt.Sprintf("%s: %.150v, want %.150v", e.GetName(), got.GetEnvironments()[n].GetApps()[m], app)
			}
		}
	}
	return "in what it is to run"
}

// reports tells what runs when that has changed, and as a heartbeat.
func (a *loadAgent) reports(ctx context.Context, changed <-chan struct{}) {
	ready := timestamppb.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(loadHeartbeat):
		}
		if a.joins.Load() == 0 {
			continue
		}
		a.mu.Lock()
		req := &pb.ReportRequest{Host: a.id, Revision: a.revision}
		for id, runs := range a.running {
			r := &pb.InstanceReport{Instance: id, Attempt: 1, State: stateReady, Booted: &pb.Booted{Driver: "none"}, ReadyAt: ready}
			if !runs {
				r.State, r.Final, r.End = stateEnded, true, &pb.Cause{Kind: "exited", Planned: true, At: ready}
			}
			req.Instances = append(req.Instances, r)
		}
		a.mu.Unlock()
		_, _ = a.client.Report(ctx, connect.NewRequest(req))
	}
}
