package server

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// after checks that the parts are in the story, in this order.
func after(t *testing.T, story string, parts ...string) {
	t.Helper()
	rest := story
	for _, part := range parts {
		_, after, ok := strings.Cut(rest, part)
		if !ok {
			t.Fatalf("%q is not in the story, or comes too early:\n%s", part, story)
		}
		rest = after
	}
}

func TestBlueGreen(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	more := `rollout.strategy = "blue-green"`
	one, two := p.release(text("api", 80, more), "v1"), p.release(text("api", 80, more), "v2")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	story, d, _ := p.watch(p.deploy("dev", two).GetId())
	if d.GetState() != "succeeded" {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	second := p.serves("dev", two)
	after(t, story, second.GetId()+" placed", second.GetId()+" ready", "connections are led to", first.GetId()+" is asked to stop")
	p.eventually("nothing is parked", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		// The new one begins parked. When the old one is, it is so until it ends.
		want := []string{second.GetId() + " true", second.GetId() + " false"}
		got := slices.DeleteFunc(slices.Clone(a.parked), func(s string) bool { return s == first.GetId()+" true" })
		return slices.Equal(got, want)
	})
}

func TestBlueGreenFails(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	before := p.serves("dev", one)
	story, d, _ := p.watch(p.deploy("dev", p.release(text("api", 80, `rollout.strategy = "blue-green"`), "crash")).GetId())
	if d.GetState() != "rolled-back" || strings.Contains(story, "connections are led") {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	if got := p.serves("dev", one); got.GetId() != before.GetId() {
		t.Errorf("instance %s was replaced by %s for nothing", before.GetId(), got.GetId())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(a.parked, before.GetId()+" true") {
		t.Errorf("what serves was parked: %v", a.parked)
	}
}

func TestRecreate(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	more := `rollout.strategy = "recreate"`
	one, two, bad := p.release(text("api", 80, more), "v1"), p.release(text("api", 80, more), "v2"), p.release(text("api", 80, more), "crash")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	story, d, _ := p.watch(p.deploy("dev", two).GetId())
	if d.GetState() != "succeeded" {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	second := p.serves("dev", two)
	after(t, story, first.GetId()+" is asked to stop", first.GetId()+" stopped", second.GetId()+" placed")

	story, d, _ = p.watch(p.deploy("dev", bad).GetId())
	if d.GetState() != "rolled-back" {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	again := p.serves("dev", two)
	after(t, story, second.GetId()+" stopped", "rolling back because", "stopped", again.GetId()+" placed", again.GetId()+" ready")
}

func TestBefore(t *testing.T) {
	more := func(command string) string {
		return fmt.Sprintf("rollout.before = { command = [%q, \"migrate\"] }", command)
	}
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one, two := p.release(text("api", 80, ""), "v1"), p.release(text("api", 80, more("completes")), "v2")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)

	release := a.hold()
	id := p.deploy("dev", two).GetId()
	p.eventually("the one-off runs", func() bool {
		all := p.instances("dev", false)
		return len(all) == 2 && slices.ContainsFunc(all, (*pb.Instance).GetTask)
	})
	release()
	story, d, _ := p.watch(id)
	if d.GetState() != "succeeded" {
		t.Fatalf("ended %s\n%s", d.GetState(), story)
	}
	second := p.serves("dev", two)
	after(t, story, "rollout.before, as instance", "completed", second.GetId()+" placed", first.GetId()+" stopped")

	// One that fails touches nothing, whatever has happened to the server.
	p.kill()
	p.boot()
	p.eventually("the host is back", func() bool {
		on, _ := p.observed.connected("h1", time.Now())
		return on
	})
	story, d, _ = p.watch(p.deploy("dev", p.release(text("api", 80, more("final")), "v3")).GetId())
	if d.GetState() != "rolled-back" || !strings.Contains(d.GetReason(), "rollout.before: exited with code 3") {
		t.Fatalf("ended %s: %s\n%s", d.GetState(), d.GetReason(), story)
	}
	if got := p.serves("dev", two); got.GetId() != second.GetId() || strings.Contains(story, second.GetId()) {
		t.Errorf("something was touched, although what had to run before failed:\n%s", story)
	}

	// What served before needs nothing to run before it.
	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ = p.watch(back.Msg.GetDeployment().GetId()); d.GetState() != "succeeded" || d.GetRelease() != one || strings.Contains(story, "rollout.before") {
		t.Errorf("got %v\n%s", d, story)
	}
}

func TestScale(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one := p.release(text("api", 80, "rollout.max_parallel = 2"), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	scale := func(n uint32) (string, *pb.Deployment) {
		t.Helper()
		res, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: n}))
		if err != nil {
			t.Fatal(err)
		}
		story, d, _ := p.watch(res.Msg.GetDeployment().GetId())
		return story, d
	}
	story, d := scale(4)
	if d.GetState() != "succeeded" || d.GetCount() != 4 || strings.Contains(story, first.GetId()) {
		t.Fatalf("got %v\n%s", d, story)
	}
	all := p.instances("dev", false)
	if len(all) != 4 || len(a.running()) != 4 {
		t.Errorf("%d instances, the host runs %d", len(all), len(a.running()))
	}
	for n, i := range all {
		if i.GetDeployment() != d.GetId() || int(i.GetOrdinal()) != n {
			t.Errorf("instance %d: got %v", n, i)
		}
	}
	again, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 4}))
	if err != nil || !again.Msg.GetUnchanged() {
		t.Errorf("the same again: %v, %v", again, err)
	}
	unchanged, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: one}))
	if err != nil || !unchanged.Msg.GetUnchanged() {
		t.Errorf("deploying what is live: %v, %v", unchanged, err)
	}

	// A deployment has the new count, and so has going back.
	if story, d, _ = p.watch(p.deploy("dev", p.release(text("api", 80, "rollout.max_parallel = 2"), "v2")).GetId()); d.GetCount() != 4 || len(p.instances("dev", false)) != 4 {
		t.Errorf("got %v\n%s", d, story)
	}
	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ = p.watch(back.Msg.GetDeployment().GetId()); d.GetCount() != 4 || d.GetRelease() != one {
		t.Errorf("got %v\n%s", d, story)
	}

	kept := p.instances("dev", false)[0].GetId()
	if story, d = scale(1); d.GetState() != "succeeded" || len(p.instances("dev", false)) != 1 {
		t.Fatalf("got %v\n%s", d, story)
	}
	if got := p.serves("dev", one); got.GetId() != kept || got.GetOrdinal() != 0 {
		t.Errorf("got %v, want %s", got, kept)
	}

	for n, want := range map[uint32]string{0: "pinnace stop ends all", 1001: "an app has 1 to 1000", 100: "lack"} {
		_, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: n}))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("scale to %d: got %v, want %q", n, err, want)
		}
	}
}

