package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

const fakeImage = 64 << 20

// serveTask does a task without any volume: what is exported is what was imported last, or "data" in the middle, and
// ports give back what they get, and end when it ends.
func (a *fakeAgent) serveTask(ctx context.Context, task *pb.HostTask) {
	stream := a.client.ServeTask(ctx)
	say := func(m *pb.ServeTaskRequest) { _ = stream.Send(m) } // the server may be gone
	defer func() {
		_ = stream.CloseRequest()
		for err := error(nil); err == nil; { // the server has everything when it ends the stream
			_, err = stream.Receive()
		}
		_ = stream.CloseResponse()
	}()
	say(&pb.ServeTaskRequest{Task: task.GetId()})
	switch what := task.GetWhat().(type) {
	case *pb.HostTask_Forward:
		say(&pb.ServeTaskRequest{Connected: true})
		for {
			m, err := stream.Receive()
			if err != nil {
				return
			}
			say(&pb.ServeTaskRequest{Data: m.GetData(), Eof: m.GetEof()})
			if m.GetEof() {
				say(&pb.ServeTaskRequest{Done: &pb.TaskDone{}})
				return
			}
		}
	case *pb.HostTask_Snapshot:
		say(a.snapshot(what.Snapshot))
	case *pb.HostTask_Export:
		h := sha256.New()
		h.Write(make([]byte, 4096))
		h.Write([]byte("data"))
		h.Write(make([]byte, fakeImage-4096-4))
		say(&pb.ServeTaskRequest{ImageStart: &pb.ImageStart{SizeBytes: fakeImage, DataBytes: 4}})
		say(&pb.ServeTaskRequest{ImageData: &pb.ImageData{Offset: 4096, Data: []byte("data")}})
		say(&pb.ServeTaskRequest{ImageEnd: &pb.ImageEnd{Sha256: h.Sum(nil)}})
	case *pb.HostTask_Import:
		for {
			m, err := stream.Receive()
			switch {
			case err != nil:
				return
			case string(m.GetImageData().GetData()) == "bad":
				say(&pb.ServeTaskRequest{Refusal: &pb.TaskRefusal{Reason: "invalid", Message: "the image is not what it should be"}})
				return
			case m.GetImageEnd() != nil:
				a.mu.Lock()
				a.volumes[what.Import.GetVolume()] = &pb.VolumeReport{Id: what.Import.GetVolume(), SizeBytes: what.Import.GetImage().GetSizeBytes()}
				a.mu.Unlock()
				say(&pb.ServeTaskRequest{Done: &pb.TaskDone{}})
				return
			}
		}
	}
}

func (a *fakeAgent) snapshot(task *pb.SnapshotTask) *pb.ServeTaskRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := a.volumes[task.GetVolume()]
	at := slices.Index(v.GetSnapshots(), task.GetSnapshot())
	switch {
	case v == nil || task.GetDelete() && at < 0:
		return &pb.ServeTaskRequest{Refusal: &pb.TaskRefusal{Reason: "not-found", Message: "no such thing"}}
	case task.GetDelete():
		v.Snapshots = slices.Delete(v.Snapshots, at, at+1)
	case at >= 0:
		return &pb.ServeTaskRequest{Refusal: &pb.TaskRefusal{Reason: "exists", Message: "it is there"}}
	default:
		v.Snapshots = append(v.Snapshots, task.GetSnapshot())
	}
	return &pb.ServeTaskRequest{Done: &pb.TaskDone{Volume: &pb.VolumeReport{Id: v.GetId(), SizeBytes: v.GetSizeBytes()}}}
}

// newVolume is a plane with an app that has a volume.
func newVolume(t *testing.T) (*plane, *fakeAgent, *fleet.Volume) {
	p := newPlane(t)
	a := p.agent("h1")
	p.environment("dev")
	p.succeeds(p.deploy("dev", p.release(text("db", 80, dataVolume), "v1")))
	return p, a, p.volumeOf("db", 0)
}

