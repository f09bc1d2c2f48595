package server

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// loadSize is how much there is of everything in a run under load.
type loadSize struct {
	agents, environments, apps, instances int // apps of each environment, instances of each app
	callers                               int
	quiet, asking                         time.Duration
}

// Gates of the run with 1,000 agents and 10,000 instances.
const (
	gateCall   = 100.0 // ms, p99
	gateMemory = 512.0 // MiB
)

// TestBenchAgents puts a server, a process of its own with its log on the disk, under 1,000 agents, in another process, that
// speak the real protocol over TLS, each on a connection of its own, and 10,000 instances. It asks what people ask, from
// a third process, while apps are scaled and deployed, starts the server again, and fails where a gate is not met: make
// bench-control. PINNACE_BENCH_AGENTS has another number of agents, with ten instances each.
func TestBenchAgents(t *testing.T) {
	asChild(t)
	if os.Getenv("PINNACE_BENCH_CONTROL") == "" {
		t.Skip("measures; run with make bench-control")
	}
	size := loadSize{agents: 1000, environments: 10, apps: 10, instances: 100, callers: 8, quiet: 20 * time.Second, asking: 30 * time.Second}
	if n, err := strconv.Atoi(os.Getenv("PINNACE_BENCH_AGENTS")); err == nil {
		size.agents, size.instances = n, max(1, n/10)
	}
	runLoad(t, size, true)
}

// TestManyAgents is a small size of that, without gates: through joins, deploys and another server every agent ends with
// exactly what it should have.
func TestManyAgents(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	runLoad(t, loadSize{agents: 20, environments: 2, apps: 2, instances: 25, callers: 4, asking: time.Second}, false)
}

// runLoad goes through the life of a fleet, and prints what it took.
func runLoad(t *testing.T, size loadSize, gates bool) {
	b := startLoad(t, size)
	table := &loadTable{T: t, gates: gates}
	begin := time.Now()
	b.until("all hosts are there", func(s loadStatus) bool { return s.joined == size.agents })
	joined := time.Since(begin)
	begin = time.Now()
	b.fill()
	b.until("all instances run", func(s loadStatus) bool { return s.running == b.instances() })
	filled, filling := time.Since(begin), b.status()
	b.check()
	var idle float64
	if size.quiet > 0 {
		before, since := b.cpu(), time.Now()
		time.Sleep(size.quiet)
		idle = float64(b.cpu()-before) / float64(time.Since(since))
	}
	settled := b.memory("VmRSS:")
	before, since := b.cpu(), time.Now()
	calls := b.ask(size.asking)
	busy := float64(b.cpu()-before) / float64(time.Since(since))
	b.settle()
	b.check()
	most := b.memory("VmHWM:")

	begin = time.Now()
	b.restart()
	b.until("all hosts are back", func(s loadStatus) bool { return s.back == size.agents })
	back := time.Since(begin)
	b.settle()
	b.check()
	again := b.memory("VmHWM:")

	table.head(fmt.Sprintf("%d agents, %d instances", size.agents, b.instances()))
	table.calls(calls)
	table.row("RSS of the server, most, until all was asked", most, gateMemory, "MiB")
	table.row("RSS of the server, most, after it started again", again, gateMemory, "MiB")
	table.say("RSS of the server while all run", settled, "MiB")
	table.say("all hosts joined", joined.Seconds(), "s")
	table.say("all instances were ready, from no environment", filled.Seconds(), "s")
	table.say("agents were sent meanwhile", float64(filling.bytes)/(1<<20), "MiB")
	table.say("server started again: all hosts are back", back.Seconds(), "s")
	table.say("processors used when nothing changes", idle, "")
	table.say("processors used while people ask and deploy", busy, "")
}

// loadTable prints figures with their gates.
type loadTable struct {
	*testing.T
	gates bool
}

func (l *loadTable) head(title string) {
	fmt.Printf("\n%-52s %10s %10s %10s %10s\n", title, "p50", "p99", "most", "gate")
}

