package server

import (
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// keepVolumes makes the volumes of assignments and removes what is to be removed; a.mu is held.
func (a *fakeAgent) keepVolumes(msg *pb.WatchAssignmentsResponse) {
	for _, id := range msg.GetRemovedVolumes() {
		delete(a.volumes, id)
	}
	users := map[string]string{}
	for _, asg := range msg.GetAssignments() {
		for _, v := range asg.GetVolumes() {
			if other := users[v.GetId()]; other != "" && !a.over(other) && !a.over(asg.GetInstance()) {
				a.problems = append(a.problems, "volume "+v.GetId()+" has two holders: "+other+" and "+asg.GetInstance())
			}
			users[v.GetId()] = asg.GetInstance()
			if have := a.volumes[v.GetId()]; have == nil {
				if v.GetMustExist() {
					a.problems = append(a.problems, "volume "+v.GetId()+" must exist, and was never made")
				}
				a.volumes[v.GetId()] = &pb.VolumeReport{Id: v.GetId(), SizeBytes: v.GetSizeBytes(), UsedBytes: -1}
			} else if v.GetSizeBytes() < have.GetSizeBytes() {
				a.problems = append(a.problems, "volume "+v.GetId()+" shrinks")
			} else {
				have.SizeBytes = v.GetSizeBytes()
			}
		}
	}
}

// over tells whether an instance has ended; a.mu is held.
func (a *fakeAgent) over(instance string) bool {
	i := a.instances[instance]
	return i != nil && i.now.GetState() == stateEnded
}

func (a *fakeAgent) has(volume string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.volumes[volume] != nil
}

const dataVolume = "volumes.data = { path = \"/data\", size = \"64MiB\" }"

// volumeOf is the volume of an ordinal, as the log has it.
func (p *plane) volumeOf(app string, ordinal int) (v *fleet.Volume) {
	p.ledger.read(func(st *fleet.State) { v = st.VolumeOf("dev", app, ordinal, "data") })
	return v
}

// succeeds waits until a deployment has ended, and checks that it went well.
func (p *plane) succeeds(d *pb.Deployment) {
	p.t.Helper()
	if story, last, _ := p.watch(d.GetId()); last.GetState() != "succeeded" {
		p.t.Fatalf("got %s\n%s", last.GetState(), story)
	}
}

func TestVolumesStayWhereTheyAre(t *testing.T) {
	p := newPlane(t)
	one, two := p.agent("h1"), p.agent("h2")
	p.environment("dev")
	db := p.release(text("db", 80, dataVolume), "v1")
	plan, err := p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: db}}))
	if err != nil || !strings.Contains(plan.Msg.GetSteps()[0].GetText(), "with data (new, 64MiB)") {
		t.Fatalf("got %v, %v", plan, err)
	}
	p.succeeds(p.deploy("dev", db))
	first := p.serves("dev", db)
	v := p.volumeOf("db", 0)
	if v == nil || v.Host != first.GetHost() || !v.Made {
		t.Fatalf("the volume is %+v, its instance on %s", v, first.GetHost())
	}

	// Whatever else the other host has to offer, the next one starts where the volume is, and after the one before it.
	again := p.release(text("db", 80, strings.Replace(dataVolume, "64MiB", "96MiB", 1)), "v2")
	plan, err = p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: again}}))
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, s := range plan.Msg.GetSteps() {
		actions = append(actions, s.GetAction())
	}
	if want := []string{"stop", "ended", "start"}; !slices.Equal(actions[:3], want) {
		t.Errorf("the plan is %v, want %v first", actions, want)
	}
	if s := plan.Msg.GetSteps()[2]; s.GetHost() != v.Host || !strings.Contains(s.GetText(), "grown from 64MiB to 96MiB") {
		t.Errorf("got %v", s)
	}
	p.succeeds(p.deploy("dev", again))
	if i := p.serves("dev", again); i.GetHost() != v.Host || p.volumeOf("db", 0).ID != v.ID || p.volumeOf("db", 0).SizeBytes != 96<<20 {
		t.Errorf("instance %v, volume %+v", i, p.volumeOf("db", 0))
	}

	// Going back keeps the volume, at its size.
	plan, err = p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: db}}))
	if err != nil || !strings.Contains(strings.Join(plan.Msg.GetWarnings(), "\n"), "volumes never shrink") {
		t.Errorf("got %v, %v", plan, err)
	}
	back, err := p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "db"}))
	if err != nil {
		t.Fatal(err)
	}
	p.succeeds(back.Msg.GetDeployment())
	if i := p.serves("dev", db); i.GetHost() != v.Host || p.volumeOf("db", 0).SizeBytes != 96<<20 {
		t.Errorf("instance %v, volume %+v", i, p.volumeOf("db", 0))
	}
	if one.has(v.ID) == two.has(v.ID) {
		t.Error("the volume is on both hosts, or on none")
	}
}

