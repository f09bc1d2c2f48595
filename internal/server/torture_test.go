package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/failpoint"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// What makes the test binary a server that is to be killed: a directory, the database when it is not SQLite, its two
// addresses, and the failpoint that kills it.
const (
	doomedDir      = "PINNACE_TEST_DOOMED_DIR"
	doomedDatabase = "PINNACE_TEST_DOOMED_DATABASE"
	doomedListen   = "PINNACE_TEST_DOOMED_LISTEN"
	doomedPoint    = "PINNACE_TEST_DOOMED_POINT"
)

// TestKillServer kills a server with all that belongs to it, at failpoints and at any moment, while clients deploy and
// change settings and hosts report. Then test/logcheck holds the log against what the clients were told, and every app
// must be all of one release. PINNACE_SERVER_KILLS says how many times, of each engine.
func TestKillServer(t *testing.T) {
	if os.Getenv(doomedDir) != "" {
		serveDoomed(t)
		return
	}
	kills, err := strconv.Atoi(os.Getenv("PINNACE_SERVER_KILLS"))
	if err != nil {
		t.Skip("kills servers for minutes; run with make torture")
	}
	t.Cleanup(eventlogtest.CleanUp) // so it runs once in a process
	t.Run("SQLite", func(t *testing.T) { killServer(t, kills, "", "sqlite.", "eventlog.") })
	t.Run("PostgreSQL", func(t *testing.T) {
		killServer(t, kills, pgtest.Start(t).NewDatabase(t, "doomed"), "postgres.commit.", "postgres.lead.", "postgres.checkpoint.", "eventlog.")
	})
}

// doomedEngine has a lease that runs out soon, because a killed process can't give it back.
func doomedEngine(dir, database string) eventlog.Engine {
	if database != "" {
		return postgres.New(postgres.Options{URL: database, TTL: 300 * time.Millisecond})
	}
	return sqlite.New(sqlite.Options{Dir: filepath.Join(dir, "log")})
}