// TestScaleFails: what cannot come up goes again, what ran is not touched, and the count is what it was.
func TestScaleFails(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one := p.release(text("api", 80, `rollout.boot_timeout = "1s"`), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	a.become("stuck")
	res, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 3}))
	if err != nil {
		t.Fatal(err)
	}
	story, d, _ := p.watch(res.Msg.GetDeployment().GetId())
	if d.GetState() != "rolled-back" || !strings.Contains(d.GetReason(), "was not ready within boot_timeout") {
		t.Fatalf("got %v\n%s", d, story)
	}
	if got := p.serves("dev", one); got.GetId() != first.GetId() || strings.Contains(story, first.GetId()) {
		t.Errorf("what ran was touched:\n%s", story)
	}
	a.become("")
	if _, d, _ := p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v2")).GetId()); d.GetCount() != 1 {
		t.Errorf("the next deployment has %d instances", d.GetCount())
	}
}

func TestVars(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	more := `vars = ["URL"]`
	one := p.release(rootLast(text("api", 80, ""), more), "v1")
	deploy := &pb.DeployRequest{Environment: "dev", Release: one}
	_, err := p.client.Deploy(t.Context(), connect.NewRequest(deploy))
	wantCode(t, err, connect.CodeFailedPrecondition, "lacks variables that api needs: URL. Set them: pinnace vars set -e dev URL=…")

	set := func(req *pb.SetVarsRequest) *pb.SetVarsResponse {
		t.Helper()
		req.Environment = "dev"
		res, err := p.client.SetVars(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg
	}
	if res := set(&pb.SetVarsRequest{Set: map[string]string{"URL": "one", "OTHER": "x"}}); res.GetUnchanged() || len(res.GetDeployments()) != 0 {
		t.Errorf("got %v", res)
	}
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	if got := a.vars(first.GetId()); len(got) != 1 || got["URL"] != "one" {
		t.Errorf("the instance has %v", got)
	}

	// What nobody asked for changes nothing that runs; what somebody did is deployed, once however often it is asked for.
	if res := set(&pb.SetVarsRequest{Set: map[string]string{"OTHER": "y"}}); res.GetUnchanged() || len(res.GetDeployments()) != 0 {
		t.Errorf("got %v", res)
	}
	req := &pb.SetVarsRequest{Set: map[string]string{"URL": "two"}, IdempotencyKey: "k"}
	res := set(req)
	if len(res.GetDeployments()) != 1 {
		t.Fatalf("got %v", res)
	}
	if again := set(req); len(again.GetDeployments()) != 1 || again.GetDeployments()[0].GetId() != res.GetDeployments()[0].GetId() {
		t.Errorf("the same again: %v", again)
	}
	story, d, _ := p.watch(res.GetDeployments()[0].GetId())
	second := p.serves("dev", one)
	if d.GetState() != "succeeded" || d.GetKind() != "settings" || second.GetId() == first.GetId() || a.vars(second.GetId())["URL"] != "two" {
		t.Fatalf("got %v, %v\n%s", d, a.vars(second.GetId()), story)
	}
	if unchanged, err := p.client.Deploy(t.Context(), connect.NewRequest(deploy)); err != nil || !unchanged.Msg.GetUnchanged() {
		t.Errorf("deploying what is live: %v, %v", unchanged, err)
	}

	// Later, on request; and then a deployment of the same release has something to do.
	if res := set(&pb.SetVarsRequest{Set: map[string]string{"URL": "three"}, NoDeploy: true}); len(res.GetDeployments()) != 0 || len(res.GetPending()) != 1 {
		t.Errorf("got %v", res)
	}
	if got := a.vars(p.serves("dev", one).GetId())["URL"]; got != "two" {
		t.Errorf("it has %q", got)
	}
	if _, d, _ := p.watch(p.deploy("dev", one).GetId()); d.GetState() != "succeeded" || a.vars(p.serves("dev", one).GetId())["URL"] != "three" {
		t.Errorf("got %v", d)
	}

	// Going back brings the variables back, for later deployments as well.
	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api", Deployment: res.GetDeployments()[0].GetId()}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ := p.watch(back.Msg.GetDeployment().GetId()); d.GetState() != "succeeded" || a.vars(p.serves("dev", one).GetId())["URL"] != "two" {
		t.Errorf("got %v\n%s", d, story)
	}
	list, err := p.client.ListVars(t.Context(), connect.NewRequest(&pb.ListVarsRequest{Environment: "dev"}))
	if err != nil || !maps.Equal(list.Msg.GetVars(), map[string]string{"URL": "two", "OTHER": "y"}) {
		t.Errorf("got %v, %v", list, err)
	}

	for _, tt := range []struct {
		req  *pb.SetVarsRequest
		want string
	}{
		{&pb.SetVarsRequest{Unset: []string{"URL"}}, "api is live in dev and needs URL"},
		{&pb.SetVarsRequest{Set: map[string]string{"1A": "x"}}, "variable name"},
		{&pb.SetVarsRequest{Set: map[string]string{"PINNACE_X": "x"}}, "the prefix PINNACE_ is the platform's"},
		{&pb.SetVarsRequest{Set: map[string]string{"A": "x\x00"}}, "its value is not text"},
		{&pb.SetVarsRequest{Set: map[string]string{"A": "x"}, Unset: []string{"A"}}, "to be set and unset"},
		{&pb.SetVarsRequest{Set: map[string]string{"A": strings.Repeat("x", 129<<10)}}, "the most is 256 with 131072 bytes"},
	} {
		tt.req.Environment = "dev"
		if _, err := p.client.SetVars(t.Context(), connect.NewRequest(tt.req)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	if res := set(&pb.SetVarsRequest{Unset: []string{"OTHER", "NEVER"}}); res.GetUnchanged() {
		t.Errorf("got %v", res)
	}
}

func TestSteer(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	one, two := p.release(text("api", 80, `rollout.boot_timeout = "1s"`), "v1"), p.release(text("api", 80, `rollout.boot_timeout = "1s"`), "v2")
	steer := func(s pb.Steering) (*pb.Deployment, error) {
		res, err := p.client.Steer(t.Context(), connect.NewRequest(&pb.SteerRequest{Environment: "dev", App: "api", Steering: s}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetDeployment(), nil
	}
	_, err := steer(pb.Steering_STEERING_PAUSE)
	wantCode(t, err, connect.CodeNotFound, "was never deployed")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	_, err = steer(pb.Steering_STEERING_ABORT)
	wantCode(t, err, connect.CodeFailedPrecondition, "no deployment of api in dev is under way")

	release := a.hold()
	p.deploy("dev", two)
	p.pulls("dev")
	var d *pb.Deployment
	for range 2 { // the second time there is nothing to do
		if d, err = steer(pb.Steering_STEERING_PAUSE); err != nil || d.GetPausedAt() == nil || d.GetState() != "running" {
			t.Fatalf("pause: %v, %v", d, err)
		}
	}
	release()
	p.eventually("the new one is ready", func() bool {
		return slices.ContainsFunc(p.instances("dev", false), func(i *pb.Instance) bool { return i.GetId() != first.GetId() && i.GetState() == stateReady })
	})
	// Nothing goes on: not for longer than the release had to come up, and not through a restart of the server.
	p.kill()
	p.boot()
	time.Sleep(1200 * time.Millisecond)
	if n := len(p.instances("dev", false)); n != 2 {
		t.Errorf("%d instances while it is paused", n)
	}
	_, err = p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: one}))
	wantCode(t, err, connect.CodeAborted, "is paused; one at a time")
	if d, err = steer(pb.Steering_STEERING_RESUME); err != nil || d.GetPausedAt() != nil {
		t.Fatalf("resume: %v, %v", d, err)
	}
	story, d, _ := p.watch(d.GetId())
	if d.GetState() != "succeeded" {
		t.Fatalf("got %v\n%s", d, story)
	}
	after(t, story, "paused", "resumed", "serves")
	second := p.serves("dev", two)

	// Abort goes back to what served, also from a pause.
	release = a.hold()
	p.deploy("dev", one)
	p.pulls("dev")
	if _, err := steer(pb.Steering_STEERING_PAUSE); err != nil {
		t.Fatal(err)
	}
	if d, err = steer(pb.Steering_STEERING_ABORT); err != nil || d.GetState() != "rolling-back" || d.GetPausedAt() != nil {
		t.Fatalf("abort: %v, %v", d, err)
	}
	release()
	if story, d, _ = p.watch(d.GetId()); d.GetState() != "rolled-back" || d.GetReason() != "it was aborted" {
		t.Fatalf("got %v\n%s", d, story)
	}
	if got := p.serves("dev", two); got.GetId() != second.GetId() {
		t.Errorf("%s was replaced by %s", second.GetId(), got.GetId())
	}

	restart, err := p.client.Restart(t.Context(), connect.NewRequest(&pb.RestartRequest{Environment: "dev", App: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	if story, d, _ = p.watch(restart.Msg.GetDeployment().GetId()); d.GetState() != "succeeded" || p.serves("dev", two).GetId() == second.GetId() {
		t.Errorf("restart: %v\n%s", d, story)
	}
}

// TestPlanIsWhatHappens compares the steps of a plan with what the deployment then did.
func TestPlanIsWhatHappens(t *testing.T) {
	for _, more := range []string{"", `rollout.strategy = "recreate"`, `rollout.strategy = "blue-green"`, `rollout.strategy = "canary"`, `rollout.before = { command = ["completes"] }`} {
		t.Run(more, func(t *testing.T) {
			p := newPlane(t)
			p.environment("dev")
			p.agent("h1")
			p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
			two := p.release(text("api", 80, more), "v2")
			plan, err := p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: two}}))
			if err != nil {
				t.Fatal(err)
			}
			var want, got []string
			for _, s := range plan.Msg.GetSteps() {
				switch s.GetAction() {
				case "before", "start", "stop", "switch":
					want = append(want, s.GetAction())
				}
			}
			story, d, lines := p.watch(p.deploy("dev", two).GetId())
			if d.GetState() != "succeeded" {
				t.Fatalf("ended %s\n%s", d.GetState(), story)
			}
			for _, line := range lines {
				for part, action := range map[string]string{
					"rollout.before, as": "before", "is asked to stop": "stop", "connections are led": "switch",
				} {
					if strings.Contains(line.GetText(), part) {
						got = append(got, action)
					}
				}
				if strings.Contains(line.GetText(), "placed on") && !strings.Contains(line.GetText(), "before") {
					got = append(got, "start")
				}
			}
			if len(want) < 2 || !slices.Equal(got, want) {
				t.Errorf("planned %v, done %v", want, got)
			}
		})
	}
}
