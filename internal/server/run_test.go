package server

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// once starts a one-off whose fate is that of its program.
func (p *plane) once(key string, argv ...string) (*pb.Instance, error) {
	p.t.Helper()
	res, err := p.client.StartRun(p.t.Context(), connect.NewRequest(&pb.StartRunRequest{Environment: "dev", App: "api", Argv: argv, IdempotencyKey: key}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetInstance(), nil
}

func (p *plane) mustOnce(argv ...string) *pb.Instance {
	p.t.Helper()
	i, err := p.once("", argv...)
	if err != nil {
		p.t.Fatal(err)
	}
	return i
}

func (p *plane) instance(id string) *pb.Instance {
	p.t.Helper()
	res, err := p.client.GetInstance(p.t.Context(), connect.NewRequest(&pb.GetInstanceRequest{Environment: "dev", Instance: id}))
	if err != nil {
		p.t.Fatal(err)
	}
	return res.Msg.GetInstance()
}

// ends waits until an instance has ended.
func (p *plane) ends(id string) *pb.Instance {
	p.t.Helper()
	var i *pb.Instance
	p.eventually(id+" has ended", func() bool {
		i = p.instance(id)
		return i.GetEndedAt() != nil // as the log has it, not only the host
	})
	return i
}

// started is how often an agent has begun an instance.
func (a *fakeAgent) started(id string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.begun[id]
}

// withLive is a plane with a host on which v1 of api serves.
func withLive(t *testing.T) (*safe, *fakeAgent, string) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	one := s.release(text("api", 80, ""), "v1")
	s.watch(s.deploy("dev", one).GetId())
	s.serves("dev", one)
	return s, a, one
}

// TestRun: a one-off gets its command, runs beside the app, and is told of to its end. Its arguments are nowhere but with
// its host, and after its end nowhere at all.
func TestRun(t *testing.T) {
	s, a, one := withLive(t)
	before := len(s.sealedFiles())
	release := a.hold()
	i := s.mustOnce("final", "--password=squeamish", "ossifrage")
	if i.GetHost() != "h1" || i.GetRelease() != one || !i.GetTask() || i.GetRun().GetProgram() != "final" || i.GetRun().GetArguments() != 2 || i.GetDeployment() != "" {
		t.Errorf("placed %v", i)
	}
	s.eventually("the host has it", func() bool { return a.assignment(i.GetId()) != nil })
	if asg := a.assignment(i.GetId()); !asg.GetOnce() || !slices.Equal(asg.GetTask(), []string{"final", "--password=squeamish", "ossifrage"}) || asg.GetParked() || len(asg.GetVolumes()) > 0 {
		t.Errorf("the host was told %v", asg)
	}
	all := s.instances("dev", false)
	if len(all) != 2 || !slices.ContainsFunc(all, func(l *pb.Instance) bool { return l.GetId() == i.GetId() && l.GetRun() != nil }) {
		t.Errorf("listed: %v", all)
	}
	st, err := s.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev", App: "api"}))
	if err != nil || st.Msg.GetApps()[0].GetReady() != 1 || st.Msg.GetApps()[0].GetCount() != 1 {
		t.Errorf("status: %v, %v", st, err)
	}
	if len(s.sealedFiles()) != before+1 {
		t.Errorf("%d sealed files, and %d before", len(s.sealedFiles()), before)
	}
	release()
	if end := s.ends(i.GetId()); end.GetLastEnd().GetKind() != "exited" || end.GetLastEnd().GetCode() != 3 || end.GetRun().GetStoppedBecause() != "" {
		t.Errorf("ended: %v", end)
	}
	if all := s.instances("dev", true); len(all) != 2 || len(s.instances("dev", false)) != 1 {
		t.Errorf("afterwards there are %v", all)
	}
	s.eventually("the command is destroyed", func() bool { return len(s.sealedFiles()) == before })
	if n := a.started(i.GetId()); n != 1 {
		t.Errorf("it was started %d times", n)
	}
	s.serves("dev", one)

	var types []string
	for e, err := range s.ledger.log.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(e.Payload, []byte("squeamish")) || bytes.Contains(e.Payload, []byte("ossifrage")) {
			t.Errorf("an argument is in %s: %s", e.Type, e.Payload)
		}
		if e.Stream == "instance/"+i.GetId() {
			types = append(types, e.Type)
		}
	}
	if want := []string{"run.started", "instance.started", "instance.ended"}; !slices.Equal(types, want) {
		t.Errorf("its events are %q, want %q", types, want)
	}
	if strings.Contains(s.said.String(), "squeamish") {
		t.Error("an argument is in the server's log")
	}
	if lines := s.logLines(i.GetId()); len(lines) != 3 {
		t.Errorf("its log is %q", lines)
	}
}

