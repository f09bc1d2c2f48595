package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// firstToken is the id of the token that a server makes for itself when the log has none.
const firstToken = "admin"

// ensureFirstToken lets whoever has Options.AdminToken in, when the log has never had a token. It is called once the
// server leads.
func (s *Server) ensureFirstToken(ctx context.Context) error {
	secret, _, err := identity.ParseSecret(s.opts.AdminToken)
	if err != nil {
		return err
	}
	never, usable := true, false
	s.ledger.read(func(st *fleet.State) {
		for _, t := range st.Tokens() {
			never = false
			usable = usable || t.Role == fleet.Admin && t.All && t.Usable(s.now())
		}
	})
	if usable {
		return nil
	}
	id := firstToken
	if !never {
		// All others have expired. What is on this machine lets its owner in again, but for a secret that was revoked.
		if id, err = s.newID("tok"); err != nil {
			return err
		}
	}
	err = s.ledger.append(ctx, actorServer, "", &fleet.TokenCreated{Token: id, Name: firstToken, Hash: secret.Hash(), Role: fleet.Admin, All: true})
	if isRejected(err) {
		s.log.WarnContext(ctx, "no admin token is good any more, and the one in the keys of this server was: move its file away for a new one, and start the server again", "error", err)
		return nil
	}
	return err
}

