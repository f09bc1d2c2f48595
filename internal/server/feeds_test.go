package server

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/feed"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// tail follows the changes that a host is told of, beside the host's agent.
type tail struct {
	p      *plane
	host   string
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu      sync.Mutex
	known   feed.Known                   // guarded by mu
	set     *pb.WatchAssignmentsResponse // guarded by mu; the newest one of the stream
	halfway bool                         // guarded by mu; more of a message is to come
	sets    int                          // guarded by mu; how many have come
	largest int                          // guarded by mu; the largest message, in bytes
	problem error                        // guarded by mu
}

func (p *plane) tail(host string) *tail {
	t := &tail{p: p, host: host}
	t.start()
	p.t.Cleanup(t.stop)
	return t
}

func (t *tail) start() {
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	client := t.p.hostClient(t.host)
	t.done.Go(func() {
		for ctx.Err() == nil {
			stream, err := client.WatchAssignments(ctx, connect.NewRequest(&pb.WatchAssignmentsRequest{Host: t.host, Follows: true}))
			if err == nil {
				t.mu.Lock()
				t.known, t.set, t.halfway = feed.Known{}, nil, true
				t.mu.Unlock()
				for stream.Receive() {
					t.take(stream.Msg())
				}
				stream.Close()
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}

func (t *tail) stop() {
	t.cancel()
	t.done.Wait()
}

// again breaks the stream and begins another one.
func (t *tail) again() {
	t.stop()
	t.start()
}

func (t *tail) take(msg *pb.WatchAssignmentsResponse) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.known.Apply(msg.GetFleetChanges()); err != nil {
		t.problem = err
	}
	t.halfway = msg.GetMore()
	t.largest = max(t.largest, proto.Size(msg))
	if msg.GetComplete() {
		t.set = proto.CloneOf(msg)
		t.sets++
	}
}

// full is what is known, in the form of a set for agents that do not follow; nil while there is none.
func (t *tail) full() *pb.WatchAssignmentsResponse {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.problem != nil {
		t.p.t.Error(t.problem)
	}
	if t.set == nil || t.halfway {
		return nil
	}
	set := proto.CloneOf(t.set)
	set.FleetApart, set.FleetChanges = false, nil
	set.Peers, set.Environments = t.known.Fleet(t.host)
	return set
}

// agrees waits until a host knows by changes what a set says that is made anew.
func (t *tail) agrees(when string) {
	t.p.t.Helper()
	var got, want *pb.WatchAssignmentsResponse
	defer func() {
		if t.p.t.Failed() {
			t.p.t.Logf("%s, %s:\nknows %v\nwant  %v", when, t.host, got, want)
		}
	}()
	t.p.eventually(when+": "+t.host+" knows by changes what a whole set says", func() bool {
		got, want = t.full(), t.p.assignments(t.p.freshView(), t.host)
		return got != nil && sameSet(got, want)
	})
}

// TestChangesEqualSets: agents that follow changes, through whatever happens, in the fleet, to their streams and to the
// server, know what a set says that is made anew.
func TestChangesEqualSets(t *testing.T) {
	p := newPlane(t)
	p.hostTimeout = 2 * time.Second
	p.kill()
	p.boot()
	rnd := rand.New(rand.NewPCG(1, 2))
	ctx := t.Context()
	hosts := []string{"h1", "h2", "h3", "h4", "h5"}
	agents := map[string]*fakeAgent{}
	facts := func(n int) func(*pb.HostFacts) {
		return func(h *pb.HostFacts) {
			if n != 2 { // that one leads no connections to others
				h.PeerAddress = fmt.Sprintf("192.0.2.%d:%d", n, 7000+rnd.IntN(3))
			}
			if n > 3 && rnd.IntN(2) == 0 {
				h.Labels = map[string]string{"ingress": "true"}
			}
		}
	}
	tails := map[string]*tail{}
	for n, host := range hosts {
		agents[host] = p.agent(host, facts(n))
		tails[host] = p.tail(host)
	}
	apps := []string{"web", "api", "job"}
	releases := map[string][]string{}
	for n, app := range apps {
		source := fmt.Sprintf("schema = \"v1\"\nname = %q\nresources = { memory = \"96MiB\", disk = \"64MiB\" }\nports.web = { port = 8080 }\nstop = { drain = \"0s\" }\nrollout.hold = \"0s\"\n", app)
		if app == "web" {
			source = text(app, 8000+n, "")
		}
		releases[app] = []string{p.release(source, "v1"), p.release(source, "v2"), p.release(source, "final")}
	}
	environments := []string{"dev", "prod"}
	for _, env := range environments {
		p.environment(env)
	}
	steps := 60
	if testing.Short() {
		steps = 15
	}
	for step := range steps {
		env, app, host := environments[rnd.IntN(2)], apps[rnd.IntN(3)], hosts[rnd.IntN(len(hosts))]
		if app == "web" {
			env = "dev" // its port is there once
		}
		what := ""
		// Much of this is refused at times, as when a deployment is under way. That is a part of it.
		switch n := rnd.IntN(12); n {
		case 0, 1:
			what = "deploy"
			_, _ = p.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: env, Release: releases[app][rnd.IntN(3)]}))
		case 2, 3, 4:
			what = "scale"
			_, _ = p.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: env, App: app, Count: uint32(1 + rnd.IntN(6))}))
		case 5:
			what = "stop"
			_, _ = p.client.Stop(ctx, connect.NewRequest(&pb.StopRequest{Environment: env, App: app}))
		case 6:
			what = "drain"
			_, _ = p.client.DrainHost(ctx, connect.NewRequest(&pb.DrainHostRequest{Host: host, End: rnd.IntN(3) > 0}))
		case 7:
			what = "another agent on " + host
			agents[host].leave()
			agents[host] = p.agent(host, facts(slices.Index(hosts, host)))
		case 8:
			what = "set or unset a route"
			_, _ = p.client.SetRoute(ctx, connect.NewRequest(&pb.SetRouteRequest{Environment: env, Route: &pb.Route{App: app, Port: "web", PublicPort: uint32(9000 + rnd.IntN(3))}}))
		case 9:
			what = "another stream"
			tails[host].again()
		case 10:
			what = "destroy an app"
			_, _ = p.client.DestroyApp(ctx, connect.NewRequest(&pb.DestroyAppRequest{Environment: env, App: app, Confirm: app}))
		case 11:
			what = "another server"
			if rnd.IntN(3) == 0 {
				p.kill()
				p.boot()
			}
		}
		if rnd.IntN(3) == 0 {
			continue // the next one comes upon this one
		}
		for _, host := range hosts {
			tails[host].agrees(fmt.Sprintf("step %d, %s", step, what))
		}
	}
	for _, host := range hosts {
		tails[host].agrees("at the end")
	}
}