func TestForwardPort(t *testing.T) {
	p, _, _ := newVolume(t)
	connects := func(target, port string) (*connect.BidiStreamForClient[pb.ForwardPortRequest, pb.ForwardPortResponse], *pb.ForwardPortResponse, error) {
		stream := p.client.ForwardPort(t.Context())
		if err := stream.Send(&pb.ForwardPortRequest{Start: &pb.ForwardStart{Environment: "dev", Target: target, Port: port}}); err != nil {
			t.Fatal(err)
		}
		m, err := stream.Receive()
		return stream, m, err
	}
	stream, m, err := connects("db", "web")
	if err != nil || m.GetConnected().GetPort() != 8080 || m.GetConnected().GetHost() != "h1" {
		t.Fatalf("got %v, %v", m, err)
	}
	for _, m := range []*pb.ForwardPortRequest{{Data: []byte("one ")}, {Data: []byte("two")}, {Eof: true}} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	var got bytes.Buffer
	eof := false
	for {
		m, err := stream.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			break
		}
		got.Write(m.GetData())
		eof = eof || m.GetEof()
	}
	if got.String() != "one two" || !eof {
		t.Errorf("got %q, eof %v", got.String(), eof)
	}
	_, _, err = connects("db", "nothing")
	wantCode(t, err, connect.CodeNotFound, `db has no port "nothing"`)
	_, _, err = connects("db", "70000")
	wantCode(t, err, connect.CodeNotFound, "1 to 65535")
	_, _, err = connects("none", "web")
	wantCode(t, err, connect.CodeNotFound, "none")
}

func TestSnapshots(t *testing.T) {
	p, a, v := newVolume(t)
	take := func(name, key string) error {
		_, err := p.client.SnapshotVolume(t.Context(), connect.NewRequest(&pb.SnapshotVolumeRequest{Environment: "dev", Volume: "db/0", Snapshot: name, IdempotencyKey: key}))
		return err
	}
	if err := errors.Join(take("one", "k"), take("one", "k")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, take("one", ""), connect.CodeAlreadyExists, "has a snapshot one already")
	wantCode(t, take("../x", ""), connect.CodeInvalidArgument, "cannot be the name")
	wantCode(t, take("export-1", ""), connect.CodeInvalidArgument, "cannot be the name")
	// One that nobody waited for until it was on record is not taken for another one.
	a.mu.Lock()
	a.volumes[v.ID].Snapshots = append(a.volumes[v.ID].Snapshots, "two")
	a.mu.Unlock()
	if err := take("two", ""); err != nil {
		t.Fatal(err)
	}
	remove := func(name string) error {
		_, err := p.client.DeleteSnapshot(t.Context(), connect.NewRequest(&pb.DeleteSnapshotRequest{Environment: "dev", Volume: v.ID, Snapshot: name}))
		return err
	}
	if err := remove("one"); err != nil {
		t.Fatal(err)
	}
	wantCode(t, remove("one"), connect.CodeNotFound, "has no snapshot")
	if now := p.volumeOf("db", 0); !now.HasSnapshot("two") || now.HasSnapshot("one") {
		t.Errorf("got %+v", now.Snapshots)
	}
}

