package server

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// outWithin is the time in which whoever was put out is out everywhere.
const outWithin = 60 * time.Second

// TestIdentityOnAFollower: of two servers on one database, the one that follows lets in whom the other one has let in, puts
// out whom that has put out, admits no host itself, and does once it leads.
func TestIdentityOnAFollower(t *testing.T) {
	url := pgtest.Start(t).NewDatabase(t, "identity")
	start := func() *plane {
		p := &plane{
			t: t, hostTimeout: 5 * time.Second, engine: func() eventlog.Engine { return postgres.New(postgres.Options{URL: url}) },
			change: func(o *Options) { o.Follow, o.TokenUses = true, openUses(t, url) },
		}
		p.listen()
		return p
	}
	first := start()
	first.eventually("the first server leads, and has let its administrator in", func() bool {
		_, err := first.client.ListTokens(t.Context(), connect.NewRequest(&pb.ListTokensRequest{}))
		return first.leads() && err == nil
	})
	second := start()
	if second.leads() {
		t.Fatal("both lead")
	}

	// A token that was made there is good here, and its use here is told there.
	ada := second.clientAs(first.someone("ada", fleet.Viewer))
	list := func() error {
		_, err := ada.ListEnvironments(t.Context(), connect.NewRequest(&pb.ListEnvironmentsRequest{}))
		return err
	}
	second.eventually("the follower knows the token", func() bool { return list() == nil })
	for _, p := range []*plane{second, first} {
		if err := p.saveUses(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if at := lastUse(t, first, "ada"); time.Since(at) > time.Hour {
		t.Errorf("by the other server, it was used at %s", at)
	}

	// A host is admitted by the one that leads alone; its join token is good for that after the other one has refused.
	join := first.joinToken("h1")
	_, err := second.admit(join, "h1", testRequest())
	wantCode(t, err, connect.CodeUnavailable, "follows another one")
	cert, err := first.admit(join, "h1", testRequest())
	if err != nil {
		t.Fatal(err)
	}
	if err := joinAs(first.clientWith(cert), "h1"); err != nil {
		t.Fatal(err)
	}
	host := second.clientWith(cert)
	renew := func() error {
		_, err := host.Renew(t.Context(), connect.NewRequest(&pb.RenewRequest{Request: testRequest()}))
		return err
	}
	second.eventually("the follower knows the host", func() bool { return renew() == nil })
	wantCode(t, joinAs(host, "h1"), connect.CodeUnavailable, "follows another one")

	// Put out there is out here, with what goes on.
	ctx, cancel := context.WithTimeout(t.Context(), outWithin)
	defer cancel()
	stream, err := ada.ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{Follow: true}))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	if _, err := first.client.RevokeToken(t.Context(), connect.NewRequest(&pb.RevokeTokenRequest{Token: "ada"})); err != nil {
		t.Fatal(err)
	}
	if _, err := first.client.RevokeHost(t.Context(), connect.NewRequest(&pb.RevokeHostRequest{Host: "h1"})); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	wantCode(t, stream.Err(), connect.CodeUnauthenticated, "revoked")
	for what, call := range map[string]func() error{"the token": list, "the host": renew} {
		second.eventually(what+" is out", func() bool { return connect.CodeOf(call()) == connect.CodeUnauthenticated })
	}

	// And stays out when the other one leads, where a join token is still good once.
	again := first.joinToken("h1")
	first.kill()
	second.eventually("the follower leads", second.leads)
	wantCode(t, list(), connect.CodeUnauthenticated, "revoked")
	wantCode(t, joinAs(host, "h1"), connect.CodeUnauthenticated, "revoked")
	_, err = second.admit(join, "h1", newRequest(t))
	wantCode(t, err, connect.CodeUnauthenticated, "join token")
	if cert, err = second.admit(again, "h1", testRequest()); err != nil {
		t.Fatal(err)
	}
	if err := joinAs(second.clientWith(cert), "h1"); err != nil {
		t.Errorf("admitted anew: %v", err)
	}
}

// awayEngine is one whose store cannot be reached.
type awayEngine struct {
	heldEngine
	away *atomic.Bool
}

func (e awayEngine) Head(ctx context.Context) (eventlog.Head, error) {
	if e.away.Load() {
		return eventlog.Head{}, context.DeadlineExceeded
	}
	return e.heldEngine.Head(ctx)
}

// TestFollowerThatHearsNothing: a server that follows and cannot reach the log knows nobody any more, until it does again.
func TestFollowerThatHearsNothing(t *testing.T) {
	store := memory.NewStore(eventlog.LogID{})
	var held, away atomic.Bool
	first := newPlaneOn(t, func() eventlog.Engine { return store.Engine() })
	cert := first.hostCertificate("h1")
	held.Store(true)
	second := &plane{
		t: t, hostTimeout: 5 * time.Second, engine: func() eventlog.Engine { return awayEngine{heldEngine{store.Engine(), &held}, &away} },
		change: func(o *Options) { o.Follow, o.StaleAfter = true, 2*time.Second },
	}
	second.listen()
	list := func(c pinnacev1connect.ControlServiceClient) error {
		_, err := c.ListEnvironments(t.Context(), connect.NewRequest(&pb.ListEnvironmentsRequest{}))
		return err
	}
	renew := func() error {
		_, err := second.clientWith(cert).Renew(t.Context(), connect.NewRequest(&pb.RenewRequest{Request: testRequest()}))
		return err
	}
	second.eventually("the follower lets people and hosts in", func() bool { return list(second.client) == nil && renew() == nil })
	ctx, cancel := context.WithTimeout(t.Context(), outWithin)
	defer cancel()
	stream, err := second.client.ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{Follow: true}))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}

	away.Store(true)
	for stream.Receive() {
	}
	wantCode(t, stream.Err(), connect.CodeUnavailable, "has not reached the event log")
	wantCode(t, list(second.client), connect.CodeUnavailable, "ask another server")
	wantCode(t, renew(), connect.CodeUnavailable, "ask another server")
	if err := list(first.client); err != nil {
		t.Errorf("the one that leads: %v", err)
	}
	away.Store(false)
	second.eventually("the follower lets them in again", func() bool { return list(second.client) == nil && renew() == nil })
}
