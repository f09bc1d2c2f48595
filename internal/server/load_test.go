package server

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// asLoadServer has the test binary be the server that TestBenchAgents loads, with its log in that directory.
const asLoadServer = "PINNACE_TEST_LOAD_SERVER"

// What the bench is made of. PINNACE_BENCH_AGENTS has another number of agents.
const (
	loadAgents       = 1000
	loadEnvironments = 10
	loadApps         = 10 // of each environment
	loadInstances    = 100
	loadCallers      = 8
	loadHeartbeat    = 2 * time.Second // as the agent's
)

// TestBenchAgents puts a server, a process of its own with its log on the disk, under 1,000 agents that speak the real
// protocol, each with a connection of its own, and 10,000 instances. It asks what people ask, deploys meanwhile, and
// fails where a gate is not met: make bench-control.
func TestBenchAgents(t *testing.T) {
	if dir := os.Getenv(asLoadServer); dir != "" {
		serveLoad(t, dir)
		return
	}
	if os.Getenv("PINNACE_BENCH_CONTROL") == "" {
		t.Skip("measures; run with make bench-control")
	}
	agents := loadAgents
	if n, err := strconv.Atoi(os.Getenv("PINNACE_BENCH_AGENTS")); err == nil {
		agents = n
	}
	b := startLoad(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	all := make([]*loadAgent, agents)
	begin := time.Now()
	for n := range all {
		all[n] = &loadAgent{id: fmt.Sprintf("host-%04d", n), running: map[string]bool{}}
		all[n].client = b.admit(all[n].id)
		wg.Go(func() { all[n].run(ctx) })
	}
	b.until("all hosts are there", func() (int, int) {
		n := 0
		for _, a := range all {
			if a.joined.Load() {
				n++
			}
		}
		return n, agents
	})
	joined := time.Since(begin)
	begin = time.Now()
	scale := agents * loadEnvironments * loadApps * loadInstances / loadAgents / (loadEnvironments * loadApps)
	b.fill(scale)
	want := scale * loadEnvironments * loadApps
	b.until("all instances run", func() (int, int) {
		n := 0
		for _, a := range all {
			n += int(a.count.Load())
		}
		return n, want
	})
	filled := time.Since(begin)
	settled := b.memory()
	cpuBefore, idle := b.cpu(), time.Now()
	time.Sleep(5 * time.Second)
	quiet := float64(b.cpu()-cpuBefore) / float64(time.Since(idle))
	took := b.ask(20 * time.Second)
	hwm := b.memory()
	fmt.Printf("\n%-46s %12s %10s %10s\n", fmt.Sprintf("%d agents, %d instances", agents, want), "measured", "gate", "goal")
	p := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	row := func(what string, got, gate float64, unit string) {
		mark := ""
		if got > gate {
			mark = "  MISSED"
			t.Errorf("%s: %.1f %s, the gate is %.0f", what, got, unit, gate)
		}
		fmt.Printf("%-46s %9.1f %-3s %6.0f %-3s%s\n", what, got, unit, gate, unit, mark)
	}
	row("API call, p99, while apps are deployed", p(0.99), 100, "ms")
	row("RSS of the server, most", hwm, 512, "MiB")
	fmt.Printf("  p50 %.1f ms of %d calls by %d callers; all hosts joined in %.1f s, all instances were ready in %.1f s\n",
		p(0.5), len(took), loadCallers, joined.Seconds(), filled.Seconds())
	fmt.Printf("  %.0f MiB when all run, %.2f cores of CPU for heartbeats every %s\n", settled, quiet, loadHeartbeat)
}

// load is a server under load and those who call it.
type load struct {
	*testing.T
	agentURL string
	pid      int
	client   pinnacev1connect.ControlServiceClient
	releases [2][loadApps]string
}

func startLoad(t *testing.T) *load {
	t.Helper()
	args := []string{"-test.run=TestBenchAgents$", "-test.v", "-test.timeout=0"}
	if profile := os.Getenv("PINNACE_BENCH_PROFILE"); profile != "" { // of the server
		args = append(args, "-test.cpuprofile="+profile)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asLoadServer+"="+t.TempDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // it ends then
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var api, agents string
		if n, _ := fmt.Sscanf(lines.Text(), "serving %s %s", &api, &agents); n == 2 {
			return &load{T: t, agentURL: agents, pid: cmd.Process.Pid, client: pinnacev1connect.NewControlServiceClient(httpClient(adminToken), api)}
		}
	}
	t.Fatal("the server did not start")
	return nil
}

// serveLoad is the server's process. It ends when its stdin does.
func serveLoad(t *testing.T, dir string) {
	s, err := New(t.Context(), Options{
		Engine: sqlite.New(sqlite.Options{Dir: dir}), Logger: slog.New(slog.DiscardHandler), AdminToken: adminToken, Authority: testAuthority(), HostTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var apiTo, agentsTo atomic.Pointer[http.Handler]
	api, agents := s.Handler(), s.AgentHandler()
	apiTo.Store(&api)
	agentsTo.Store(&agents)
	apiSide, agentSide := listen(t, &apiTo), listen(t, &agentsTo, provenHost)
	fmt.Printf("serving %s %s\n", apiSide.URL, agentSide.URL)
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	apiSide.CloseClientConnections()
	agentSide.CloseClientConnections()
	cancel()
	if err := errors.Join(<-ended, s.Close()); err != nil {
		t.Error(err)
	}
}

// admit has a host let in, and gives what it speaks to the server with: a connection of its own.
func (b *load) admit(id string) pinnacev1connect.AgentServiceClient {
	b.Helper()
	return pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: withCertificate{b.certificate(id), httpClient("").Transport}}, b.agentURL)
}

// certificate is that of a host which is let in.
func (b *load) certificate(id string) []byte {
	b.Helper()
	token, err := b.client.CreateJoinToken(b.Context(), connect.NewRequest(&pb.CreateJoinTokenRequest{Host: id}))
	if err != nil {
		b.Fatal(err)
	}
	own := httpClient("")
	defer own.CloseIdleConnections()
	anonymous := pinnacev1connect.NewAgentServiceClient(own, b.agentURL)
	res, err := anonymous.Admit(b.Context(), connect.NewRequest(&pb.AdmitRequest{Token: token.Msg.GetSecret(), Host: id, Request: testRequest()}))
	if err != nil {
		b.Fatal(err)
	}
	return res.Msg.GetCertificate()
}

// until waits for a number of things that there are to be, and gives up when nothing has come for a minute.
func (b *load) until(what string, count func() (have, want int)) {
	b.Helper()
	last, since := -1, time.Now()
	for {
		have, want := count()
		if have >= want {
			return
		}
		if have != last {
			last, since = have, time.Now()
		}
		if time.Since(since) > time.Minute {
			b.Fatalf("%s: %d of %d, and no more for a minute", what, have, want)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// fill makes environments and deploys apps to them, each to as many instances as it is to have.
func (b *load) fill(scale int) {
	b.Helper()
	ctx := b.Context()
	for app := range loadApps {
		source := fmt.Sprintf("schema = \"v1\"\nname = \"app-%d\"\nresources = { memory = \"96MiB\", disk = \"64MiB\" }\nports.web = { port = 8080 }\nstop = { drain = \"0s\" }\nrollout = { hold = \"0s\", max_parallel = 100 }\n", app)
		for n, fate := range []string{"one", "two"} {
			res, err := b.client.CreateRelease(ctx, connect.NewRequest(request(b.T, source, fate)))
			if err != nil {
				b.Fatal(err)
			}
			b.releases[n][app] = res.Msg.GetRelease().GetId()
		}
	}
	var wg sync.WaitGroup
	for env := range loadEnvironments {
		name := fmt.Sprint("env-", env)
		if _, err := b.client.CreateEnvironment(ctx, connect.NewRequest(&pb.CreateEnvironmentRequest{Name: name})); err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			for app := range loadApps {
				d, err := b.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: name, Release: b.releases[0][app]}))
				if err != nil {
					b.Error(err)
					return
				}
				b.follow(d.Msg.GetDeployment().GetId())
				s, err := b.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: name, App: fmt.Sprint("app-", app), Count: uint32(scale)}))
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

// ask makes the calls of people for some time, of whom one deploys. It gives how long each call took, in order.
func (b *load) ask(d time.Duration) []time.Duration {
	b.Helper()
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	begin := time.Now()
	for caller := range loadCallers {
		wg.Go(func() {
			for n := caller; time.Since(begin) < d; n++ {
				env, app := fmt.Sprint("env-", n%loadEnvironments), fmt.Sprint("app-", n/loadEnvironments%loadApps)
				one := time.Now()
				err := b.call(n, caller, env, app)
				each := time.Since(one)
				if err != nil {
					b.Errorf("call %d of caller %d: %v", n, caller, err)
					return
				}
				mu.Lock()
				took = append(took, each)
				mu.Unlock()
				time.Sleep(20 * time.Millisecond) // people, and their scripts, do something with the answer
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took
}

// call is one of the calls that people make.
func (b *load) call(n, caller int, env, app string) (err error) {
	ctx := b.Context()
	if caller == 0 && n%25 == 0 { // a change that goes to the log, and to all agents
		_, err = b.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: env, App: app, Count: uint32(loadInstances - n/25%10)}))
		if code := connect.CodeOf(err); code == connect.CodeAborted || code == connect.CodeInvalidArgument || code == connect.CodeFailedPrecondition {
			return nil
		}
		return err
	}
	switch n % 6 {
	case 0:
		_, err = b.client.GetStatus(ctx, connect.NewRequest(&pb.GetStatusRequest{Environment: env}))
	case 1:
		_, err = b.client.ListInstances(ctx, connect.NewRequest(&pb.ListInstancesRequest{Environment: env, App: app}))
	case 2:
		_, err = b.client.ListInstances(ctx, connect.NewRequest(&pb.ListInstancesRequest{Environment: env}))
	case 3:
		_, err = b.client.ListHosts(ctx, connect.NewRequest(&pb.ListHostsRequest{}))
	case 4:
		_, err = b.client.ListDeployments(ctx, connect.NewRequest(&pb.ListDeploymentsRequest{Environment: env}))
	case 5:
		_, err = b.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{Environment: env, Set: map[string]string{"N": fmt.Sprint(n)}}))
	}
	return err
}

