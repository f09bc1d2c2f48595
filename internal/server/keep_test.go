package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// leave ends an agent and all that it ran, as a host does that has died.
func (a *fakeAgent) leave() {
	a.stop()
	a.done.Wait()
}

// quick makes a silent host count as away soon.
func quick(p *plane) *plane {
	p.kill()
	p.hostTimeout = time.Second
	p.change = func(o *Options) { o.LostAfter = 500 * time.Millisecond }
	p.boot()
	return p
}

// serving are the instances that are ready, by host.
func (p *plane) serving(env string) map[string]string {
	on := map[string]string{}
	for _, i := range p.instances(env, false) {
		if i.GetState() == stateReady {
			on[i.GetHost()] = i.GetId()
		}
	}
	return on
}

func TestLostHost(t *testing.T) {
	p := quick(newPlane(t))
	p.environment("dev")
	hosts := map[string]*fakeAgent{"h1": p.agent("h1"), "h2": p.agent("h2")}
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	other := map[string]string{"h1": "h2", "h2": "h1"}[first.GetHost()]

	hosts[first.GetHost()].leave()
	p.eventually("a successor serves on "+other, func() bool { return p.serving("dev")[other] != "" })
	p.eventually("the lost one is to stop, should its host come back", func() bool {
		res, err := p.client.GetInstance(t.Context(), connect.NewRequest(&pb.GetInstanceRequest{Environment: "dev", Instance: first.GetId()}))
		return err == nil && slices.ContainsFunc(p.instances("dev", false), func(i *pb.Instance) bool { return i.GetHost() == other }) && res.Msg.GetInstance().GetState() == "unknown"
	})
	if n := len(p.instances("dev", false)); n != 2 {
		t.Errorf("%d instances, want the lost one and its successor", n)
	}

	// The host is back: what it still ran stops.
	again := p.agent(first.GetHost())
	p.eventually("the lost one has ended", func() bool { return len(p.instances("dev", false)) == 1 })
	if got := again.running(); len(got) != 0 {
		t.Errorf("%s runs %v", first.GetHost(), got)
	}
	if d := p.deploy("dev", p.release(text("api", 80, ""), "v2")); d.GetState() != "running" {
		t.Errorf("deploying afterwards: %v", d)
	}
}

// TestServerAway: hosts that have not had the time to come back after a restart of the server are not lost.
func TestServerAway(t *testing.T) {
	p := quick(newPlane(t))
	p.environment("dev")
	a, b := p.agent("h1"), p.agent("h2")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	p.kill()
	time.Sleep(p.hostTimeout + 600*time.Millisecond) // for longer than a host may be away
	p.boot()
	p.eventually("both are back", func() bool {
		x, _ := p.observed.connected("h1", time.Now())
		y, _ := p.observed.connected("h2", time.Now())
		return x && y
	})
	p.eventually("it is heard of", func() bool { return len(p.serving("dev")) == 1 })
	if got := p.serves("dev", one); got.GetId() != first.GetId() {
		t.Errorf("instance %s was succeeded by %s", first.GetId(), got.GetId())
	}
	if n := len(a.running()) + len(b.running()); n != 1 {
		t.Errorf("%d instances run", n)
	}
}

