package server

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

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