func TestExportAndImport(t *testing.T) {
	p, a, v := newVolume(t)
	stream, err := p.client.ExportVolume(t.Context(), connect.NewRequest(&pb.ExportVolumeRequest{Environment: "dev", Volume: v.ID}))
	if err != nil {
		t.Fatal(err)
	}
	var parts []*pb.ExportVolumeResponse
	for stream.Receive() {
		parts = append(parts, stream.Msg())
	}
	if err := stream.Err(); err != nil || len(parts) != 3 || string(parts[1].GetData().GetData()) != "data" || parts[2].GetEnd() == nil {
		t.Fatalf("got %v, %v", parts, err)
	}
	send := func(start *pb.ImportStart, data string, end bool) (*pb.Volume, error) {
		stream := p.client.ImportVolume(t.Context())
		start.Image = &pb.ImageStart{SizeBytes: fakeImage}
		_ = stream.Send(&pb.ImportVolumeRequest{Message: &pb.ImportVolumeRequest_Start{Start: start}})
		_ = stream.Send(&pb.ImportVolumeRequest{Message: &pb.ImportVolumeRequest_Data{Data: &pb.ImageData{Offset: 0, Data: []byte(data)}}})
		if end { // what goes wrong shows in the answer
			_ = stream.Send(&pb.ImportVolumeRequest{Message: &pb.ImportVolumeRequest_End{End: &pb.ImageEnd{Sha256: make([]byte, 32)}}})
		}
		res, err := stream.CloseAndReceive()
		if err != nil {
			return nil, err
		}
		return res.Msg.GetVolume(), nil
	}
	for what, tc := range map[string]struct {
		start *pb.ImportStart
		data  string
		end   bool
		code  connect.Code
		text  string
	}{
		"over one that is there": {&pb.ImportStart{Environment: "dev", App: "db", Name: "data"}, "x", true, connect.CodeAlreadyExists, "Detach that first"},
		"cut off":                {&pb.ImportStart{Environment: "dev", App: "db", Name: "data", Ordinal: 1}, "x", false, connect.CodeInvalidArgument, "cut off"},
		"damaged":                {&pb.ImportStart{Environment: "dev", App: "db", Name: "data", Ordinal: 1}, "bad", true, connect.CodeInvalidArgument, "not what it should be"},
		"to no host":             {&pb.ImportStart{Environment: "dev", App: "db", Name: "data", Ordinal: 1, Host: "h9"}, "x", true, connect.CodeNotFound, "h9"},
	} {
		_, err := send(tc.start, tc.data, tc.end)
		wantCode(t, err, tc.code, tc.text)
		if p.volumeOf("db", 1) != nil {
			t.Errorf("%s: a volume was made", what)
		}
	}
	got, err := send(&pb.ImportStart{Environment: "dev", App: "db", Name: "data", Ordinal: 1}, "x", true)
	if err != nil || got.GetHost() != "h1" || !a.has(got.GetId()) {
		t.Fatalf("got %v, %v", got, err)
	}
	if v := p.volumeOf("db", 1); v == nil || !v.Made {
		t.Errorf("bound: %+v", v)
	}
}