// memory is the most that the server had of memory, in MiB.
func (b *load) memory() float64 { return float64(b.proc("status", "VmHWM:")) / 1024 }

// cpu is what the server has used.
func (b *load) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100
}

func (b *load) proc(file, key string) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", b.pid, file))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("no %s in /proc/%d/%s on %s", key, b.pid, file, runtime.GOOS)
	return 0
}

// loadAgent is a host whose instances are ready as soon as they are placed, and end as soon as they are to.
type loadAgent struct {
	id     string
	client pinnacev1connect.AgentServiceClient
	joined atomic.Bool
	count  atomic.Int64
	again  time.Duration // how long it waits for a server that is gone; 1 s when 0

	mu       sync.Mutex
	running  map[string]bool // guarded by mu; false when it has ended
	revision uint64          // guarded by mu
}

func (a *loadAgent) run(ctx context.Context) {
	changed := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { a.reports(ctx, changed) })
	defer wg.Wait()
	for ctx.Err() == nil {
		_, err := a.client.Join(ctx, connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{
			Id: a.id, Name: a.id, Architecture: "amd64", MemoryBytes: 4 << 30, CpuMilli: 4000, DiskBytes: 64 << 30, Driver: "none",
		}}))
		if err == nil {
			a.joined.Store(true)
			if stream, err := a.client.WatchAssignments(ctx, connect.NewRequest(&pb.WatchAssignmentsRequest{Host: a.id})); err == nil {
				for stream.Receive() {
					if stream.Msg().GetComplete() && a.take(stream.Msg()) {
						select {
						case changed <- struct{}{}:
						default:
						}
					}
				}
				stream.Close()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(cmp.Or(a.again, time.Second)):
		}
	}
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

// reports tells what runs when that has changed, and as a heartbeat.
func (a *loadAgent) reports(ctx context.Context, changed <-chan struct{}) {
	ready := timestamppb.Now()
	tick := time.NewTicker(loadHeartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
		if !a.joined.Load() {
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