// calls are the times of calls by what was called.
func (l *loadTable) calls(calls map[string][]time.Duration) {
	var all []time.Duration
	for _, what := range slices.Sorted(maps.Keys(calls)) {
		all = append(all, calls[what]...)
		l.times(fmt.Sprintf("%s (%d)", what, len(calls[what])), calls[what], false)
	}
	l.times(fmt.Sprintf("all calls (%d)", len(all)), all, true)
}

func (l *loadTable) times(what string, took []time.Duration, gate bool) {
	slices.Sort(took)
	ms := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	line := fmt.Sprintf("%-52s %7.1f ms %7.1f ms %7.1f ms", what, ms(0.5), ms(0.99), ms(1))
	if gate && l.gates {
		line += fmt.Sprintf(" %7.0f ms", gateCall)
		if ms(0.99) > gateCall {
			line += "  MISSED"
			l.Errorf("API calls: p99 %.1f ms, the gate is %.0f", ms(0.99), gateCall)
		}
	}
	fmt.Println(line)
}

func (l *loadTable) row(what string, got, gate float64, unit string) {
	line := fmt.Sprintf("%-52s %31.1f %s %6.0f %s", what, got, unit, gate, unit)
	if got > gate && l.gates {
		line += "  MISSED"
		l.Errorf("%s: %.1f %s, the gate is %.0f", what, got, unit, gate)
	}
	fmt.Println(line)
}

func (l *loadTable) say(what string, got float64, unit string) {
	fmt.Printf("%-52s %31.2f %s\n", what, got, unit)
}

// fill makes environments and deploys apps to them, each to as many instances as it is to have.
func (b *load) fill() {
	b.Helper()
	ctx := b.Context()
	for app := range b.size.apps {
		source := fmt.Sprintf("schema = \"v1\"\nname = \"app-%d\"\nresources = { memory = \"96MiB\", disk = \"64MiB\" }\nports.web = { port = 8080 }\nstop = { drain = \"0s\" }\nrollout = { hold = \"0s\", max_parallel = 100 }\n", app)
		var both [2]string
		for n, fate := range []string{"one", "two"} {
			res, err := b.client.CreateRelease(ctx, connect.NewRequest(request(b.T, source, fate)))
			if err != nil {
				b.Fatal(err)
			}
			both[n] = res.Msg.GetRelease().GetId()
		}
		b.releases = append(b.releases, both)
	}
	var wg sync.WaitGroup
	for env := range b.size.environments {
		name := fmt.Sprint("env-", env)
		if _, err := b.client.CreateEnvironment(ctx, connect.NewRequest(&pb.CreateEnvironmentRequest{Name: name})); err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			for app := range b.size.apps {
				d, err := b.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: name, Release: b.releases[app][0]}))
				if err != nil {
					b.Error(err)
					return
				}
				b.follow(d.Msg.GetDeployment().GetId())
				s, err := b.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: name, App: fmt.Sprint("app-", app), Count: uint32(b.size.instances)}))
				if err != nil {
					b.Error(err)
					return
				}
				b.follow(s.Msg.GetDeployment().GetId())
			}
		})
	}
	wg.Wait()
}

// follow waits for the end of a deployment.
func (b *load) follow(id string) {
	stream, err := b.client.WatchDeployment(b.Context(), connect.NewRequest(&pb.WatchDeploymentRequest{Deployment: id}))
	if err != nil {
		b.Error(err)
		return
	}
	defer stream.Close()
	state := ""
	for stream.Receive() {
		state = stream.Msg().GetDeployment().GetState()
	}
	if state != "succeeded" {
		b.Errorf("deployment %s ended %q, %v", id, state, stream.Err())
	}
}