// logLines reads the log of an instance.
func (p *plane) logLines(target string) []string {
	p.t.Helper()
	stream, err := p.client.StreamLogs(p.t.Context(), connect.NewRequest(&pb.StreamLogsRequest{Environment: "dev", Target: target}))
	if err != nil {
		p.t.Fatal(err)
	}
	var lines []string
	for stream.Receive() {
		lines = append(lines, string(stream.Msg().GetLine()))
	}
	if err := stream.Err(); err != nil {
		p.t.Errorf("read the log of %s: %v", target, err)
	}
	return lines
}

// TestRunSettings: of the live release it has what the app runs with, of another one what a deployment would have now.
func TestRunSettings(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	a := s.agent("h1")
	set := func(value string) {
		t.Helper()
		_, err := s.client.SetVars(t.Context(), connect.NewRequest(&pb.SetVarsRequest{Environment: "dev", Set: map[string]string{"A": value}, NoDeploy: true}))
		if err != nil {
			t.Fatal(err)
		}
	}
	more := "vars = [\"A\"]\nsecrets.one = { path = \"/s\", on_change = \"none\" }"
	set("then")
	s.put(&pb.PutSecretRequest{Bundle: "one", Set: values("K", "then")})
	one, two := s.release(text("api", 80, more), "v1"), s.release(text("api", 80, more), "v2")
	s.watch(s.deploy("dev", one).GetId())
	set("now")
	s.put(&pb.PutSecretRequest{Bundle: "one", Set: values("K", "now"), NoDeploy: true})

	for ref, want := range map[string]string{"": "then", one: "then", two: "now", "rel-" + strings.TrimPrefix(two, "sha256:")[:8]: "now"} {
		res, err := s.client.StartRun(t.Context(), connect.NewRequest(&pb.StartRunRequest{Environment: "dev", App: "api", Release: ref, Argv: []string{"serve"}}))
		if err != nil {
			t.Fatal(err)
		}
		id := res.Msg.GetInstance().GetId()
		s.eventually("the host has it", func() bool { return a.assignment(id) != nil })
		asg := a.assignment(id)
		if asg.GetVars()["A"] != want || len(asg.GetSecrets()) != 1 || string(asg.GetSecrets()[0].GetValues()["K"]) != want {
			t.Errorf("release %q: got %v and %d secrets, want those of %s", ref, asg.GetVars(), len(asg.GetSecrets()), want)
		}
	}
}