func TestVolumesOfALostHost(t *testing.T) {
	p := newPlane(t)
	p.change = func(o *Options) { o.LostAfter = 1 }
	p.kill()
	p.boot()
	one := p.agent("h1")
	p.environment("dev")
	db := p.release(text("db", 80, dataVolume), "v1")
	p.succeeds(p.deploy("dev", db))
	p.agent("h2")
	one.stop()
	one.done.Wait()
	p.eventually("the instance waits for its host, and says so", func() bool {
		all := p.instances("dev", false)
		return len(all) == 1 && all[0].GetState() == stateUnknown && strings.Contains(all[0].GetMessage(), "waits for host h1, where its volumes are")
	})
	restart := func() error {
		_, err := p.client.Restart(t.Context(), connect.NewRequest(&pb.RestartRequest{Environment: "dev", App: "db"}))
		return err
	}
	wantCode(t, restart(), connect.CodeFailedPrecondition, "can only run on host h1, where its volumes are, and that is away")
	_, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: p.release(text("db", 80, dataVolume), "v2")}))
	wantCode(t, err, connect.CodeFailedPrecondition, "where its volumes are, and that is away")
	remove := func(lose bool) error {
		_, err := p.client.RemoveHost(t.Context(), connect.NewRequest(&pb.RemoveHostRequest{Host: "h1", Lose: lose}))
		return err
	}
	wantCode(t, remove(false), connect.CodeFailedPrecondition, "has volumes that are nowhere else")
	if all := p.instances("dev", false); len(all) != 1 || all[0].GetHost() != "h1" {
		t.Fatalf("it was started elsewhere: %v", all)
	}
	// Given up, it begins anew elsewhere.
	if err := remove(true); err != nil {
		t.Fatal(err)
	}
	p.succeeds(p.deploy("dev", db))
	if i := p.serves("dev", db); i.GetHost() != "h2" || p.volumeOf("db", 0).Host != "h2" {
		t.Errorf("got %v with %+v", i, p.volumeOf("db", 0))
	}
}

func TestVolumesThatCannotBe(t *testing.T) {
	p := newPlane(t)
	p.agent("h1")
	p.environment("dev")
	deploy := func(source string) error {
		_, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: p.release(source, "v1")}))
		return err
	}
	wantCode(t, deploy(text("must", 80, strings.Replace(dataVolume, "}", `, on_missing = "fail" }`, 1))), connect.CodeFailedPrecondition, "must/0 has no volume data")
	whole := p.release(text("whole", 81, strings.Replace(dataVolume, "}", `, per = "workload" }`, 1)), "v1")
	p.succeeds(p.deploy("dev", whole))
	_, err := p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "whole", Count: 2}))
	wantCode(t, err, connect.CodeInvalidArgument, "E122 volumes.data.per")
}

func TestQuotaBoundsPlacement(t *testing.T) {
	p := newPlane(t)
	p.agent("h1")
	p.environment("dev")
	err := p.ledger.append(t.Context(), firstToken, "", &fleet.QuotaSet{Environment: "dev", Quota: fleet.Quota{Instances: 2}})
	if err != nil {
		t.Fatal(err)
	}
	api := p.release(text("api", 80, ""), "v1")
	p.succeeds(p.deploy("dev", api))
	_, err = p.client.Scale(t.Context(), connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "api", Count: 3}))
	wantCode(t, err, connect.CodeFailedPrecondition, "the environment's quota leaves 1 instance")
}
