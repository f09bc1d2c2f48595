package server

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// clientAs calls with a token, on connections that others share.
func (p *plane) clientAs(token string) pinnacev1connect.ControlServiceClient {
	p.t.Helper()
	client := httpClient(token)
	p.t.Cleanup(client.CloseIdleConnections)
	return pinnacev1connect.NewControlServiceClient(client, p.api.URL)
}

// TestTokenIsMadeOnce: a request that is repeated gets the same secret, which nobody keeps.
func TestTokenIsMadeOnce(t *testing.T) {
	p := newPlane(t)
	secrets := make([]string, 8)
	var group sync.WaitGroup
	for i := range secrets {
		group.Go(func() {
			res, err := p.client.CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: "ci", Role: "viewer", AllEnvironments: true, IdempotencyKey: "k"}))
			if err != nil {
				t.Error(err)
				return
			}
			secrets[i] = res.Msg.GetSecret()
		})
	}
	group.Wait()
	for _, s := range secrets {
		if s != secrets[0] {
			t.Fatal("one request has got several secrets")
		}
	}
	// With the same key somebody else gets something else.
	ada := p.someone("ada", fleet.Admin)
	res, err := p.clientAs(ada).CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: "cy", Role: "viewer", AllEnvironments: true, IdempotencyKey: "k"}))
	if err != nil || res.Msg.GetSecret() == secrets[0] {
		t.Errorf("another caller has got %v, %v", res, err)
	}
	_, err = p.client.CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: "ci", Role: "viewer", AllEnvironments: true}))
	wantCode(t, err, connect.CodeAlreadyExists, "ci exists")
	// Nothing of a secret is in the log, and its hash is.
	found := false
	for e, err := range p.ledger.log.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range append(secrets, ada, adminToken) {
			if strings.Contains(string(e.Payload)+e.IdempotencyKey, strings.TrimPrefix(secret, identity.TokenPrefix)) {
				t.Errorf("event %d has a secret: %s", e.Seq, e.Payload)
			}
		}
		found = found || strings.Contains(string(e.Payload), hashOf(t, ada))
	}
	if !found {
		t.Error("the log does not have the hash of a token")
	}
}

// TestTokensAreNoMoreThanTheirMaker: not in role, and not in environments.
func TestTokensAreNoMoreThanTheirMaker(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.environment("prod")
	lead := p.clientAs(p.someone("lead", fleet.Admin, "dev"))
	make := func(name, role string, all bool, envs ...string) error {
		_, err := lead.CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: name, Role: role, AllEnvironments: all, Environments: envs}))
		return err
	}
	if err := make("ci", "deployer", false, "dev"); err != nil {
		t.Error(err)
	}
	wantCode(t, make("x", "viewer", true), connect.CodePermissionDenied, "cannot allow more")
	wantCode(t, make("x", "viewer", false, "dev", "prod"), connect.CodeNotFound, `"prod" does not exist`)
	wantCode(t, make("x", "owner", false, "dev"), connect.CodeInvalidArgument, "want viewer, deployer or admin")
	wantCode(t, make("x", "viewer", false), connect.CodeInvalidArgument, "all environments")
	wantCode(t, make("X y", "viewer", false, "dev"), connect.CodeInvalidArgument, "token name")
	list, err := lead.ListTokens(t.Context(), connect.NewRequest(&pb.ListTokensRequest{}))
	if err != nil || len(list.Msg.GetTokens()) != 2 || list.Msg.GetTokens()[1].GetLastUsedAt() == nil {
		t.Errorf("got %v, %v", list, err)
	}
	_, err = lead.RevokeToken(t.Context(), connect.NewRequest(&pb.RevokeTokenRequest{Token: "admin"}))
	wantCode(t, err, connect.CodeNotFound, "does not exist")
}

// TestStreamEndsWithItsToken: when it is revoked, and when it expires.
func TestStreamEndsWithItsToken(t *testing.T) {
	p, c := newPlaneWithClock(t)
	for name, end := range map[string]func(){
		"revoked": func() {
			if _, err := p.client.RevokeToken(t.Context(), connect.NewRequest(&pb.RevokeTokenRequest{Token: "revoked"})); err != nil {
				t.Error(err)
			}
		},
		"expired": func() { c.forward(time.Hour) },
	} {
		made, err := p.client.CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: name, Role: "viewer", AllEnvironments: true, ExpiresInSeconds: 1800}))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		stream, err := p.clientAs(made.Msg.GetSecret()).ReadEvents(ctx, connect.NewRequest(&pb.ReadEventsRequest{Follow: true}))
		if err != nil || !stream.Receive() {
			t.Fatal(err, stream.Err())
		}
		end()
		for stream.Receive() {
		}
		if connect.CodeOf(stream.Err()) != connect.CodeUnauthenticated {
			t.Errorf("%s: the stream ended with %v", name, stream.Err())
		}
	}
}

// TestFirstToken: it lets somebody in where nobody is, and brings back nothing that was revoked.
func TestFirstToken(t *testing.T) {
	p, c := newPlaneWithClock(t)
	again := func(token string) {
		p.kill()
		p.change = func(o *Options) { o.Now, o.AdminToken = c.now, token }
		p.boot()
	}
	good := func(token string) bool {
		_, err := p.clientAs(token).GetServerInfo(t.Context(), connect.NewRequest(&pb.GetServerInfoRequest{}))
		return err == nil
	}
	second := "another-admin-token-of-the-tests"
	if again(second); !good(adminToken) || good(second) {
		t.Error("a second token was let in beside the first")
	}
	made, err := p.client.CreateToken(t.Context(), connect.NewRequest(&pb.CreateTokenRequest{Name: "root", Role: "admin", AllEnvironments: true, ExpiresInSeconds: 60}))
	if err != nil {
		t.Fatal(err)
	}
	root := p.clientAs(made.Msg.GetSecret())
	if _, err := root.RevokeToken(t.Context(), connect.NewRequest(&pb.RevokeTokenRequest{Token: "admin"})); err != nil {
		t.Fatal(err)
	}
	if again(second); good(second) {
		t.Error("a token was let in while there is an admin")
	}
	c.forward(time.Hour)
	if again(adminToken); good(adminToken) {
		t.Error("a token that was revoked is good again")
	}
	if again(second); !good(second) {
		t.Error("nobody is let in where no admin token is good")
	}
}
