package server

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
)

func TestTokens(t *testing.T) {
	p := newPlane(t)
	ask := func(url string, client *http.Client) error {
		_, err := pinnacev1connect.NewControlServiceClient(client, url).GetServerInfo(t.Context(), connect.NewRequest(&pb.GetServerInfoRequest{}))
		return err
	}
	join := func(url string, client *http.Client) error {
		_, err := pinnacev1connect.NewAgentServiceClient(client, url).Join(t.Context(), connect.NewRequest(&pb.JoinRequest{}))
		return err
	}
	host := &http.Client{Transport: withCertificate{p.hostCertificate("h1"), p.agentSide.Transport}}
	if err := ask(p.api.URL, p.clientSide); err != nil {
		t.Errorf("with the admin token: %v", err)
	}
	for name, err := range map[string]error{
		"no token":                       ask(p.api.URL, http.DefaultClient),
		"empty token":                    ask(p.api.URL, httpClient("")),
		"a longer token":                 ask(p.api.URL, httpClient(adminToken+"x")),
		"a host at the API":              ask(p.api.URL, host),
		"admin token at the agents' API": join(p.agentAPI.URL, p.clientSide),
	} {
		if connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("%s: got %v, want unauthenticated", name, err)
		}
	}
	// Each port serves its own service only, and nothing else is there, with or without a token.
	if err := ask(p.agentAPI.URL, host); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("the agents' port: got %v", err)
	}
	for client, want := range map[*http.Client]int{http.DefaultClient: http.StatusUnauthorized, p.clientSide: http.StatusNotFound} {
		res, err := client.Get(p.api.URL + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("an unknown path: got %d, want %d", res.StatusCode, want)
		}
	}
	_, err := p.hostClient("h1").Join(t.Context(), connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{Id: "h1"}}))
	wantCode(t, err, connect.CodeInvalidArgument, "are needed")
}

func TestOptionsAreNeeded(t *testing.T) {
	for _, o := range []Options{
		{},
		{Engine: memory.New(), Logger: newPlane(t).Server.log, AdminToken: "a"},
		{Engine: memory.New(), Logger: newPlane(t).Server.log, Authority: testAuthority()},
		{Engine: memory.New(), Logger: newPlane(t).Server.log, Authority: testAuthority(), AdminToken: "short"},
	} {
		if _, err := New(t.Context(), o); err == nil {
			t.Errorf("a server started with %+v", o)
		}
	}
}

func TestCreateReleaseTrustsNothing(t *testing.T) {
	p := newPlane(t)
	source := text("api", 80, "")
	platform := func(r *pb.CreateReleaseRequest) *pb.ReleasePlatform { return r.GetPlatforms()[0] }
	tests := []struct {
		name   string
		change func(*pb.CreateReleaseRequest)
		want   string
	}{
		{"another hash", func(r *pb.CreateReleaseRequest) { r.ManifestHash = "sha256:" + strings.Repeat("0", 64) }, "the manifest hash differs"},
		{"no hash", func(r *pb.CreateReleaseRequest) { r.ManifestHash = "" }, "the manifest hash differs"},
		{"errors in the manifest", func(r *pb.CreateReleaseRequest) { r.Manifest = []byte("schema = 'v1'\nname = 'API'\ncolour = 1\n") }, "E101"},
		{"a tag", func(r *pb.CreateReleaseRequest) { r.Image = "nginx:latest" }, "the image is not pinned"},
		{"a tag as source", func(r *pb.CreateReleaseRequest) { r.Sources = []string{"127.0.0.1:5000/api:latest"} }, "without a tag"},
		{"a digest as source", func(r *pb.CreateReleaseRequest) { r.Sources = []string{"registry.example/api@sha256:00"} }, "without a tag"},
		{"no source", func(r *pb.CreateReleaseRequest) { r.Sources = nil }, "0 sources"},
		{"no platform", func(r *pb.CreateReleaseRequest) { r.Platforms = nil }, "0 platforms"},
		{"another manifest digest", func(r *pb.CreateReleaseRequest) { platform(r).ManifestDigest = r.ManifestHash }, "the image manifest's bytes have the digest"},
		{"other manifest bytes", func(r *pb.CreateReleaseRequest) { platform(r).ImageManifest = []byte(`{}`) }, "the image manifest's bytes have the digest"},
		{"other config bytes", func(r *pb.CreateReleaseRequest) { platform(r).ImageConfig = append(platform(r).ImageConfig, ' ') }, "the image config's"},
		{"another architecture", func(r *pb.CreateReleaseRequest) { platform(r).Architecture = "arm64" }, `its config says that it is for "amd64"`},
		{"the same architecture twice", func(r *pb.CreateReleaseRequest) { r.Platforms = append(r.Platforms, r.Platforms[0]) }, "comes twice"},
		{"not json", func(r *pb.CreateReleaseRequest) {
			platform(r).ImageManifest = []byte("PK\x03\x04")
			platform(r).ManifestDigest = digestOf(platform(r).ImageManifest)
		}, "read the image manifest"},
		{"too large", func(r *pb.CreateReleaseRequest) {
			platform(r).ImageManifest = append(platform(r).ImageManifest, make([]byte, 1<<20)...)
		}, "the image manifest's bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := request(t, source, "v1")
			tt.change(r)
			_, err := p.client.CreateRelease(t.Context(), connect.NewRequest(r))
			wantCode(t, err, connect.CodeInvalidArgument, tt.want)
		})
	}
	_, err := p.client.CreateRelease(t.Context(), connect.NewRequest(request(t, rootLast(source, `arch = ["arm64"]`), "v1")))
	wantCode(t, err, connect.CodeInvalidArgument, `the manifest asks for arch "arm64", but the image has amd64`)
	if head := p.ledger.log.Head().Seq; head != 1 { // that of the first token
		t.Errorf("refused requests left %d events", head-1)
	}
}