func TestRunIsRefused(t *testing.T) {
	s, _, one := withLive(t)
	other := s.release(text("db", 81, ""), "v1")
	request := func(change func(*pb.StartRunRequest)) error {
		req := &pb.StartRunRequest{Environment: "dev", App: "api", Argv: []string{"serve"}}
		change(req)
		_, err := s.client.StartRun(t.Context(), connect.NewRequest(req))
		return err
	}
	for _, c := range []struct {
		change func(*pb.StartRunRequest)
		code   connect.Code
		want   string
	}{
		{func(r *pb.StartRunRequest) { r.Argv = nil }, connect.CodeInvalidArgument, "no command"},
		{func(r *pb.StartRunRequest) { r.Argv = []string{""} }, connect.CodeInvalidArgument, "no command"},
		{func(r *pb.StartRunRequest) { r.Argv = []string{"a", "b\x00c"} }, connect.CodeInvalidArgument, "NUL"},
		{func(r *pb.StartRunRequest) { r.Argv = make([]string, maxRunArgs+1); r.Argv[0] = "a" }, connect.CodeInvalidArgument, "words"},
		{func(r *pb.StartRunRequest) { r.Argv = []string{strings.Repeat("a", maxRunBytes+1)} }, connect.CodeInvalidArgument, "words"},
		{func(r *pb.StartRunRequest) { r.TimeoutMs = 1 }, connect.CodeInvalidArgument, "timeout"},
		{func(r *pb.StartRunRequest) { r.TimeoutMs = fleet.MaxRunTimeout.Milliseconds() + 1 }, connect.CodeInvalidArgument, "timeout"},
		{func(r *pb.StartRunRequest) { r.TimeoutMs = -1 }, connect.CodeInvalidArgument, "timeout"},
		{func(r *pb.StartRunRequest) { r.Environment = "prod" }, connect.CodeNotFound, "prod"},
		{func(r *pb.StartRunRequest) { r.Environment = "" }, connect.CodeInvalidArgument, "environment"},
		{func(r *pb.StartRunRequest) { r.App = "db" }, connect.CodeNotFound, "never deployed"},
		{func(r *pb.StartRunRequest) { r.Release = "rel-00000000" }, connect.CodeNotFound, "release"},
		{func(r *pb.StartRunRequest) { r.Release = other }, connect.CodeInvalidArgument, "is of app db"},
	} {
		wantCode(t, request(c.change), c.code, c.want)
	}
	// There is room on the host, and the environment may have two.
	_, err := s.client.SetQuota(t.Context(), connect.NewRequest(&pb.SetQuotaRequest{Environment: "dev", Quota: &pb.Quota{Instances: 2}}))
	if err != nil {
		t.Fatal(err)
	}
	first := s.mustOnce("serve")
	_, err = s.once("", "serve")
	wantCode(t, err, connect.CodeFailedPrecondition, "quota")
	stop := func(id string) error {
		_, err := s.client.StopRun(t.Context(), connect.NewRequest(&pb.StopRunRequest{Environment: "dev", Instance: id}))
		return err
	}
	if err := stop(first.GetId()); err != nil {
		t.Fatal(err)
	}
	s.ends(first.GetId())
	wantCode(t, stop(s.serves("dev", one).GetId()), connect.CodeFailedPrecondition, "not a one-off")
	wantCode(t, stop("api-none"), connect.CodeNotFound, "does not exist")
	if err := stop(first.GetId()); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
	// Nothing is live any more.
	res, err := s.client.Stop(t.Context(), connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	s.watch(res.Msg.GetDeployment().GetId())
	wantCode(t, request(func(*pb.StartRunRequest) {}), connect.CodeFailedPrecondition, "name a release")
	if err := request(func(r *pb.StartRunRequest) { r.Release = one }); err != nil {
		t.Errorf("with a release: %v", err)
	}
	if n := len(s.sealedFiles()); n != 1 {
		t.Errorf("%d commands are sealed, and one one-off runs", n)
	}

	// A server that keeps no secrets cannot keep a command.
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	_, err = p.once("", "serve")
	wantCode(t, err, connect.CodeFailedPrecondition, "keeps no secrets")
}

// TestRunWithoutRoom: a one-off that has no place is refused with the reason, and starts nothing later.
func TestRunWithoutRoom(t *testing.T) {
	s := newSafe(t)
	s.environment("dev")
	s.agent("h1", func(f *pb.HostFacts) { f.MemoryBytes = 256 << 20 })
	s.watch(s.deploy("dev", s.release(text("api", 80, ""), "v1")).GetId())
	_, err := s.once("", "serve")
	wantCode(t, err, connect.CodeFailedPrecondition, "memory")
	if len(s.instances("dev", true)) != 1 || len(s.sealedFiles()) != 0 {
		t.Error("something is left of it")
	}
}

// TestRunTwice: a request that is made again starts nothing; with another content it is refused.
func TestRunTwice(t *testing.T) {
	s, a, _ := withLive(t)
	first, err := s.once("key", "serve", "one")
	if err != nil {
		t.Fatal(err)
	}
	again := func(when string) {
		t.Helper()
		i, err := s.once("key", "serve", "one")
		if err != nil || i.GetId() != first.GetId() {
			t.Errorf("%s: got %v, %v, want %s", when, i.GetId(), err, first.GetId())
		}
		for _, argv := range [][]string{{"serve", "two"}, {"serve"}, {"other", "one"}} {
			_, err = s.once("key", argv...)
			wantCode(t, err, connect.CodeInvalidArgument, "another request")
		}
	}
	again("at once")
	s.kill()
	s.boot()
	again("after a restart of the server")
	if n := a.started(first.GetId()); n > 1 || len(s.instances("dev", false)) != 2 {
		t.Errorf("started %d times; there are %v", n, s.instances("dev", false))
	}
	if n := len(s.sealedFiles()); n != 1 {
		t.Errorf("%d commands are sealed", n)
	}
}

// TestRunOutlivesTheServer, and whatever is done with its app meanwhile.
func TestRunOutlivesTheServer(t *testing.T) {
	s, a, _ := withLive(t)
	i := s.mustOnce("serve")
	s.eventually("it runs", func() bool { return s.instance(i.GetId()).GetState() == stateReady })
	s.kill()
	s.boot()
	s.eventually("it still runs", func() bool { return s.instance(i.GetId()).GetState() == stateReady })

	two := s.release(text("api", 80, ""), "v2")
	story, d, _ := s.watch(s.deploy("dev", two).GetId())
	if d.GetState() != "succeeded" || strings.Contains(story, i.GetId()) {
		t.Errorf("a deployment beside it ended %s\n%s", d.GetState(), story)
	}
	scaled, err := s.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 2}))
	if err != nil {
		t.Fatal(err)
	}
	s.succeeds(scaled.Msg.GetDeployment())
	for range 2 { // the second one finds that it is stopped
		stopped, err := s.client.Stop(t.Context(), connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "api"}))
		if err != nil {
			t.Fatal(err)
		}
		s.succeeds(stopped.Msg.GetDeployment())
	}
	if n := a.started(i.GetId()); n != 1 || s.instance(i.GetId()).GetState() != stateReady {
		t.Errorf("started %d times; it is %s", n, s.instance(i.GetId()).GetState())
	}
	res, err := s.client.StopRun(t.Context(), connect.NewRequest(&pb.StopRunRequest{Environment: "dev", Instance: i.GetId()}))
	if err != nil || res.Msg.GetInstance().GetId() != i.GetId() {
		t.Fatalf("stop: %v, %v", res, err)
	}
	if end := s.ends(i.GetId()); !end.GetLastEnd().GetPlanned() || !strings.Contains(end.GetRun().GetStoppedBecause(), "asked to by admin") || end.GetRun().GetTimedOut() {
		t.Errorf("ended: %v", end)
	}
}

