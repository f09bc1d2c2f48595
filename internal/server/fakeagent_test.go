package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/feed"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// fakeAgent is a host that does as it is told, without machines. It outlives servers and keeps what it runs.
type fakeAgent struct {
	id     string
	client pinnacev1connect.AgentServiceClient
	facts  *pb.HostFacts
	stop   context.CancelFunc
	// before makes it one of the version before, which does not follow changes.
	before bool
	done   sync.WaitGroup
	report chan struct{}

	mu sync.Mutex
	// freeze holds instances that pull; closed lets them go.
	freeze    chan struct{}
	instances map[string]*fakeInstance
	fate      string
	revision  uint64
	assigned  map[string]*pb.Assignment // what came last
	met       map[string]bool           // instances that it was told of at some time
	begun     map[string]int            // how often it has started each
	networks  []*pb.AssignedEnvironment
	parked    []string // instances that were parked and not any more, or the other way round, as "id true"
	problems  []string
	chatty    bool      // its logs have no end
	sentAt    time.Time // when the last of those could be sent
	ended     []string  // how commands ended that nobody waited for any more
	volumes   map[string]*pb.VolumeReport
	spoilt    uint64     // the version of secrets with which nothing is ready
	known     feed.Known // of the stream
}

type fakeInstance struct {
	agent  *fakeAgent
	vars   map[string]string
	fate   string
	parked bool // guarded by agent.mu
	stop   chan struct{}
	now    *pb.InstanceReport // guarded by agent.mu
}

func (p *plane) agent(id string, change ...func(*pb.HostFacts)) *fakeAgent {
	return p.agentOf(id, false, change...)
}

// agentOf starts an agent, one of the version before or not.
func (p *plane) agentOf(id string, before bool, change ...func(*pb.HostFacts)) *fakeAgent {
	a := &fakeAgent{
		id: id, before: before, client: p.hostClient(id), report: make(chan struct{}, 1),
		freeze: make(chan struct{}), instances: map[string]*fakeInstance{}, begun: map[string]int{}, volumes: map[string]*pb.VolumeReport{},
		facts: &pb.HostFacts{Id: id, Name: id, Architecture: "amd64", MemoryBytes: 4 << 30, CpuMilli: 2000, DiskBytes: 64 << 30, Driver: "fake"},
	}
	for _, c := range change {
		c(a.facts)
	}
	close(a.freeze)
	ctx, stop := context.WithCancel(context.Background())
	a.stop = stop
	a.done.Go(func() { a.follow(ctx) })
	a.done.Go(func() { a.reports(ctx) })
	p.t.Cleanup(func() {
		stop()
		a.done.Wait()
		for _, problem := range a.problems {
			p.t.Errorf("agent %s: %s", id, problem)
		}
	})
	p.eventually("host "+id+" is connected", func() bool {
		on, _ := p.observed.connected(id, time.Now())
		return on
	})
	return a
}

func (a *fakeAgent) problem(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.problems = append(a.problems, fmt.Sprintf(format, args...))
}

// vars are the variables of an instance that runs.
func (a *fakeAgent) vars(instance string) map[string]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if i := a.instances[instance]; i != nil {
		return i.vars
	}
	return nil
}

// assignment is what the agent was told last of an instance.
func (a *fakeAgent) assignment(instance string) *pb.Assignment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.assigned[instance]
}

// routes are those of an app as the agent was told them last.
func (a *fakeAgent) routes(environment, app string) []*pb.AssignedRoute {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, env := range a.networks {
		for _, known := range env.GetApps() {
			if env.GetName() == environment && known.GetApp() == app {
				return known.GetRoutes()
			}
		}
	}
	return nil
}

// become gives instances that start from now on a fate, whatever their image; an empty one is that of the image.
func (a *fakeAgent) become(fate string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fate = fate
}

// hold makes instances that start from now on wait until release is called.
func (a *fakeAgent) hold() (release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	freeze := make(chan struct{})
	a.freeze = freeze
	return sync.OnceFunc(func() { close(freeze) })
}