func TestReleases(t *testing.T) {
	p := newPlane(t)
	source := text("api", 80, "")
	one := p.release(source, "v1")
	head := p.ledger.log.Head().Seq
	again, err := p.client.CreateRelease(t.Context(), connect.NewRequest(request(t, source, "v1")))
	if err != nil || !again.Msg.GetExisted() || again.Msg.GetRelease().GetId() != one || p.ledger.log.Head().Seq != head {
		t.Errorf("creating it again: %v, %v", again, err)
	}
	moved := request(t, source, "v1")
	moved.Sources = []string{"mirror.example/api"}
	at, err := p.client.CreateRelease(t.Context(), connect.NewRequest(moved))
	if err != nil || !at.Msg.GetExisted() || !slices.Equal(at.Msg.GetRelease().GetSources(), []string{"mirror.example/api", "127.0.0.1:5000/api"}) {
		t.Errorf("from a mirror: %v, %v", at, err)
	}
	get := func(ref string) error {
		_, err := p.client.GetRelease(t.Context(), connect.NewRequest(&pb.GetReleaseRequest{Release: ref}))
		return err
	}
	digits := strings.TrimPrefix(one, "sha256:")
	for _, ref := range []string{one, "rel-" + digits[:12], "rel-" + digits[:6], "rel-" + digits} {
		if err := get(ref); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	wantCode(t, get("rel-"+digits[:5]), connect.CodeInvalidArgument, "is not a release")
	wantCode(t, get("latest"), connect.CodeInvalidArgument, "is not a release")
	wantCode(t, get("rel-ffffffffffff"), connect.CodeNotFound, "release list")
	list, err := p.client.ListReleases(t.Context(), connect.NewRequest(&pb.ListReleasesRequest{App: "api"}))
	if err != nil || len(list.Msg.GetReleases()) != 1 || list.Msg.GetReleases()[0].GetManifestSource() != nil {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestDeployRefusals(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.environment("prod")
	api := p.release(text("api", 80, ""), "v1")
	deploy := func(env, rel, token string) error {
		_, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: env, Release: rel, PlanToken: token}))
		return err
	}
	plan := func(env, rel string) (*pb.PlanResponse, error) {
		out, err := p.client.Plan(t.Context(), connect.NewRequest(&pb.PlanRequest{Environment: env, Target: &pb.PlanRequest_Release{Release: rel}}))
		if err != nil {
			return nil, err
		}
		return out.Msg, nil
	}
	wantCode(t, deploy("dev", api, ""), connect.CodeUnavailable, "no host has joined")
	a := p.agent("h1")
	wantCode(t, deploy("staging", api, ""), connect.CodeNotFound, "pinnace env create staging")
	wantCode(t, deploy("", api, ""), connect.CodeInvalidArgument, "pass -e")
	wantCode(t, deploy("dev", "rel-ffffffffffff", ""), connect.CodeNotFound, "does not exist")
	_, err := p.client.CreateEnvironment(t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: "dev"}))
	wantCode(t, err, connect.CodeAlreadyExists, "environment dev")

	later := `[secrets.db]
path = "/run/db"
`
	future := p.release(text("future", 81, later), "v1")
	for _, err := range []error{deploy("dev", future, ""), second(plan("dev", future))} {
		wantCode(t, err, connect.CodeFailedPrecondition, "E401 secrets.db")
		if err != nil && !strings.Contains(err.Error(), "secrets") {
			t.Errorf("not all of what is missing is named: %v", err)
		}
	}
	big := p.release(strings.Replace(text("big", 82, ""), "128MiB", "8GiB", 1), "v1")
	wantCode(t, deploy("dev", big, ""), connect.CodeFailedPrecondition, "1 of 1 host lacks memory")

	first, err := plan("dev", api)
	if err != nil || !first.GetChanges() || len(first.GetSteps()) == 0 || first.GetLiveRelease() != "" {
		t.Fatalf("got %v, %v", first, err)
	}
	if same, err := plan("dev", api); err != nil || same.GetToken() != first.GetToken() {
		t.Errorf("the same plan has another token: %v, %v", same, err)
	}
	release := a.hold()
	if err := deploy("dev", api, first.GetToken()); err != nil {
		t.Fatal(err)
	}
	other := p.release(text("api", 80, ""), "v2")
	err = deploy("dev", other, "")
	wantCode(t, err, connect.CodeAborted, "one at a time")
	wantCode(t, err, connect.CodeAborted, "deployment dep-")
	_, err = p.client.Stop(t.Context(), connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "api"}))
	wantCode(t, err, connect.CodeAborted, "one at a time")

	web := p.release(text("web", 80, ""), "v1")
	for _, env := range []string{"dev", "prod"} {
		_, err := plan(env, web)
		wantCode(t, err, connect.CodeFailedPrecondition, "public port 80 (tcp) is held by app api in environment dev")
		wantCode(t, deploy(env, web, ""), connect.CodeFailedPrecondition, "held by app api in environment dev")
	}
	release()
	p.eventually("the deployment ends", func() bool {
		out, err := p.client.GetStatus(t.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev", App: "api"}))
		return err == nil && out.Msg.GetApps()[0].GetActive() == nil && out.Msg.GetApps()[0].GetReady() == 1
	})
	wantCode(t, deploy("dev", other, first.GetToken()), connect.CodeAborted, "is stale")
	if unchanged, err := plan("dev", api); err != nil || unchanged.GetChanges() || unchanged.GetLiveRelease() != api {
		t.Errorf("got %v, %v", unchanged, err)
	}
	_, err = p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "api", Deployment: "dep-0"}))
	wantCode(t, err, connect.CodeNotFound, "dep-0")
	_, err = p.client.Rollback(t.Context(), connect.NewRequest(&pb.RollbackRequest{Environment: "dev", App: "web"}))
	wantCode(t, err, connect.CodeNotFound, "never deployed")
	_, err = p.client.GetInstance(t.Context(), connect.NewRequest(&pb.GetInstanceRequest{Environment: "dev", Instance: "api/7"}))
	wantCode(t, err, connect.CodeNotFound, "has no instance 7")
}

