package server

import (
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

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