func TestVolumesChange(t *testing.T) {
	p, a, v := newVolume(t)
	ctx := t.Context()
	grow := func(size int64) (*pb.GrowVolumeResponse, error) {
		res, err := p.client.GrowVolume(ctx, connect.NewRequest(&pb.GrowVolumeRequest{Environment: "dev", Volume: v.ID[:len(v.ID)-4], SizeBytes: size}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	if res, err := grow(128 << 20); err != nil || res.GetVolume().GetSizeBytes() != 128<<20 || res.GetVolume().GetInstance() == "" {
		t.Fatalf("got %v, %v", res, err)
	}
	if res, err := grow(128 << 20); err != nil || !res.GetUnchanged() {
		t.Errorf("again: %v, %v", res, err)
	}
	_, err := grow(64 << 20)
	wantCode(t, err, connect.CodeInvalidArgument, "is 128MiB large and cannot become 64MiB: volumes only grow")
	detach := func() error {
		_, err := p.client.DetachVolume(ctx, connect.NewRequest(&pb.DetachVolumeRequest{Environment: "dev", Volume: v.ID}))
		return err
	}
	remove := func() error {
		_, err := p.client.DeleteVolume(ctx, connect.NewRequest(&pb.DeleteVolumeRequest{Environment: "dev", Volume: v.ID}))
		return err
	}
	wantCode(t, detach(), connect.CodeFailedPrecondition, "stop it first")
	wantCode(t, remove(), connect.CodeFailedPrecondition, "detach it first")
	stop, err := p.client.Stop(ctx, connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "db"}))
	if err != nil {
		t.Fatal(err)
	}
	p.succeeds(stop.Msg.GetDeployment())
	if err := errors.Join(detach(), detach()); err != nil {
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	p.eventually("the volume is gone", func() bool {
		res, err := p.client.ListVolumes(ctx, connect.NewRequest(&pb.ListVolumesRequest{Environment: "dev"}))
		return err == nil && len(res.Msg.GetVolumes()) == 0 && !a.has(v.ID)
	})
}

func TestDestroy(t *testing.T) {
	p, a, v := newVolume(t)
	destroy := func(confirm string) (*pb.Destruction, error) {
		res, err := p.client.DestroyApp(t.Context(), connect.NewRequest(&pb.DestroyAppRequest{Environment: "dev", App: "db", Confirm: confirm}))
		if err != nil {
			return nil, err
		}
		return res.Msg.GetDestruction(), nil
	}
	would, err := destroy("")
	if err != nil || would.GetDone() || len(would.GetInstances()) != 1 || len(would.GetVolumes()) != 1 || len(would.GetKept()) == 0 {
		t.Fatalf("got %v, %v", would, err)
	}
	_, err = destroy("bd")
	wantCode(t, err, connect.CodeInvalidArgument, `which is "db"`)
	if len(p.instances("dev", false)) != 1 {
		t.Fatal("what only was asked about has gone")
	}
	if did, err := destroy("db"); err != nil || !did.GetDone() {
		t.Fatalf("got %v, %v", did, err)
	}
	p.eventually("all of it has gone, from the host too", func() bool {
		var left bool
		p.ledger.read(func(st *fleet.State) { left = st.App("dev", "db") != nil || len(st.Volumes("dev")) > 0 })
		return !left && len(a.running()) == 0 && !a.has(v.ID)
	})
	_, err = destroy("db")
	wantCode(t, err, connect.CodeNotFound, "never deployed")

	api := p.release(text("api", 81, ""), "v1")
	p.succeeds(p.deploy("dev", api))
	env := func(confirm string) (*connect.Response[pb.DestroyEnvironmentResponse], error) {
		return p.client.DestroyEnvironment(t.Context(), connect.NewRequest(&pb.DestroyEnvironmentRequest{Environment: "dev", Confirm: confirm}))
	}
	if res, err := env(""); err != nil || !slices.Equal(res.Msg.GetDestruction().GetApps(), []string{"api"}) {
		t.Fatalf("got %v, %v", res, err)
	}
	if _, err := env("dev"); err != nil {
		t.Fatal(err)
	}
	p.eventually("the environment has gone", func() bool {
		res, err := p.client.ListEnvironments(t.Context(), connect.NewRequest(&pb.ListEnvironmentsRequest{}))
		return err == nil && len(res.Msg.GetEnvironments()) == 0 && len(a.running()) == 0
	})
	if list, err := p.client.ListReleases(t.Context(), connect.NewRequest(&pb.ListReleasesRequest{})); err != nil || len(list.Msg.GetReleases()) != 2 {
		t.Errorf("the releases: %v, %v", list, err)
	}
}

func TestQuotaSetting(t *testing.T) {
	p, _, _ := newVolume(t)
	set := func(q *pb.Quota) (*pb.SetQuotaResponse, error) {
		res, err := p.client.SetQuota(t.Context(), connect.NewRequest(&pb.SetQuotaRequest{Environment: "dev", Quota: q}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	if res, err := set(&pb.Quota{MemoryBytes: 200 << 20}); err != nil || res.GetUnchanged() || res.GetBooked().GetMemoryBytes() != 128<<20 {
		t.Fatalf("got %v, %v", res, err)
	}
	if res, err := set(&pb.Quota{MemoryBytes: 200 << 20}); err != nil || !res.GetUnchanged() {
		t.Errorf("again: %v, %v", res, err)
	}
	_, err := set(&pb.Quota{MemoryBytes: -1})
	wantCode(t, err, connect.CodeInvalidArgument, "negative")
	_, err = p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: p.release(text("api", 81, ""), "v1")}))
	if err == nil || !strings.Contains(err.Error(), "the environment's quota leaves 72 MiB of memory (each needs 128 MiB)") {
		t.Errorf("got %v", err)
	}
	usage, err := p.client.ListUsage(t.Context(), connect.NewRequest(&pb.ListUsageRequest{Environment: "dev"}))
	if err != nil || len(usage.Msg.GetInstances()) != 1 || usage.Msg.GetInstances()[0].GetMemoryBytes() != 128<<20 {
		t.Errorf("got %v, %v", usage, err)
	}
}