func serveDoomed(t *testing.T) {
	dir := os.Getenv(doomedDir)
	if point := os.Getenv(doomedPoint); point != "" {
		if err := failpoint.Arm(point); err != nil {
			t.Fatal(err)
		}
	}
	authority, err := identity.EnsureAuthority(filepath.Join(dir, "keys"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Options{
		Engine: doomedEngine(dir, os.Getenv(doomedDatabase)), Follow: true, Logger: slog.New(slog.DiscardHandler), AdminToken: adminToken,
		Authority: authority, LogKey: eventlogtest.Key, DerivedDir: filepath.Join(dir, "derived"), HostTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	api, agents := s.Handler(), s.AgentHandler()
	proven := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		provenHost(r)
		agents.ServeHTTP(w, r)
	})
	addresses := strings.Fields(os.Getenv(doomedListen))
	var servers []*http.Server
	for i, h := range []http.Handler{api, proven} {
		l, err := net.Listen("tcp", addresses[i])
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		servers = append(servers, srv)
		go func() { _ = srv.Serve(l) }() // until it is closed below
	}
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	for _, srv := range servers {
		_ = srv.Close()
	}
	cancel()
	if err := errors.Join(<-ended, s.Close()); err != nil {
		t.Error(err)
	}
}

// doomed is a server that is started again and again, and those who speak to it.
type doomed struct {
	*testing.T
	dir, database string
	listen        [2]string
	client        pinnacev1connect.ControlServiceClient
}

// start starts the server, and stop has it end in order.
func (d *doomed) start(point string) (cmd *exec.Cmd, stop func()) {
	d.Helper()
	cmd = exec.CommandContext(context.WithoutCancel(d.Context()), os.Args[0], "-test.run=TestKillServer$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), doomedDir+"="+d.dir, doomedDatabase+"="+d.database, doomedPoint+"="+point, doomedListen+"="+d.listen[0]+" "+d.listen[1])
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, unless the test has failed
	return cmd, func() { in.Close() }
}

func killServer(t *testing.T, kills int, database string, points ...string) {
	d := &doomed{T: t, dir: t.TempDir(), database: database}
	for i := range d.listen {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d.listen[i] = l.Addr().String()
		l.Close()
	}
	d.client = pinnacev1connect.NewControlServiceClient(httpClient(adminToken), "http://"+d.listen[0])
	first, stop := d.start("")
	d.prepare()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for n := range 3 {
		a := &loadAgent{id: fmt.Sprint("host-", n), running: map[string]bool{}, again: 50 * time.Millisecond}
		a.client = (&load{T: t, agentURL: "http://" + d.listen[1], client: d.client}).admit(a.id)
		wg.Go(func() { a.run(ctx) })
	}
	asking, enough := context.WithCancel(ctx)
	var askers sync.WaitGroup
	for n := range 4 {
		askers.Go(func() { d.change(asking, n) })
	}
	for app := range 2 {
		askers.Go(func() { d.rollOut(asking, fmt.Sprint("app-", app)) })
	}
	names := slices.DeleteFunc(failpoint.Names(), func(name string) bool {
		return strings.HasPrefix(name, "eventlog.fill.") || !slices.ContainsFunc(points, func(p string) bool { return strings.HasPrefix(name, p) })
	})
	hit := map[string]bool{}
	cmd := first
	for n := range kills {
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		after := time.Duration(20+rand.IntN(600)) * time.Millisecond
		point := ""
		if env := cmd.Env[len(cmd.Env)-2]; n > 0 && n%2 == 0 {
			_, point, _ = strings.Cut(env, "=")
			after = 10 * time.Second
		}
		select {
		case err := <-ended:
			exit, ok := errors.AsType[*exec.ExitError](err)
			if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the server ended by itself: %v", err)
			}
			name, _, _ := strings.Cut(point, "=")
			hit[name] = true
		case <-time.After(after):
			_ = cmd.Process.Kill()
			<-ended
		}
		next := ""
		if n%2 == 1 { // every second one is killed where it comes by
			next = fmt.Sprintf("%s=%d", names[(n/2)%len(names)], 1+rand.IntN(20))
		}
		if n == kills-1 {
			next = ""
		}
		cmd, stop = d.start(next)
	}
	d.await("a deployment has succeeded", func(all []*pb.Deployment) bool {
		return slices.ContainsFunc(all, func(x *pb.Deployment) bool { return x.GetState() == "succeeded" })
	})
	enough()
	askers.Wait()
	d.judgeRollouts(d.await("no deployment is under way", func(all []*pb.Deployment) bool {
		return !slices.ContainsFunc(all, func(x *pb.Deployment) bool { return x.GetEndedAt() == nil })
	}))
	stop()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the last server: %v", err)
	}
	t.Logf("%d kills, %d of them at failpoints", kills, len(hit))
	d.judge()
}