// TestOneHearsOfItsOwn: what changes elsewhere makes no new set, and a host that leads no connections is told of nothing
// that runs on others.
func TestOneHearsOfItsOwn(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1", reachedAt("192.0.2.1:7402"))
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	p.agent("h2", reachedAt("192.0.2.2:7402"))
	p.agent("h3")
	tails := map[string]*tail{"h1": p.tail("h1"), "h2": p.tail("h2"), "h3": p.tail("h3")}
	for _, tl := range tails {
		tl.agrees("at first")
	}
	count := func(host string) int {
		tails[host].mu.Lock()
		defer tails[host].mu.Unlock()
		return tails[host].sets
	}
	before := count("h2")
	two := p.release(text("api", 80, ""), "v2")
	// Only the host of the instance may have the successor: the others are full.
	for _, host := range []string{"h2", "h3"} {
		if _, err := p.client.DrainHost(t.Context(), connect.NewRequest(&pb.DrainHostRequest{Host: host})); err != nil {
			t.Fatal(err)
		}
	}
	p.watch(p.deploy("dev", two).GetId())
	for _, tl := range tails {
		tl.agrees("after a deploy")
	}
	if got := elsewhereOf(tails["h2"].full(), "dev", "api"); len(got) != 1 || got[0] != "0 h1 active" {
		t.Errorf("h2 knows of %q", got)
	}
	if now := count("h2"); now != before {
		t.Errorf("h2 got %d sets for what happened on h1", now-before)
	}
	if set := tails["h3"].full(); len(set.GetEnvironments()) != 0 || len(set.GetPeers()) != 2 {
		t.Errorf("h3 has nothing to do with dev, and knows %v", set)
	}
}

// TestBoundedMessages: however much there is to say, messages are small, and are acted on when all is said.
func TestBoundedMessages(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1", reachedAt("192.0.2.1:7402"), func(h *pb.HostFacts) { h.MemoryBytes, h.DiskBytes, h.CpuMilli = 1<<40, 1<<44, 1<<20 })
	one := p.release(text("api", 80, "rollout.max_parallel = 100"), "v1")
	p.watch(p.deploy("dev", one).GetId())
	res, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: fleet.MaxCount}))
	if err != nil {
		t.Fatal(err)
	}
	p.watch(res.Msg.GetDeployment().GetId())
	p.agent("h2", reachedAt("192.0.2.2:7402"))
	tl := p.tail("h2")
	tl.agrees("after all")
	if n := len(elsewhereOf(tl.full(), "dev", "api")); n != fleet.MaxCount {
		t.Errorf("h2 knows of %d instances", n)
	}
	tl.mu.Lock()
	defer tl.mu.Unlock()
	if tl.largest > 2*feed.MaxPiece {
		t.Errorf("a message has %d bytes", tl.largest)
	}
}

// TestAgentsOfTwoVersions: a host of the version before, which follows no changes, and one that does are told of the same
// fleet, through a deploy and a scale.
func TestAgentsOfTwoVersions(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	older, newer := p.agentOf("h1", true), p.agent("h2")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	res, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 4}))
	if err != nil {
		t.Fatal(err)
	}
	p.succeeds(res.Msg.GetDeployment())
	apps := func(a *fakeAgent) (names []string) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, env := range a.networks {
			for _, app := range env.GetApps() {
				names = append(names, env.GetName()+"/"+app.GetApp())
			}
		}
		return names
	}
	p.eventually("both hosts run some and know the app", func() bool {
		on := map[string]int{}
		for _, i := range p.instances("dev", false) {
			on[i.GetHost()]++
		}
		return on["h1"] == 2 && on["h2"] == 2 &&
			slices.Equal(apps(older), []string{"dev/api"}) && slices.Equal(apps(newer), []string{"dev/api"})
	})
}
