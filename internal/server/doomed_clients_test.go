package server

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
)

// keepTrying calls until it is answered, or until done. An error that no server has sent is no answer, also when the kill
// came behind the headers of one: the status is there then, and not what it is about.
func keepTrying[T any](ctx context.Context, call func() (T, error)) (out T, err error) {
	for {
		out, err = call()
		if err == nil || connect.IsWireError(err) && connect.CodeOf(err) != connect.CodeUnavailable {
			return out, err
		}
		select {
		case <-ctx.Done():
			return out, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// prepare makes what the clients work with.
func (d *doomed) prepare() {
	d.Helper()
	limited, cancel := context.WithTimeout(d.Context(), killPatience)
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
		if err := d.makeEnvironment(limited, env); err != nil {
			d.Fatal(err)
		}
	}
}

func (d *doomed) makeEnvironment(ctx context.Context, name string) error {
	_, err := keepTrying(ctx, func() (any, error) {
		return d.client.CreateEnvironment(ctx, connect.NewRequest(&pb.CreateEnvironmentRequest{Name: name, IdempotencyKey: "make-" + name}))
	})
	return err
}

// ask starts the clients, which go on until ctx ends.
func (d *doomed) ask(ctx context.Context, clients *sync.WaitGroup) {
	for n := range 4 {
		clients.Go(func() { d.change(ctx, n) })
	}
	clients.Go(func() { d.rollOut(ctx, "app-0", "") })
	clients.Go(func() { d.rollOut(ctx, "app-1", `rollout.strategy = "blue-green"`) })
	clients.Go(func() { d.administer(ctx) })
}

// change sets a variable again and again, and writes a history of that.
func (d *doomed) change(ctx context.Context, client int) {
	f, err := os.Create(filepath.Join(d.dir, fmt.Sprintf("%d.history", client)))
	if err != nil {
		d.Error(err)
		return
	}
	defer f.Close()
	padding := ""
	if client == 0 { // so that the write-ahead log is copied back now and then
		padding = strings.Repeat("x", 16<<10)
	}
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprintf("c%d-%d", client, n)
		fmt.Fprintf(f, "{\"call\":\"vars/%s\",\"events\":1}\n", key)
		_, err := keepTrying(ctx, func() (any, error) {
			return d.client.SetVars(ctx, connect.NewRequest(&pb.SetVarsRequest{
				Environment: "settings", Set: map[string]string{fmt.Sprint("V", client): fmt.Sprint(n, padding)}, IdempotencyKey: key,
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
		d.acknowledged.Add(1)
	}
}

// rollOut deploys one release of an app after the other, and now and then turns one back, or changes the count.
func (d *doomed) rollOut(ctx context.Context, app, more string) {
	must := func(what string, err error, but ...connect.Code) {
		if err != nil && ctx.Err() == nil && !slices.Contains(but, connect.CodeOf(err)) {
			d.Errorf("%s of %s: %v", what, app, err)
		}
	}
	var releases []string
	for _, fate := range []string{"one", "two"} {
		req := request(d.T, text(app, 8000+int(app[len(app)-1]), more), fate)
		res, err := keepTrying(ctx, func() (*connect.Response[pb.CreateReleaseResponse], error) {
			return d.client.CreateRelease(ctx, connect.NewRequest(req))
		})
		if err != nil {
			must("a release", err)
			return
		}
		releases = append(releases, res.Msg.GetRelease().GetId())
	}
	for n := 0; ctx.Err() == nil; n++ {
		key := fmt.Sprint(app, "-", n)
		_, err := keepTrying(ctx, func() (any, error) {
			if n%8 == 3 {
				return d.client.Scale(ctx, connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: app, Count: uint32(1 + n/8%3), IdempotencyKey: key}))
			}
			return d.client.Deploy(ctx, connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: releases[n%2], IdempotencyKey: key}))
		})
		must("a deployment", err, connect.CodeAborted, connect.CodeFailedPrecondition, connect.CodeNotFound, connect.CodeInvalidArgument)
		if n%4 == 2 {
			_, err := keepTrying(ctx, func() (any, error) {
				return d.client.Steer(ctx, connect.NewRequest(&pb.SteerRequest{Environment: "dev", App: app, Steering: pb.Steering_STEERING_ABORT, IdempotencyKey: "abort-" + key}))
			})
			must("an abort", err, connect.CodeAborted, connect.CodeFailedPrecondition, connect.CodeNotFound)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// administer makes environments, releases and secrets, and lets hosts in and removes them.
func (d *doomed) administer(ctx context.Context) {
	must := func(what string, err error, but ...connect.Code) {
		if err != nil && ctx.Err() == nil && !slices.Contains(but, connect.CodeOf(err)) {
			d.Errorf("%s: %v", what, err)
		}
	}
	var left []string
	for n := 0; ctx.Err() == nil; n++ {
		must("an environment", d.makeEnvironment(ctx, fmt.Sprint("env-", n)))
		req := request(d.T, text("spare", 9000, ""), fmt.Sprint("spare-", n))
		_, err := keepTrying(ctx, func() (any, error) { return d.client.CreateRelease(ctx, connect.NewRequest(req)) })
		must("a release", err)
		_, err = keepTrying(ctx, func() (any, error) {
			return d.client.PutSecret(ctx, connect.NewRequest(&pb.PutSecretRequest{
				Environment: "settings", Bundle: fmt.Sprint("keys-", n/200), Set: map[string][]byte{"K": fmt.Append(nil, n)}, IdempotencyKey: fmt.Sprint("secret-", n),
			}))
		})
		must("a secret", err)
		id := fmt.Sprint("guest-", n)
		must("a host", d.letIn(ctx, id), connect.CodeUnauthenticated, connect.CodeNotFound)
		left = slices.DeleteFunc(append(left, id), func(id string) bool {
			_, err := keepTrying(ctx, func() (any, error) {
				return d.client.RemoveHost(ctx, connect.NewRequest(&pb.RemoveHostRequest{Host: id, IdempotencyKey: "remove-" + id}))
			})
			// It is connected until a server starts that has not heard of it.
			must("a host's end", err, connect.CodeFailedPrecondition, connect.CodeNotFound)
			return err == nil || connect.CodeOf(err) == connect.CodeNotFound
		})
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// letIn has a host join that has no room for anything, and never reports.
func (d *doomed) letIn(ctx context.Context, id string) error {
	token, err := keepTrying(ctx, func() (*connect.Response[pb.CreateJoinTokenResponse], error) {
		return d.client.CreateJoinToken(ctx, connect.NewRequest(&pb.CreateJoinTokenRequest{Host: id}))
	})
	if err != nil {
		return err
	}
	own := httpClient("")
	defer own.CloseIdleConnections()
	url := "http://" + d.listen[1]
	admitted, err := keepTrying(ctx, func() (*connect.Response[pb.AdmitResponse], error) {
		return pinnacev1connect.NewAgentServiceClient(own, url).Admit(ctx, connect.NewRequest(&pb.AdmitRequest{Token: token.Msg.GetSecret(), Host: id, Request: testRequest()}))
	})
	if err != nil {
		return err
	}
	client := pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: withCertificate{admitted.Msg.GetCertificate(), own.Transport}}, url)
	_, err = keepTrying(ctx, func() (any, error) {
		return client.Join(ctx, connect.NewRequest(&pb.JoinRequest{Host: &pb.HostFacts{
			Id: id, Name: id, Architecture: "amd64", MemoryBytes: 1, CpuMilli: 1, DiskBytes: 1, Driver: "none",
		}}))
	})
	return err
}

func succeeded(all []*pb.Deployment) bool {
	return slices.ContainsFunc(all, func(x *pb.Deployment) bool { return x.GetState() == "succeeded" })
}

func allEnded(all []*pb.Deployment) bool {
	return !slices.ContainsFunc(all, func(x *pb.Deployment) bool { return x.GetEndedAt() == nil })
}

// awaitEnds waits until the newest deployments are as they are to be, and gives them.
func (d *doomed) awaitEnds(what string, holds func([]*pb.Deployment) bool) []*pb.Deployment {
	d.Helper()
	limited, cancel := context.WithTimeout(d.Context(), killPatience)
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
	ends := map[string]int{}
	for _, x := range all {
		ends[x.GetState()]++
		if !slices.Contains([]string{"succeeded", "rolled-back", "failed", "mixed"}, x.GetState()) {
			d.Errorf("deployment %s ended %q", x.GetId(), x.GetState())
		}
	}
	apps := d.apps()
	if len(apps) == 0 || ends["succeeded"] == 0 {
		d.Errorf("nothing was ever deployed: %v", ends)
	}
	for name := range apps {
		// A deployment that has turned back does not wait for what it stops. A request whose client was gone may still have
		// begun another one.
		what := "?"
		var app *pb.AppStatus
		for end := time.Now().Add(killPatience); what != "" && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			app = d.apps()[name]
			what = d.wrong(app)
		}
		if what != "" {
			d.Errorf("%s is to run %d of %s, its last deployment ended %q, and there are%s", name, app.GetCount(), app.GetLive().GetRelease(), app.GetLatest().GetState(), what)
		}
	}
	d.Logf("the last deployments ended %v", ends)
}

// apps is what the server says of the apps, by name.
func (d *doomed) apps() map[string]*pb.AppStatus {
	d.Helper()
	status, err := d.client.GetStatus(d.Context(), connect.NewRequest(&pb.GetStatusRequest{Environment: "dev"}))
	if err != nil {
		d.Fatal(err)
	}
	apps := map[string]*pb.AppStatus{}
	for _, app := range status.Msg.GetApps() {
		apps[app.GetApp()] = app
	}
	return apps
}

// wrong tells what runs of an app when that is not what is to run.
func (d *doomed) wrong(app *pb.AppStatus) (what string) {
	d.Helper()
	if app.GetLatest().GetState() == "mixed" {
		return ""
	}
	want := int(app.GetCount())
	if app.GetLive() == nil {
		want = 0 // none has ever succeeded
	}
	running, err := d.client.ListInstances(d.Context(), connect.NewRequest(&pb.ListInstancesRequest{Environment: "dev", App: app.GetApp()}))
	if err != nil {
		d.Fatal(err)
	}
	right := len(running.Msg.GetInstances()) == want
	for _, i := range running.Msg.GetInstances() {
		right = right && i.GetRelease() == app.GetLive().GetRelease()
		what += fmt.Sprintf("\n%s ordinal %d of %s on %s, %s, by %s", i.GetId(), i.GetOrdinal(), i.GetRelease(), i.GetHost(), i.GetState(), i.GetDeployment())
	}
	if right {
		return ""
	}
	return what + "\nno more"
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
	case <-time.After(killPatience):
		d.Fatal("nobody leads")
	}
	eventlogtest.CheckHistories(d.T, l, d.dir, "-others")
}