// TestPlacement: an app moves to where it is placed, and nothing is placed elsewhere.
func TestPlacement(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	fast := map[string]string{"disk": "nvme"}
	a := p.agent("h1")
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)
	place := func(labels map[string]string) (*pb.SetPlacementResponse, error) {
		res, err := p.client.SetPlacement(t.Context(), connect.NewRequest(&pb.SetPlacementRequest{Environment: "dev", App: "api", Labels: labels}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	_, err := place(fast)
	wantCode(t, err, connect.CodeFailedPrecondition, "1 of 1 host has not the labels that the app is placed by (disk=nvme)")
	p.agent("h2", func(h *pb.HostFacts) { h.Labels = fast })
	res, err := place(fast)
	if err != nil || res.GetUnchanged() || len(res.GetMoving()) != 1 || res.GetMoving()[0] != first.GetId() {
		t.Fatalf("got %v, %v", res, err)
	}
	p.eventually("it has moved", func() bool { return p.serving("dev")["h2"] != "" && len(p.instances("dev", false)) == 1 })
	if got := a.running(); len(got) != 0 {
		t.Errorf("h1 runs %v", got)
	}
	if res, err := place(fast); err != nil || !res.GetUnchanged() {
		t.Errorf("the same again: %v, %v", res, err)
	}
	if _, d, _ := p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v2")).GetId()); d.GetState() != "succeeded" || p.serving("dev")["h2"] == "" {
		t.Errorf("got %v on %v", d, p.serving("dev"))
	}
	// Where every host will do, nothing has to move.
	if res, err := place(nil); err != nil || res.GetUnchanged() || len(res.GetMoving()) != 0 {
		t.Errorf("got %v, %v", res, err)
	}
}

func TestDrainAndRemove(t *testing.T) {
	p := quick(newPlane(t))
	p.environment("dev")
	hosts := map[string]*fakeAgent{"h1": p.agent("h1")}
	one := p.release(text("api", 80, ""), "v1")
	p.watch(p.deploy("dev", one).GetId())
	first := p.serves("dev", one)

	drain := func(host string, end bool) *pb.Host {
		t.Helper()
		res, err := p.client.DrainHost(t.Context(), connect.NewRequest(&pb.DrainHostRequest{Host: host, End: end}))
		if err != nil {
			t.Fatal(err)
		}
		return res.Msg.GetHost()
	}
	if h := drain("h1", false); h.GetDrainingAt() == nil || h.GetInstances() != 1 {
		t.Errorf("got %v", h)
	}
	// There is nowhere to go: it stays, and nothing else comes.
	_, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: p.release(text("api", 80, ""), "v2")}))
	wantCode(t, err, connect.CodeFailedPrecondition, "1 of 1 host is draining")
	if got := p.serves("dev", one); got.GetId() != first.GetId() {
		t.Errorf("%s was succeeded by %s", first.GetId(), got.GetId())
	}
	_, err = p.client.RemoveHost(t.Context(), connect.NewRequest(&pb.RemoveHostRequest{Host: "h1", Lose: true}))
	wantCode(t, err, connect.CodeFailedPrecondition, "is connected")

	hosts["h2"] = p.agent("h2")
	p.eventually("it has moved", func() bool { return p.serving("dev")["h2"] != "" && len(p.instances("dev", false)) == 1 })
	if got := hosts["h1"].running(); len(got) != 0 {
		t.Errorf("h1 runs %v", got)
	}
	var story []string
	for _, l := range p.journals.since(first.GetDeployment(), 0) {
		story = append(story, l.GetText())
	}
	after(t, strings.Join(story, "\n"), "placed on h2", first.GetId()+" is asked to stop")

	hosts["h1"].leave()
	p.eventually("h1 is away", func() bool { on, _ := p.observed.connected("h1", time.Now()); return !on })
	if _, err := p.client.RemoveHost(t.Context(), connect.NewRequest(&pb.RemoveHostRequest{Host: "h1"})); err != nil {
		t.Fatal(err)
	}
	res, err := p.client.ListHosts(t.Context(), connect.NewRequest(&pb.ListHostsRequest{}))
	if err != nil || len(res.Msg.GetHosts()) != 1 {
		t.Errorf("got %v, %v", res, err)
	}

	// The last host dies with all that there was.
	hosts["h2"].leave()
	p.eventually("h2 is away", func() bool { on, _ := p.observed.connected("h2", time.Now()); return !on })
	_, err = p.client.RemoveHost(t.Context(), connect.NewRequest(&pb.RemoveHostRequest{Host: "h2"}))
	wantCode(t, err, connect.CodeFailedPrecondition, "nothing has succeeded yet")
	lost, err := p.client.RemoveHost(t.Context(), connect.NewRequest(&pb.RemoveHostRequest{Host: "h2", Lose: true}))
	if err != nil || len(lost.Msg.GetLost()) != 1 {
		t.Fatalf("got %v, %v", lost, err)
	}
	if n := len(p.instances("dev", false)); n != 0 {
		t.Errorf("%d instances run nowhere", n)
	}
	for _, i := range p.instances("dev", true) {
		if i.GetId() == lost.Msg.GetLost()[0] && (i.GetLastEnd().GetKind() != "lost" || i.GetLastEnd().GetDetail() != "its host was removed") {
			t.Errorf("end: got %v", i.GetLastEnd())
		}
	}
}
