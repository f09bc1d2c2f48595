package server

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func sized(size string) string { return strings.Replace(dataVolume, "64MiB", size, 1) }

// withDisk is a host with so much disk.
func withDisk(gib int64) func(*pb.HostFacts) {
	return func(h *pb.HostFacts) { h.DiskBytes = gib << 30 }
}

// TestVolumesAreBooked: a host promises no more disk to volumes and scratch disks than it has, and who wants more is told
// before anything is stopped.
func TestVolumesAreBooked(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1", withDisk(10))
	p.agent("h2", withDisk(4))
	ctx := t.Context()
	plan := func(release string) error {
		_, err := p.client.Plan(ctx, connect.NewRequest(&pb.PlanRequest{Environment: "dev", Target: &pb.PlanRequest_Release{Release: release}}))
		return err
	}
	deploy := func(release string) error {
		_, err := p.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: release}))
		return err
	}
	huge := p.release(text("huge", 81, sized("11GiB")), "v1")
	for _, do := range []func(string) error{plan, deploy} {
		wantCode(t, do(huge), connect.CodeFailedPrecondition, "2 of 2 hosts lack disk (11328 MiB needed with its volumes, at most 10240 MiB free)")
	}
	db := p.release(text("db", 80, sized("6GiB")), "v1")
	p.succeeds(p.deploy("dev", db))
	first := p.serves("dev", db)
	if first.GetHost() != "h1" {
		t.Fatalf("it runs on %s, which has no room", first.GetHost())
	}
	wantCode(t, deploy(p.release(text("next", 81, sized("5GiB")), "v1")), connect.CodeFailedPrecondition, "2 of 2 hosts lack disk")
	_, err := p.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: "db", Count: 2}))
	wantCode(t, err, connect.CodeFailedPrecondition, "2 of 2 hosts lack disk")

	hosts, err := p.client.ListHosts(ctx, connect.NewRequest(&pb.ListHostsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	booked := ""
	for _, h := range hosts.Msg.GetHosts() {
		booked += fmt.Sprintf("%s %d of %d; ", h.GetId(), h.GetDiskBookedBytes()>>20, h.GetDiskBytes()>>20)
	}
	if want := "h1 6208 of 10240; h2 0 of 4096; "; booked != want {
		t.Errorf("booked %q, want %q", booked, want)
	}

	// Larger ones: by a release, which must not stop what runs first, by hand, and by a file.
	for _, do := range []func(string) error{plan, deploy} {
		wantCode(t, do(p.release(text("db", 80, sized("12GiB")), "v2")), connect.CodeFailedPrecondition, "on host h1, where its volumes are, which lacks disk")
	}
	grow := func(gib int64) error {
		_, err := p.client.GrowVolume(ctx, connect.NewRequest(&pb.GrowVolumeRequest{Environment: "dev", Volume: "db/0", SizeBytes: gib << 30}))
		return err
	}
	wantCode(t, grow(10), connect.CodeFailedPrecondition, "host h1 lacks disk for volume vol-")
	if err := grow(9); err != nil {
		t.Error(err)
	}
	importTo := func(host string, gib int64) error {
		stream := p.client.ImportVolume(ctx)
		_ = stream.Send(&pb.ImportVolumeRequest{Message: &pb.ImportVolumeRequest_Start{Start: &pb.ImportStart{
			Environment: "dev", App: "files", Name: "data", Host: host, Image: &pb.ImageStart{SizeBytes: gib << 30},
		}}})
		_ = stream.Send(&pb.ImportVolumeRequest{Message: &pb.ImportVolumeRequest_End{End: &pb.ImageEnd{Sha256: make([]byte, 32)}}})
		_, err := stream.CloseAndReceive() // what goes wrong shows here
		return err
	}
	wantCode(t, importTo("h1", 2), connect.CodeFailedPrecondition, "host h1 lacks disk for an image of 2GiB: 2048 MiB needed, 960 MiB free")
	wantCode(t, importTo("", 5), connect.CodeFailedPrecondition, "2 of 2 hosts lack disk for an image of 5GiB")
	if err := importTo("", 3); err != nil {
		t.Error(err)
	}

	// What is there can go on, also where too much is promised.
	less := proto.CloneOf(a.facts)
	less.DiskBytes = 1 << 30
	if _, err := a.client.Join(ctx, connect.NewRequest(&pb.JoinRequest{Host: less})); err != nil {
		t.Fatal(err)
	}
	again := p.release(text("db", 80, sized("6GiB")), "v3")
	p.succeeds(p.deploy("dev", again))
	if i := p.serves("dev", again); i.GetHost() != "h1" {
		t.Errorf("it runs on %s", i.GetHost())
	}
}

// TestSettingsOfAppsThatCannotRestart: a change that has to restart an app is refused while the host of its volumes is
// away or drains, instead of being begun.
func TestSettingsOfAppsThatCannotRestart(t *testing.T) {
	p := newSafe(t)
	p.environment("dev")
	a := p.agent("h1")
	ctx := t.Context()
	setVar := func(value string, later bool) (*pb.SetVarsResponse, error) {
		res, err := p.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{Environment: "dev", Set: map[string]string{"URL": value}, NoDeploy: later}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	put := func(value string) error {
		_, err := p.client.PutSecret(ctx, connect.NewRequest(&pb.PutSecretRequest{Environment: "dev", Bundle: "db", Set: values("PASSWORD", value)}))
		return err
	}
	_, err := setVar("one", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := put("one"); err != nil {
		t.Fatal(err)
	}
	source := "vars = [\"URL\"]\n" + text("db", 80, dataVolume+"\nsecrets.db = { env = [\"PASSWORD\"] }")
	db := p.release(source, "v1")
	p.succeeds(p.deploy("dev", db))
	refused := func(why string) {
		t.Helper()
		_, err := setVar("of "+why, false)
		wantCode(t, err, connect.CodeFailedPrecondition, "nothing was changed: db is live in dev and would have to restart: db/0 can only run on host h1, where its volumes are, and that is "+why)
		wantCode(t, put("two"), connect.CodeFailedPrecondition, "nothing was changed: db is live in dev")
	}
	drain := func(end bool) {
		t.Helper()
		if _, err := p.client.DrainHost(ctx, connect.NewRequest(&pb.DrainHostRequest{Host: "h1", End: end})); err != nil {
			t.Fatal(err)
		}
	}
	drain(false)
	refused("draining")
	if res, err := setVar("later", true); err != nil || len(res.GetPending()) != 1 {
		t.Errorf("for later: %v, %v", res, err)
	}
	drain(true)
	res, err := setVar("two", false)
	if err != nil || len(res.GetDeployments()) != 1 {
		t.Fatalf("got %v, %v", res, err)
	}
	p.succeeds(res.GetDeployments()[0])
	a.leave()
	p.eventually("h1 is away", func() bool { on, _ := p.observed.connected("h1", p.now()); return !on })
	refused("away")
}

// TestStrays: what is left of an import that was never bound is removed, and nothing else that a host has.
func TestStrays(t *testing.T) {
	p, a, v := newVolume(t)
	a.mu.Lock()
	a.volumes["vol-left"] = &pb.VolumeReport{Id: "vol-left", SizeBytes: fakeImage, Unclaimed: true}
	a.volumes["vol-importing"] = &pb.VolumeReport{Id: "vol-importing", SizeBytes: fakeImage, Unclaimed: true}
	a.volumes["vol-foreign"] = &pb.VolumeReport{Id: "vol-foreign", SizeBytes: fakeImage}
	a.volumes[v.ID].Unclaimed = true
	p.imports.begin("vol-importing")
	a.mu.Unlock()
	p.eventually("what is left is removed", func() bool { return !a.has("vol-left") })
	// By another server, too, which knows of no import that is under way.
	if !a.has("vol-importing") || !a.has("vol-foreign") || !a.has(v.ID) {
		t.Fatal("more than that was removed")
	}
	p.kill()
	p.boot()
	p.eventually("what a server left that has ended is removed", func() bool { return !a.has("vol-importing") })
	if !a.has("vol-foreign") || !a.has(v.ID) {
		t.Error("more than that was removed")
	}
}
