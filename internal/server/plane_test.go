package server

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

const (
	adminToken = "admin-token-of-the-tests"
	// patience bounds every wait of the tests.
	patience = 20 * time.Second
)

// plane is a control plane behind two real HTTP servers, which outlive it as addresses outlive a process.
type plane struct {
	t      *testing.T
	engine func() eventlog.Engine
	*Server
	client pinnacev1connect.ControlServiceClient

	api, agentAPI         *httptest.Server
	apiTo, agentTo        atomic.Pointer[http.Handler]
	cancel                context.CancelFunc
	ended                 chan error
	hostTimeout           time.Duration
	change                func(*Options) // of each boot; may be nil
	agentSide, clientSide *http.Client
}

func newPlane(t *testing.T) *plane {
	store := memory.NewStore(eventlog.LogID{})
	return newPlaneOn(t, func() eventlog.Engine { return store.Engine() })
}

func newPlaneOn(t *testing.T, engine func() eventlog.Engine) *plane {
	p := &plane{t: t, engine: engine, hostTimeout: 5 * time.Second}
	p.listen()
	return p
}

// listen takes addresses and boots.
func (p *plane) listen() {
	p.t.Helper()
	p.api, p.agentAPI = listen(p.t, &p.apiTo), listen(p.t, &p.agentTo, provenHost)
	p.clientSide, p.agentSide = httpClient(adminToken), httpClient("")
	p.client = pinnacev1connect.NewControlServiceClient(p.clientSide, p.api.URL)
	p.boot()
	p.t.Cleanup(p.kill)
}

func listen(t *testing.T, to *atomic.Pointer[http.Handler], before ...func(*http.Request)) *httptest.Server {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, change := range before {
			change(r)
		}
		h := to.Load()
		if h == nil {
			http.Error(w, "the server is down", http.StatusServiceUnavailable)
			return
		}
		(*h).ServeHTTP(w, r)
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Config.HTTP2 = AgentHTTP2()
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

type withToken struct {
	token string
	next  http.RoundTripper
}

func (w withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+w.token)
	return w.next.RoundTrip(r)
}

// CloseIdleConnections makes http.Client's method of the same name work.
func (w withToken) CloseIdleConnections() {
	if c, ok := w.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

func httpClient(token string) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: withToken{token, transport}}
}

// boot starts a server on what is stored.
func (p *plane) boot() {
	p.t.Helper()
	s, err := New(p.t.Context(), p.options())
	if err != nil {
		p.t.Fatal(err)
	}
	p.Server, p.ended = s, make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.ended <- s.Run(ctx) }()
	api, agentAPI := s.Handler(), s.AgentHandler()
	p.apiTo.Store(&api)
	p.agentTo.Store(&agentAPI)
}

func (p *plane) options() Options {
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("PINNACE_TEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	opts := Options{
		Engine: p.engine(), Logger: logger, AdminToken: adminToken, Authority: testAuthority(), Version: "test", HostTimeout: p.hostTimeout,
	}
	if p.change != nil {
		p.change(&opts)
	}
	return opts
}

// kill ends the server with everything that it has in memory. Connections break.
func (p *plane) kill() {
	if p.cancel == nil {
		return
	}
	p.apiTo.Store(nil)
	p.agentTo.Store(nil)
	p.cancel()
	if err := <-p.ended; err != nil {
		p.t.Errorf("the loop ended: %v", err)
	}
	for _, srv := range []*httptest.Server{p.api, p.agentAPI} {
		srv.CloseClientConnections()
	}
	// The clients may not have noticed yet.
	p.clientSide.CloseIdleConnections()
	p.agentSide.CloseIdleConnections()
	if err := p.Close(); err != nil {
		p.t.Errorf("close: %v", err)
	}
	p.cancel = nil
}

// eventually waits until what holds, looking again whenever something changes.
func (p *plane) eventually(what string, holds func() bool) {
	p.t.Helper()
	late := time.After(patience)
	for {
		changed := p.changed.next()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-late:
			p.t.Fatalf("waited %s for: %s", patience, what)
		}
	}
}

func (p *plane) environment(name string) {
	p.t.Helper()
	_, err := p.client.CreateEnvironment(p.t.Context(), connect.NewRequest(&pb.CreateEnvironmentRequest{Name: name}))
	if err != nil {
		p.t.Fatal(err)
	}
}