// keepTrying calls until it is answered, or until done.
func keepTrying[T any](ctx context.Context, call func() (T, error)) (out T, err error) {
	for {
		out, err = call()
		switch connect.CodeOf(err) {
		case connect.CodeUnavailable, connect.CodeCanceled, connect.CodeUnknown, connect.CodeDeadlineExceeded:
			if err == nil {
				return out, nil
			}
		default:
			return out, err
		}
		select {
		case <-ctx.Done():
			return out, err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// prepare makes what the clients work with.
func (d *doomed) prepare() {
	d.Helper()
	limited, cancel := context.WithTimeout(d.Context(), patience)
	defer cancel()
	for { // the first server of all makes the token known when it leads
		_, err := d.client.GetServerInfo(limited, connect.NewRequest(&pb.GetServerInfoRequest{}))
		if err == nil {
			break
		}
		if limited.Err() != nil {
			d.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, env := range []string{"dev", "settings"} {
		_, err := keepTrying(limited, func() (any, error) {
			return d.client.CreateEnvironment(limited, connect.NewRequest(&pb.CreateEnvironmentRequest{Name: env, IdempotencyKey: "make-" + env}))
		})
		if err != nil {
			d.Fatal(err)
		}
	}
}

// change sets a variable again and again, and writes a history of that.
func (d *doomed) change(ctx context.Context, client int) {
	f, err := os.Create(filepath.Join(d.dir, fmt.Sprintf("%d.history", client)))
	if err != nil {
		d.Error(err)
		return
	}
	defer f.Close()
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("c%d-%d", client, n)
		fmt.Fprintf(f, "{\"call\":\"vars/%s\",\"events\":1}\n", key)
		_, err := keepTrying(ctx, func() (any, error) {
			return d.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{
				Environment: "settings", Set: map[string]string{fmt.Sprint("V", client): fmt.Sprint(n)}, IdempotencyKey: key,
			}))
		})
		result := "done"
		if err != nil {
			result = "unknown"
			if ctx.Err() == nil {
				d.Errorf("set a variable: %v", err)
			}
		}
		fmt.Fprintf(f, "{\"end\":\"vars/%s\",\"result\":%q}\n", key, result)
	}
}

// rollOut deploys one release of an app after the other, each to the end.
func (d *doomed) rollOut(ctx context.Context, app string) {
	var releases []string
	for _, fate := range []string{"one", "two"} {
		req := request(d.T, text(app, 8000+int(app[len(app)-1]), ""), fate)
		res, err := keepTrying(ctx, func() (*connect.Response[pb.CreateReleaseResponse], error) {
			return d.client.CreateRelease(ctx, connect.NewRequest(req))
		})
		if err != nil {
			if ctx.Err() == nil {
				d.Errorf("create a release: %v", err)
			}
			return
		}
		releases = append(releases, res.Msg.GetRelease().GetId())
	}
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprint(app, "-", n)
		_, err := keepTrying(ctx, func() (any, error) {
			return d.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: releases[n%2], IdempotencyKey: key}))
		})
		if code := connect.CodeOf(err); err != nil && code != connect.CodeAborted && code != connect.CodeFailedPrecondition && ctx.Err() == nil {
			d.Errorf("deploy: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// await waits until the deployments are as they are to be, and gives them.
func (d *doomed) await(what string, holds func([]*pb.Deployment) bool) []*pb.Deployment {
	d.Helper()
	limited, cancel := context.WithTimeout(d.Context(), 2*time.Minute)
	defer cancel()
	for {
		res, err := keepTrying(limited, func() (*connect.Response[pb.ListDeploymentsResponse], error) {
			return d.client.ListDeployments(limited, connect.NewRequest(&pb.ListDeploymentsRequest{Environment: "dev"}))
		})
		if err != nil {
			d.Fatalf("waited until %s: %v", what, err)
		}
		if holds(res.Msg.GetDeployments()) {
			return res.Msg.GetDeployments()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// judgeRollouts: each has ended in a state that has a name, and what runs of an app is of one release unless the last
// one ended mixed.
func (d *doomed) judgeRollouts(all []*pb.Deployment) {
	d.Helper()
	ctx := d.Context()
	ends := map[string]int{}
	for _, x := range all {
		ends[x.GetState()]++
		if !slices.Contains([]string{"succeeded", "rolled-back", "failed", "mixed"}, x.GetState()) {
			d.Errorf("deployment %s ended %q", x.GetId(), x.GetState())
		}
	}
	status, err := d.client.GetStatus(ctx, connect.NewRequest(&pb.GetStatusRequest{Environment: "dev"}))
	if err != nil {
		d.Fatal(err)
	}
	if len(status.Msg.GetApps()) == 0 || ends["succeeded"] == 0 {
		d.Errorf("nothing was ever deployed: %v", ends)
	}
	for _, app := range status.Msg.GetApps() {
		running, err := d.client.ListInstances(ctx, connect.NewRequest(&pb.ListInstancesRequest{Environment: "dev", App: app.GetApp()}))
		if err != nil {
			d.Fatal(err)
		}
		for _, i := range running.Msg.GetInstances() {
			if i.GetRelease() != app.GetLive().GetRelease() && app.GetLatest().GetState() != "mixed" {
				d.Errorf("%s: %s is of %s, live is %s, and the last deployment ended %q", app.GetApp(), i.GetId(), i.GetRelease(), app.GetLive().GetRelease(), app.GetLatest().GetState())
			}
		}
		if n := len(running.Msg.GetInstances()); n != int(app.GetCount()) && app.GetLatest().GetState() != "mixed" {
			d.Errorf("%s: %d instances, want %d", app.GetApp(), n, app.GetCount())
		}
	}
	d.Logf("the last deployments ended %v", ends)
}

// judge has the independent checker look at the log and the histories.
func (d *doomed) judge() {
	d.Helper()
	l, err := eventlog.Open(d.Context(), doomedEngine(d.dir, d.database), eventlog.Options{Key: eventlogtest.Key, Follow: true})
	if err != nil {
		d.Fatal(err)
	}
	defer l.Close()
	select {
	case <-l.Leads():
	case <-time.After(patience):
		d.Fatal("nobody leads")
	}
	eventlogtest.CheckHistories(d.T, l, d.dir, "-others")
}
