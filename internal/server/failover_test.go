package server

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
)

// oneOf sends calls to one of several servers, and goes on to the next one when that does not answer or does not lead:
// what a client does that knows several addresses.
type oneOf struct {
	next  http.RoundTripper
	hosts []string
	now   atomic.Int64
}

func (o *oneOf) RoundTrip(r *http.Request) (*http.Response, error) {
	at := o.now.Load()
	here := r.Clone(r.Context())
	here.URL.Host, here.Host = o.hosts[int(at)%len(o.hosts)], ""
	res, err := o.next.RoundTrip(here)
	if r.Context().Err() == nil && (err != nil || res.StatusCode == http.StatusServiceUnavailable) {
		o.now.CompareAndSwap(at, at+1)
	}
	return res, err
}

// CloseIdleConnections makes http.Client's method of the same name work.
func (o *oneOf) CloseIdleConnections() {
	if c, ok := o.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// TestFailOver has two servers on one PostgreSQL, and kills the one that leads, again and again. The other one takes the
// lease and goes on where the log is; hosts and clients find it by themselves, deployments that were under way end, what
// runs is not started again, and nothing that was acknowledged is lost.
func TestFailOver(t *testing.T) {
	kills := min(campaignSize(t, 4), 100) // each waits for a lease to run out
	t.Cleanup(eventlogtest.CleanUp)
	first := newDoomed(t, pgtest.Start(t).NewDatabase(t, "failover"))
	second := newDoomed(t, first.database)
	second.keys = first.dir // servers of one database have the same keys and secrets
	pair := [2]*doomed{first, second}
	for _, d := range pair {
		// A leader that gets no CPU for as long is replaced, and ends: that is right, and not what this is about.
		d.ttl = 3 * time.Second
	}
	apis, agents := &oneOf{next: httpClient(adminToken).Transport}, &oneOf{next: httpClient("").Transport}
	for _, d := range pair {
		apis.hosts, agents.hosts = append(apis.hosts, d.listen[0]), append(agents.hosts, d.listen[1])
	}
	first.client = pinnacev1connect.NewControlServiceClient(&http.Client{Transport: apis}, "http://any")
	first.start("")
	first.awaitLead()
	second.start("")
	first.prepare()

	ctx, cancel := context.WithCancel(t.Context())
	var hosts, clients sync.WaitGroup
	defer hosts.Wait()
	defer cancel()
	for n := range 3 {
		a := &loadAgent{id: fmt.Sprint("host-", n), running: map[string]bool{}, again: 20 * time.Millisecond}
		certificate := admittedPlainly(t, first.client, "http://"+first.listen[1], a.id)
		a.client = pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: withCertificate{certificate, agents}}, "http://any")
		hosts.Go(func() { a.run(ctx) })
	}
	still := first.deployOnce(ctx, "still", 3)
	asking, enough := context.WithCancel(ctx)
	defer clients.Wait()
	defer enough()
	for n := range 2 {
		clients.Go(func() { first.change(asking, n) })
	}
	clients.Go(func() { first.rollOut(asking, "app-0", "") })

	for n := range kills {
		leader, follower := pair[n%2], pair[(n+1)%2]
		first.awaitChanges(20)
		leader.kill()
		follower.awaitLead()
		leader.start("") // and follows
	}
	first.awaitEnds("a deployment has succeeded", succeeded)
	enough()
	clients.Wait()
	first.judgeRollouts(first.awaitEnds("no deployment is under way", allEnded))
	if now := first.runningOf(t, "still"); !maps.Equal(now, still) {
		t.Errorf("what nobody touched was %v and is %v", still, now)
	}
	cancel()
	hosts.Wait()
	for _, d := range pair {
		d.stop()
	}
	first.judge()
	t.Logf("the leader was killed %d times", kills)
}

// deployOnce has an app run, and gives its instances.
func (d *doomed) deployOnce(ctx context.Context, app string, count int) map[string]uint32 {
	d.Helper()
	limited, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	req := request(d.T, text(app, 7000, ""), "still")
	out, err := keepTrying(limited, func() (*connect.Response[pb.CreateReleaseResponse], error) {
		return d.client.CreateRelease(limited, connect.NewRequest(req))
	})
	if err == nil {
		_, err = keepTrying(limited, func() (any, error) {
			return d.client.Deploy(limited, connect.NewRequest(&pb.DeployRequest{Environment: "dev", Release: out.Msg.GetRelease().GetId(), IdempotencyKey: "once"}))
		})
	}
	if err != nil {
		d.Fatal(err)
	}
	d.awaitEnds("it runs", allEnded)
	_, err = keepTrying(limited, func() (any, error) {
		return d.client.Scale(limited, connect.NewRequest(&pb.ScaleRequest{Environment: "dev", App: app, Count: uint32(count), IdempotencyKey: "scale-once"}))
	})
	if err != nil {
		d.Fatal(err)
	}
	d.awaitEnds("all of them run", allEnded)
	running := d.runningOf(d.T, app)
	if len(running) != count {
		d.Fatalf("%v run, want %d", slices.Sorted(maps.Keys(running)), count)
	}
	return running
}

// runningOf gives the attempts of an app's instances.
func (d *doomed) runningOf(t *testing.T, app string) map[string]uint32 {
	t.Helper()
	out, err := d.client.ListInstances(t.Context(), connect.NewRequest(&pb.ListInstancesRequest{Environment: "dev", App: app}))
	if err != nil {
		t.Fatal(err)
	}
	running := map[string]uint32{}
	for _, i := range out.Msg.GetInstances() {
		running[i.GetId()] = i.GetAttempt()
	}
	return running
}