// ask makes the calls of people for some time, of whom one deploys. It gives how long each call took.
func (b *load) ask(d time.Duration) map[string][]time.Duration {
	b.Helper()
	var mu sync.Mutex
	took := map[string][]time.Duration{}
	var wg sync.WaitGroup
	begin := time.Now()
	for caller := range b.size.callers {
		wg.Go(func() {
			for n := caller; time.Since(begin) < d; n++ {
				env, app := n%b.size.environments, n/b.size.environments%b.size.apps
				one := time.Now()
				what, err := b.call(n, caller, env, app)
				each := time.Since(one)
				if err != nil {
					b.Errorf("%s, call %d of caller %d: %v", what, n, caller, err)
					return
				}
				mu.Lock()
				took[what] = append(took[what], each)
				mu.Unlock()
				time.Sleep(20 * time.Millisecond) // people, and their scripts, do something with the answer
			}
		})
	}
	wg.Wait()
	return took
}

// call is one of the calls that people make.
func (b *load) call(n, caller, at, of int) (what string, err error) {
	ctx := b.Context()
	env, app := fmt.Sprint("env-", at), fmt.Sprint("app-", of)
	if caller == 0 && n%20 == 0 { // a change that goes to the log, and to agents
		if what = "scale"; n%40 == 0 {
			what = "deploy"
			_, err = b.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: env, Release: b.releases[of][n/40%2]}))
		} else {
			_, err = b.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: env, App: app, Count: uint32(b.size.instances - n/20%10)}))
		}
		if code := connect.CodeOf(err); code == connect.CodeAborted || code == connect.CodeInvalidArgument || code == connect.CodeFailedPrecondition {
			err = nil // one is under way, or nothing would change
		}
		return what, err
	}
	switch n % 7 {
	case 0:
		_, err = b.client.GetStatus(ctx, connect.NewRequest(&pb.GetStatusRequest{Environment: env}))
		return "status of an environment", err
	case 1:
		_, err = b.client.ListInstances(ctx, connect.NewRequest(&pb.ListInstancesRequest{Environment: env, App: app}))
		return "instances of an app", err
	case 2:
		_, err = b.client.ListInstances(ctx, connect.NewRequest(&pb.ListInstancesRequest{Environment: env}))
		return "instances of an environment, first 500", err
	case 3:
		_, err = b.client.ListHosts(ctx, connect.NewRequest(&pb.ListHostsRequest{}))
		return "hosts, first 500", err
	case 4:
		_, err = b.client.ListDeployments(ctx, connect.NewRequest(&pb.ListDeploymentsRequest{Environment: env}))
		return "deployments of an environment", err
	case 5:
		_, err = b.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{Environment: env, Set: map[string]string{"N": fmt.Sprint(n)}}))
		return "set a variable", err
	default:
		return "first line of watching a deployment", b.firstLine(ctx, env, app)
	}
}

// firstLine watches the newest deployment of an app until something comes.
func (b *load) firstLine(ctx context.Context, env, app string) error {
	res, err := b.client.GetStatus(ctx, connect.NewRequest(&pb.GetStatusRequest{Environment: env, App: app}))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := b.client.WatchDeployment(ctx, connect.NewRequest(&pb.WatchDeploymentRequest{Deployment: res.Msg.GetApps()[0].GetLatest().GetId()}))
	if err != nil {
		return err
	}
	defer stream.Close()
	stream.Receive() // the journals of older ones are not kept, and such a watch ends at once
	return stream.Err()
}

// settle waits until no deployment is under way, and every agent runs what the state has.
func (b *load) settle() {
	b.Helper()
	b.wait("all deployments have ended", func() (bool, string) {
		want := 0
		for env := range b.size.environments {
			res, err := b.client.GetStatus(b.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: fmt.Sprint("env-", env)}))
			if err != nil {
				return false, err.Error()
			}
			for _, app := range res.Msg.GetApps() {
				if want += int(app.GetCount()); app.GetActive() != nil {
					return false, "active: " + app.GetActive().GetId()
				}
			}
		}
		s := b.status()
		return s.running == want, fmt.Sprintf("%d of %d run", s.running, want)
	})
}