// follow acts on assignments, through every restart of the server.
func (a *fakeAgent) follow(ctx context.Context) {
	for ctx.Err() == nil {
		_, err := a.client.Join(ctx, connect.NewRequest(&pb.JoinRequest{Host: a.facts}))
		if err == nil {
			if stream, err := a.client.WatchAssignments(ctx, connect.NewRequest(&pb.WatchAssignmentsRequest{Host: a.id, Follows: !a.before})); err == nil {
				a.mu.Lock()
				a.known = feed.Known{}
				a.mu.Unlock()
				for stream.Receive() {
					a.act(ctx, stream.Msg())
				}
				stream.Close()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *fakeAgent) act(ctx context.Context, msg *pb.WatchAssignmentsResponse) {
	a.hear(msg)
	a.meet(msg)
	for _, r := range msg.GetLogRequests() {
		a.done.Go(func() { a.sendLogs(ctx, r) })
	}
	for _, task := range msg.GetExecTasks() {
		a.done.Go(func() { a.serveExec(ctx, task) })
	}
	for _, task := range msg.GetHostTasks() {
		a.done.Go(func() { a.serveTask(ctx, task) })
	}
	if !msg.GetComplete() {
		return
	}
	releases := map[string]*pb.AssignedRelease{}
	for _, r := range msg.GetReleases() {
		releases[r.GetId()] = r
		if m, err := manifest.ParseCanonical(r.GetManifestCanonical()); err != nil || string(m.Hash()) != r.GetManifestHash() {
			a.problem("release %s: its manifest is not what its hash says: %v", r.GetId(), err)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if msg.GetRevision() < a.revision {
		a.problems = append(a.problems, fmt.Sprintf("revision %d after %d", msg.GetRevision(), a.revision))
	}
	a.revision = msg.GetRevision()
	a.keepVolumes(msg)
	a.assigned = map[string]*pb.Assignment{}
	wanted := map[string]bool{}
	for _, asg := range msg.GetAssignments() {
		wanted[asg.GetInstance()] = true
		a.assigned[asg.GetInstance()] = asg
		i := a.instances[asg.GetInstance()]
		if i == nil {
			i = a.start(ctx, asg, releases[asg.GetRelease()])
		}
		if i.parked != asg.GetParked() {
			i.parked = asg.GetParked()
			a.parked = append(a.parked, fmt.Sprint(asg.GetInstance(), " ", i.parked))
		}
		i.rotate(asg)
		if asg.GetStop() {
			i.askToStop()
		}
	}
	for id, i := range a.instances {
		if !wanted[id] {
			i.askToStop()
			delete(a.instances, id)
		}
	}
}

// hear takes in what a message says of the fleet.
func (a *fakeAgent) hear(msg *pb.WatchAssignmentsResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if msg.GetComplete() && msg.GetFleetApart() == a.before {
		a.problems = append(a.problems, fmt.Sprintf("a set has the fleet apart: %v", msg.GetFleetApart()))
	}
	if a.before {
		if msg.GetComplete() {
			a.networks = msg.GetEnvironments()
		}
		return
	}
	if err := a.known.Apply(msg.GetFleetChanges()); err != nil {
		a.problems = append(a.problems, err.Error())
	}
	if !msg.GetMore() {
		_, a.networks = a.known.Fleet(a.id)
	}
}

// meet notes the instances that the agent has been told of. It can't answer what is wanted of others.
func (a *fakeAgent) meet(msg *pb.WatchAssignmentsResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.met == nil {
		a.met = map[string]bool{}
	}
	for _, asg := range msg.GetAssignments() {
		a.met[asg.GetInstance()] = true
	}
	for _, r := range msg.GetLogRequests() {
		if !a.met[r.GetInstance()] {
			a.problems = append(a.problems, "is asked for the logs of "+r.GetInstance()+", which it was not told of")
		}
	}
	for _, task := range msg.GetExecTasks() {
		if !a.met[task.GetInstance()] {
			a.problems = append(a.problems, "is to run a command in "+task.GetInstance()+", which it was not told of")
		}
	}
	for _, task := range msg.GetHostTasks() {
		if forward := task.GetForward(); forward != nil && !a.met[forward.GetInstance()] {
			a.problems = append(a.problems, "is to lead to a port of "+forward.GetInstance()+", which it was not told of")
		}
	}
}

// start runs an instance; a.mu is held.
func (a *fakeAgent) start(ctx context.Context, asg *pb.Assignment, r *pb.AssignedRelease) *fakeInstance {
	var config struct{ Fate string }
	_ = json.Unmarshal(r.GetPlatform().GetImageConfig(), &config)
	i := &fakeInstance{agent: a, fate: config.Fate, vars: asg.GetVars(), stop: make(chan struct{}), now: &pb.InstanceReport{Instance: asg.GetInstance(), State: statePlaced}}
	if task := asg.GetTask(); len(task) > 0 {
		i.fate = task[0]
	}
	if a.fate != "" {
		i.fate = a.fate
	}
	a.instances[asg.GetInstance()] = i
	a.begun[asg.GetInstance()]++
	freeze := a.freeze
	a.done.Go(func() { i.run(ctx, freeze) })
	return i
}

func (i *fakeInstance) askToStop() {
	select {
	case <-i.stop:
	default:
		close(i.stop)
	}
}

// say changes the report of the instance. The new one is sent soon.
func (i *fakeInstance) say(state string, change func(*pb.InstanceReport)) {
	i.agent.mu.Lock()
	r := &pb.InstanceReport{
		Instance: i.now.GetInstance(), Attempt: i.now.GetAttempt(), State: state, Booted: i.now.GetBooted(), ReadyAt: i.now.GetReadyAt(),
		End: i.now.GetEnd(), Final: i.now.GetFinal(), SecretVersions: i.now.GetSecretVersions(),
	}
	if change != nil {
		change(r)
	}
	i.now = r
	i.agent.mu.Unlock()
	select {
	case i.agent.report <- struct{}{}:
	default:
	}
}

func (i *fakeInstance) end(final, planned bool, cause *pb.Cause) {
	cause.Planned, cause.At = planned, timestamppb.Now()
	i.say(stateEnded, func(r *pb.InstanceReport) { r.End, r.Final = cause, final })
}

// run lives the life that the image's fate says.
func (i *fakeInstance) run(ctx context.Context, freeze chan struct{}) {
	stopped := func() { i.end(true, true, &pb.Cause{Kind: "exited"}) }
	for attempt := uint32(1); ; attempt++ {
		i.say("pulling", func(r *pb.InstanceReport) {
			r.Attempt, r.Booted, r.ReadyAt, r.End, r.Message = attempt, nil, nil, nil, "layer 1 of 1"
		})
		select {
		case <-freeze:
		case <-i.stop:
			stopped()
			return
		case <-ctx.Done():
			return
		}
		if i.fate == "no-entrypoint" {
			i.end(false, false, &pb.Cause{Kind: "start_failed", Stage: "exec", Detail: "/app: no such file or directory"})
		} else {
			i.say("started", func(r *pb.InstanceReport) { r.Booted = &pb.Booted{Driver: "fake", KernelVersion: "6.12"} })
		}
		switch i.fate {
		case "final":
			i.end(true, false, &pb.Cause{Kind: "exited", Code: 3, LogTail: []string{"last words"}})
			return
		case "completes":
			i.end(true, false, &pb.Cause{Kind: "exited"})
			return
		case "stuck", "no-entrypoint":
		case "crash":
			i.end(false, false, &pb.Cause{Kind: "exited", Code: 1, LogTail: []string{"panic: oh no", fmt.Sprint("attempt ", attempt)}})
		default:
			i.say(stateReady, func(r *pb.InstanceReport) { r.ReadyAt = timestamppb.Now() })
		}
		var again <-chan time.Time
		if i.fate == "crash" {
			again = time.After(10 * time.Millisecond)
		}
		select {
		case <-again:
		case <-i.stop:
			stopped()
			return
		case <-ctx.Done():
			return
		}
	}
}

// reports sends what runs when it has changed, and as a heartbeat.
func (a *fakeAgent) reports(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.report:
		case <-time.After(100 * time.Millisecond):
		}
		a.mu.Lock()
		req := &pb.ReportRequest{Host: a.id, Revision: a.revision}
		for _, i := range a.instances {
			req.Instances = append(req.Instances, i.now)
		}
		req.VolumesListed = true
		for _, v := range a.volumes {
			req.Volumes = append(req.Volumes, proto.CloneOf(v))
		}
		a.mu.Unlock()
		_, _ = a.client.Report(ctx, connect.NewRequest(req)) // the server may be down
	}
}

func (a *fakeAgent) running() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []string
	for id, i := range a.instances {
		if i.now.GetState() != stateEnded {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (a *fakeAgent) sendLogs(ctx context.Context, r *pb.LogRequest) {
	stream := a.client.SendLogs(ctx)
	a.mu.Lock()
	chatty := a.chatty
	a.mu.Unlock()
	noise := make([]byte, 16<<10) // which nothing on the way can make smaller
	_, _ = rand.Read(noise)       // documented never to fail
	for chatty {
		err := stream.Send(&pb.SendLogsRequest{Request: r.GetId(), Lines: []*pb.StreamLogsResponse{{Stream: "stdout", Line: noise}}})
		if err != nil {
			return
		}
		a.mu.Lock()
		a.sentAt = time.Now()
		a.mu.Unlock()
	}
	for n := range 3 {
		err := stream.Send(&pb.SendLogsRequest{Request: r.GetId(), Lines: []*pb.StreamLogsResponse{{
			Instance: "somebody else", Attempt: 1, Seq: uint64(n), Stream: "stdout", Line: fmt.Appendf(nil, "line %d of %s", n, r.GetInstance()),
		}}})
		if err != nil {
			break
		}
	}
	_, _ = stream.CloseAndReceive()
}

// stalled tells whether a chatty agent has been waiting for some time.
func (a *fakeAgent) stalled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.sentAt.IsZero() && time.Since(a.sentAt) > time.Second
}
