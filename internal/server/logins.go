package server

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// maxPassword bounds the password of a login, in bytes. Tokens of cloud providers have some thousand.
const maxPassword = 16 << 10

// registryName makes the ways to write a registry one: case, TLS's own port, and Docker Hub's other names.
func registryName(text string) string {
	name := strings.TrimSuffix(strings.ToLower(text), ":443")
	if name == "docker.io" || name == "registry-1.docker.io" {
		return "index.docker.io"
	}
	return name
}

func (c *control) LoginRegistry(ctx context.Context, req *connect.Request[pb.LoginRegistryRequest]) (*connect.Response[pb.LoginRegistryResponse], error) {
	// One at a time, so that of two the later one is what stays.
	c.putting.Lock()
	defer c.putting.Unlock()
	registry, password := registryName(req.Msg.GetRegistry()), req.Msg.GetPassword()
	event := &fleet.RegistryLoggedIn{Environment: req.Msg.GetEnvironment(), Registry: registry, Username: req.Msg.GetUsername()}
	if event.Environment != "" {
		if _, err := c.environment(event.Environment); err != nil {
			return nil, err
		}
	}
	if err := fleet.CheckLogin(event.Registry, event.Username); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\x00\r\n") {
		return nil, refuse(connect.CodeInvalidArgument, "login at %s: the password has to be one line of 1 to %d bytes", registry, maxPassword)
	}
	key := requestKey("login", req.Msg.GetIdempotencyKey())
	same := func(p *fleet.RegistryLoggedIn) bool {
		return p.Environment == event.Environment && p.Registry == event.Registry && p.Username == event.Username
	}
	if _, repeated, err := once(ctx, c, key, same); err != nil || repeated {
		return connect.NewResponse(&pb.LoginRegistryResponse{}), err
	}
	text := sealedText{Kind: sealedLogin, Environment: event.Environment, Name: registry}
	var known *fleet.RegistryLogin
	c.ledger.read(func(st *fleet.State) { known = st.OwnLogin(event.Environment, registry) })
	if known != nil && known.Username == event.Username {
		// What cannot be opened is no login to keep.
		if have, err := c.unseal(ctx, known.Sealed, text); err == nil && string(have[loginPassword]) == password {
			return connect.NewResponse(&pb.LoginRegistryResponse{Unchanged: true}), nil
		}
	}
	text.Values = map[string][]byte{loginPassword: []byte(password)}
	var err error
	if event.Sealed, err = c.seal(ctx, text); err != nil {
		return nil, c.onWire(ctx, err)
	}
	event.Recipient = c.opts.Keys.Recipient()
	if err := c.ledger.append(ctx, actorOf(ctx), key, event); err != nil {
		if isRejected(err) {
			c.removeSealed(ctx, event.Sealed)
		}
		return nil, c.onWire(ctx, err)
	}
	if known != nil {
		c.removeSealed(ctx, known.Sealed)
	}
	return connect.NewResponse(&pb.LoginRegistryResponse{}), nil
}

func (c *control) LogoutRegistry(ctx context.Context, req *connect.Request[pb.LogoutRegistryRequest]) (*connect.Response[pb.LogoutRegistryResponse], error) {
	c.putting.Lock()
	defer c.putting.Unlock()
	event := &fleet.RegistryLoggedOut{Environment: req.Msg.GetEnvironment(), Registry: registryName(req.Msg.GetRegistry())}
	key := requestKey("logout", req.Msg.GetIdempotencyKey())
	same := func(p *fleet.RegistryLoggedOut) bool { return *p == *event }
	if _, repeated, err := once(ctx, c, key, same); err != nil || repeated {
		return connect.NewResponse(&pb.LogoutRegistryResponse{}), err
	}
	var known *fleet.RegistryLogin
	c.ledger.read(func(st *fleet.State) { known = st.OwnLogin(event.Environment, event.Registry) })
	if known == nil {
		return nil, refuse(connect.CodeNotFound, "there is no login at %q: see `pinnace registry list`", cut(event.Registry))
	}
	if err := c.ledger.append(ctx, actorOf(ctx), key, event); err != nil {
		return nil, c.onWire(ctx, err)
	}
	if c.opts.Secrets != nil {
		c.removeSealed(ctx, known.Sealed)
	}
	return connect.NewResponse(&pb.LogoutRegistryResponse{}), nil
}

func (c *control) ListRegistryLogins(_ context.Context, req *connect.Request[pb.ListRegistryLoginsRequest]) (*connect.Response[pb.ListRegistryLoginsResponse], error) {
	environment := req.Msg.GetEnvironment()
	if environment != "" {
		if _, err := c.environment(environment); err != nil {
			return nil, err
		}
	}
	out := &pb.ListRegistryLoginsResponse{}
	var err error
	key := func(l *fleet.RegistryLogin) string { return l.Environment + "/" + l.Registry }
	c.ledger.read(func(st *fleet.State) {
		out.Logins, out.NextPageToken, err = pageOf(req.Msg, st.Logins(environment), key, func(l *fleet.RegistryLogin) *pb.RegistryLogin {
			return &pb.RegistryLogin{Environment: l.Environment, Registry: l.Registry, Username: l.Username, SetAt: timestamppb.New(l.SetAt), SetBy: l.SetBy}
		})
	})
	return connect.NewResponse(out), err
}