// text makes a manifest; more is appended to it.
func text(name string, port int, more string) string {
	return fmt.Sprintf(`schema = "v1"
name = %q
resources = { memory = "128MiB", disk = "64MiB" }
ports.web = { port = 8080, expose = "public", edge = "raw", public_port = %d }
stop = { drain = "0s" }
rollout.hold = "0s"
%s
`, name, port, more)
}

// request makes the request for a release. fate tells the fake agent how its instances do; it is in the image
// only, as a bug would be.
func request(t *testing.T, source, fate string) *pb.CreateReleaseRequest {
	t.Helper()
	m, problems := manifest.Parse([]byte(source))
	if m == nil {
		t.Fatal(problems.Err())
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "fate": fate, "rootfs": map[string]any{"diff_ids": []string{}}})
	if err != nil {
		t.Fatal(err)
	}
	image, err := json.Marshal(map[string]any{"config": map[string]any{"digest": digestOf(config), "size": len(config)}, "layers": []any{}})
	if err != nil {
		t.Fatal(err)
	}
	return &pb.CreateReleaseRequest{
		Manifest: []byte(source), ManifestHash: string(m.Hash()), Image: digestOf(image), Sources: []string{"127.0.0.1:5000/" + m.Name},
		Platforms: []*pb.ReleasePlatform{{Architecture: "amd64", ManifestDigest: digestOf(image), ImageManifest: image, ImageConfig: config}},
	}
}

func (p *plane) release(source, fate string) string {
	p.t.Helper()
	out, err := p.client.CreateRelease(p.t.Context(), connect.NewRequest(request(p.t, source, fate)))
	if err != nil {
		p.t.Fatal(err)
	}
	return out.Msg.GetRelease().GetId()
}

func (p *plane) deploy(env, rel string) *pb.Deployment {
	p.t.Helper()
	out, err := p.client.Deploy(p.t.Context(), connect.NewRequest(&pb.DeployRequest{Environment: env, Release: rel}))
	if err != nil {
		p.t.Fatal(err)
	}
	return out.Msg.GetDeployment()
}

// watch reads all transitions of a deployment until it has ended, and returns them with what it ended as.
func (p *plane) watch(id string) (string, *pb.Deployment, []*pb.WatchDeploymentResponse) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	stream, err := p.client.WatchDeployment(ctx, connect.NewRequest(&pb.WatchDeploymentRequest{Deployment: id}))
	if err != nil {
		p.t.Fatal(err)
	}
	var (
		story strings.Builder
		last  *pb.Deployment
		all   []*pb.WatchDeploymentResponse
	)
	for stream.Receive() {
		m := stream.Msg()
		fmt.Fprintln(&story, m.GetText())
		last = m.GetDeployment()
		all = append(all, m)
	}
	if err := stream.Err(); err != nil {
		p.t.Fatalf("watch %s: %v\n%s", id, err, story.String())
	}
	return story.String(), last, all
}

func (p *plane) instances(env string, all bool) []*pb.Instance {
	p.t.Helper()
	out, err := p.client.ListInstances(p.t.Context(), connect.NewRequest(&pb.ListInstancesRequest{Environment: env, All: all}))
	if err != nil {
		p.t.Fatal(err)
	}
	return out.Msg.GetInstances()
}

// pulls waits until an instance is at work.
func (p *plane) pulls(env string) {
	p.t.Helper()
	p.eventually("an instance pulls", func() bool {
		for _, i := range p.instances(env, false) {
			if i.GetState() == "pulling" {
				return true
			}
		}
		return false
	})
}

// serves checks that exactly one instance runs, ready, and that it is of the release.
func (p *plane) serves(env, rel string) *pb.Instance {
	p.t.Helper()
	running := p.instances(env, false)
	if len(running) != 1 || running[0].GetRelease() != rel || running[0].GetState() != stateReady {
		p.t.Fatalf("got %v, want one ready instance of %s", running, release.ID(rel).Short())
	}
	return running[0]
}

func wantCode(t *testing.T, err error, code connect.Code, part string) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("got %v, want %s with %q", err, code, part)
	}
}