func (c *control) CreateToken(ctx context.Context, req *connect.Request[pb.CreateTokenRequest]) (*connect.Response[pb.CreateTokenResponse], error) {
	m := req.Msg
	now := c.now()
	wanted := &fleet.Token{Role: fleet.Role(m.GetRole()), All: m.GetAllEnvironments(), Environments: slices.Sorted(slices.Values(m.GetEnvironments()))}
	lifetime, err := expiry(m.GetExpiresInSeconds(), maxTokenLife)
	switch {
	case err != nil:
		return nil, err
	case !fleet.ValidTokenName(m.GetName()):
		return nil, refuse(connect.CodeInvalidArgument, "token name %q: want a lower-case letter or digit, then at most 62 of these and . _ -", cut(m.GetName()))
	case !wanted.Role.Covers(fleet.Viewer):
		return nil, refuse(connect.CodeInvalidArgument, "role %q: want viewer, deployer or admin", cut(m.GetRole()))
	case wanted.All == (len(wanted.Environments) > 0):
		return nil, refuse(connect.CodeInvalidArgument, "a token is for all environments, or for those that are named")
	}
	by := callerOf(ctx)
	c.ledger.read(func(st *fleet.State) {
		for _, env := range wanted.Environments {
			if err == nil {
				err = seesEnvironment(st, by, env)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if !by.Includes(wanted) {
		return nil, refuse(connect.CodePermissionDenied, "a token cannot allow more than the one that makes it: role %s for %s", by.Role, scopeText(by))
	}
	secret, id, err := c.secret(ctx, identity.TokenPrefix, "tok", m.GetIdempotencyKey())
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	created := &fleet.TokenCreated{Token: id, Name: m.GetName(), Hash: secret.Hash(), Role: wanted.Role, All: wanted.All, Environments: wanted.Environments}
	if lifetime > 0 {
		created.ExpiresUnix = now.Add(lifetime).Unix()
	}
	var token *fleet.Token
	find := func() { c.ledger.read(func(st *fleet.State) { token = st.TokenByHash(secret.Hash()) }) }
	if find(); token == nil {
		err := c.ledger.append(ctx, actorOf(ctx), "", created)
		switch find(); {
		case token != nil: // also when the same request was faster
		case errors.Is(err, fleet.ErrExists):
			return nil, refuse(connect.CodeAlreadyExists, "a token named %s exists: choose another name, or revoke it: pinnace token revoke %s", m.GetName(), m.GetName())
		case isRejected(err):
			return nil, refuse(connect.CodeFailedPrecondition, "%w", errors.Unwrap(err))
		default:
			return nil, c.onWire(ctx, err)
		}
	}
	return connect.NewResponse(&pb.CreateTokenResponse{Token: c.tokenProto(token), Secret: secret.WithPin(c.opts.APIPin)}), nil
}

// secret makes a secret and an id. A request that is repeated, with a key that its caller has used for nothing else, gets
// the same ones again; they are kept nowhere.
func (s *Server) secret(ctx context.Context, prefix, idPrefix, key string) (identity.Secret, string, error) {
	if key == "" {
		id, err := s.newID(idPrefix)
		if err != nil {
			return identity.Secret{}, "", err
		}
		secret, err := identity.NewSecret(prefix, s.opts.Random)
		return secret, id, err
	}
	b := s.opts.Authority.Derive("secret", prefix, callerOf(ctx).ID, key)
	sum := s.opts.Authority.Derive("id", prefix, callerOf(ctx).ID, key)
	return identity.SecretOf(prefix, b), idOf(idPrefix, sum[:]), nil
}

// maxTokenLife is the longest that a token may have until it expires; those that do not expire have no such bound.
const maxTokenLife = 10 * 365 * 24 * time.Hour

// expiry reads a number of seconds; 0 is none.
func expiry(seconds int64, most time.Duration) (time.Duration, error) {
	if seconds < 0 || seconds > int64(most/time.Second) {
		return 0, refuse(connect.CodeInvalidArgument, "it is to expire in %d seconds, want 1 to %d", seconds, int64(most/time.Second))
	}
	return time.Duration(seconds) * time.Second, nil
}

func scopeText(t *fleet.Token) string {
	if t.All {
		return "all environments"
	}
	return strings.Join(t.Environments, ", ")
}

func (c *control) ListTokens(ctx context.Context, req *connect.Request[pb.ListTokensRequest]) (*connect.Response[pb.ListTokensResponse], error) {
	out := &pb.ListTokensResponse{}
	by, now := callerOf(ctx), c.now()
	var err error
	c.ledger.read(func(st *fleet.State) {
		seen := slices.DeleteFunc(st.Tokens(), func(t *fleet.Token) bool {
			return !by.Surrounds(t) || !req.Msg.GetAll() && !t.Usable(now)
		})
		out.Tokens, out.NextPageToken, err = pageOf(req.Msg, seen, func(t *fleet.Token) string { return t.Name + " " + t.ID }, c.tokenProto)
	})
	return connect.NewResponse(out), err
}

func (c *control) RevokeToken(ctx context.Context, req *connect.Request[pb.RevokeTokenRequest]) (*connect.Response[pb.RevokeTokenResponse], error) {
	var token *fleet.Token
	var err error
	c.ledger.read(func(st *fleet.State) { token, err = tokenIn(st, callerOf(ctx), req.Msg.GetToken(), c.now()) })
	if err != nil {
		return nil, err
	}
	if token.RevokedAt.IsZero() {
		err := c.ledger.append(ctx, actorOf(ctx), "", &fleet.TokenRevoked{Token: token.ID})
		switch {
		case errors.Is(err, fleet.ErrLastAdmin):
			return nil, refuse(connect.CodeFailedPrecondition, "token %s: %w", token.Name, fleet.ErrLastAdmin)
		case err != nil && !errors.Is(err, fleet.ErrNotFound): // somebody else was faster
			return nil, c.onWire(ctx, err)
		}
		c.ledger.read(func(st *fleet.State) { token = st.TokenByHash(token.Hash) })
	}
	return connect.NewResponse(&pb.RevokeTokenResponse{Token: c.tokenProto(token)}), nil
}

// tokenIn finds a token by its id, or by its name among those that are good. A name may be that of several tokens, which
// are for different environments.
func tokenIn(st *fleet.State, by *fleet.Token, ref string, now time.Time) (*fleet.Token, error) {
	var named []*fleet.Token
	for _, t := range st.Tokens() {
		switch {
		case !by.Surrounds(t):
		case t.ID == ref && ref != firstToken:
			return t, nil
		case t.Name == ref && t.Usable(now):
			named = append(named, t)
		}
	}
	switch len(named) {
	case 0:
		return nil, refuse(connect.CodeNotFound, "token %q does not exist: pinnace token list shows those that you may revoke", cut(ref))
	case 1:
		return named[0], nil
	}
	var ids []string
	for _, t := range named[:min(len(named), 8)] {
		ids = append(ids, t.ID+" for "+scopeText(t))
	}
	return nil, refuse(connect.CodeInvalidArgument, "%d tokens are named %s: %s. Give the id", len(named), cut(ref), strings.Join(ids, "; "))
}

func (s *Server) tokenProto(t *fleet.Token) *pb.Token {
	return &pb.Token{
		Id: t.ID, Name: t.Name, Role: string(t.Role), AllEnvironments: t.All, Environments: t.Environments,
		CreatedAt: timestampOrNil(t.CreatedAt), CreatedBy: t.CreatedBy, ExpiresAt: timestampOrNil(t.ExpiresAt),
		RevokedAt: timestampOrNil(t.RevokedAt), LastUsedAt: timestampOrNil(s.tokenUse.of(t.ID)),
	}
}