func TestRunTimesOut(t *testing.T) {
	s, _, _ := withLive(t)
	res, err := s.client.StartRun(t.Context(), connect.NewRequest(&pb.StartRunRequest{Environment: "dev", App: "api", Argv: []string{"serve"}, TimeoutMs: 1000}))
	if err != nil {
		t.Fatal(err)
	}
	end := s.ends(res.Msg.GetInstance().GetId())
	if !end.GetRun().GetTimedOut() || !strings.Contains(end.GetRun().GetStoppedBecause(), "timeout of 1s") || !end.GetLastEnd().GetPlanned() {
		t.Errorf("ended: %v", end)
	}
	if took := end.GetEndedAt().AsTime().Sub(end.GetPlacedAt().AsTime()); took < time.Second {
		t.Errorf("it was stopped after %s", took)
	}
}

// TestRunOfALostHost: it ends as lost, nothing is started elsewhere, and what still runs there when the host is back stops.
func TestRunOfALostHost(t *testing.T) {
	s := newSafe(t)
	s.kill()
	keep := s.change
	s.hostTimeout = time.Second
	s.change = func(o *Options) { keep(o); o.LostAfter = 500 * time.Millisecond }
	s.boot()
	s.environment("dev")
	hosts := map[string]*fakeAgent{"h1": s.agent("h1"), "h2": s.agent("h2")}
	s.watch(s.deploy("dev", s.release(text("api", 80, ""), "v1")).GetId())
	i := s.mustOnce("serve")
	s.eventually("it runs", func() bool { return s.instance(i.GetId()).GetState() == stateReady })
	other := map[string]string{"h1": "h2", "h2": "h1"}[i.GetHost()]
	hosts[i.GetHost()].leave()
	end := s.ends(i.GetId())
	if e := end.GetLastEnd(); e.GetKind() != "lost" || e.GetPlanned() || !strings.Contains(e.GetDetail(), "not started again") || end.GetHost() != i.GetHost() {
		t.Errorf("ended: %v", end)
	}
	again := s.agent(i.GetHost())
	s.eventually("its host has heard what it is to run", func() bool {
		again.mu.Lock()
		defer again.mu.Unlock()
		return again.revision > 0
	})
	if again.started(i.GetId())+hosts[other].started(i.GetId()) != 0 {
		t.Error("it was started a second time")
	}
}