func second[A any](_ A, err error) error { return err }

func TestIdempotencyKeys(t *testing.T) {
	p := newPlane(t)
	for range 2 {
		if _, err := p.client.CreateEnvironment(t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: "dev", IdempotencyKey: "k"})); err != nil {
			t.Fatal(err)
		}
	}
	p.agent("h1")
	one := p.release(text("api", 80, ""), "v1")
	var ids []string
	for range 2 {
		out, err := p.client.Deploy(t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: one, IdempotencyKey: "k2"}))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, out.Msg.GetDeployment().GetId())
	}
	if ids[0] != ids[1] {
		t.Errorf("the same request made %v", ids)
	}
	p.watch(ids[0])
}

// failingEngine refuses to store once it is told to.
type failingEngine struct {
	eventlog.Engine
	fail chan struct{}
}

func (e *failingEngine) Commit(ctx context.Context, events []eventlog.Event) error {
	select {
	case <-e.fail:
		return errors.Join(eventlog.ErrBroken, errors.New("fsync: input/output error"))
	default:
		return e.Engine.Commit(ctx, events)
	}
}

func TestServerStopsWhenItsLogFails(t *testing.T) {
	engine := &failingEngine{Engine: memory.New(), fail: make(chan struct{})}
	p := newPlaneOn(t, func() eventlog.Engine { return engine })
	p.environment("dev")
	close(engine.fail)
	_, err := p.client.CreateEnvironment(t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: "prod"}))
	wantCode(t, err, connect.CodeUnavailable, "could not write its log")
	select {
	case err := <-p.ended:
		if !errors.Is(err, eventlog.ErrFailed) {
			t.Errorf("the loop ended with %v", err)
		}
		p.ended <- nil
	case <-time.After(patience):
		t.Fatal("the loop goes on")
	}
}
