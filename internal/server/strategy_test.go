package server

import (
	"fmt"
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