// TestSealedCommandIsGone: a host that has not begun gets nothing, rather than a command that is not the one.
func TestSealedCommandIsGone(t *testing.T) {
	s, _, _ := withLive(t)
	event := &fleet.RunStarted{Instance: "api-x", Environment: "dev"}
	s.ledger.read(func(st *fleet.State) {
		app := st.App("dev", "api")
		d := st.Deployment(app.Live)
		event.App, event.Release, event.Host = app.Name, string(d.Release), "h1"
	})
	event.Program, event.TimeoutMilli, event.Recipient = "serve", 60_000, s.keys.Recipient()
	event.Sealed = "sha256:" + strings.Repeat("ab", 32)
	if err := s.ledger.append(t.Context(), "admin", "", event); err != nil {
		t.Fatal(err)
	}
	asg := &pb.Assignment{Instance: "api-x", Environment: "dev", Task: []string{event.Sealed}, Once: true}
	set := &pb.WatchAssignmentsResponse{Assignments: []*pb.Assignment{proto.CloneOf(asg)}}
	if s.deliver(t.Context(), set) || len(set.GetAssignments()) != 0 {
		t.Errorf("delivered %v", set)
	}
}

// TestRunsAreDestroyedWithTheirApp: whoever destroys an app is told of its one-offs first, and they end with it.
func TestRunsAreDestroyedWithTheirApp(t *testing.T) {
	s, _, _ := withLive(t)
	i := s.mustOnce("serve")
	s.eventually("it runs", func() bool { return s.instance(i.GetId()).GetState() == stateReady })
	destroy := func(confirm string) *pb.DestroyAppResponse {
		t.Helper()
		res, err := s.client.DestroyApp(t.Context(), connect.NewRequest(&pb.DestroyAppRequest{Environment: "dev", App: "api", Confirm: confirm}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	if would := destroy("").GetDestruction().GetInstances(); len(would) != 2 || !slices.Contains(would, i.GetId()) {
		t.Errorf("it would destroy %q", would)
	}
	if n := len(s.instances("dev", false)); n != 2 {
		t.Errorf("asking has left %d instances", n)
	}
	destroy("api")
	s.eventually("all are gone", func() bool { return len(s.instances("dev", true)) == 0 && len(s.sealedFiles()) == 0 })
}

// TestRunAfterTheClockWasSetBack: a deadline by a clock that was ahead comes nevertheless.
func TestRunAfterTheClockWasSetBack(t *testing.T) {
	s := newSafe(t)
	s.kill()
	keep, c := s.change, &clock{}
	s.change = func(o *Options) { keep(o); o.Now = c.now }
	s.boot()
	s.environment("dev")
	s.agent("h1")
	s.watch(s.deploy("dev", s.release(text("api", 80, ""), "v1")).GetId())
	c.forward(time.Hour)
	s.eventually("the host is heard of", func() bool { on, _ := s.observed.connected("h1", c.now()); return on })
	res, err := s.client.StartRun(t.Context(), connect.NewRequest(&pb.StartRunRequest{Environment: "dev", App: "api", Argv: []string{"serve"}, TimeoutMs: 2000}))
	if err != nil {
		t.Fatal(err)
	}
	id := res.Msg.GetInstance().GetId()
	c.forward(-time.Hour)
	s.kill() // nobody knows any more when it was placed but the log
	s.boot()
	if end := s.ends(id); !end.GetRun().GetTimedOut() {
		t.Errorf("ended: %v", end)
	}
}
