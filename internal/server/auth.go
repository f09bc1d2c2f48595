package server

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/api/openapi"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// maxMessage is the largest message that is read, in bytes.
const maxMessage = 16 << 20

// minCompressed is the smallest message that is sent compressed, in bytes: for the answers to reports, of which there is
// no end, it would cost more than it saves.
const minCompressed = 1024

// Handler serves ControlService to people and their scripts, and its description to everybody. Whoever has no token that is
// good gets nothing else; what one may do with it, say the rules.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(pinnacev1connect.NewControlServiceHandler(&control{s}, connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(minCompressed),
		connect.WithInterceptors(s.tellHead(), &gate{s}, checkKeys(), s.bound.check())))
	open := http.NewServeMux()
	openapi.Handle(open)
	open.Handle("/", s.withToken(mux))
	return open
}

// callerKey is the key of the token of a request, in its context.
type callerKey struct{}

// callerOf is the token that a request came with. One that came with none sees nothing and may do nothing.
func callerOf(ctx context.Context) *fleet.Token {
	if t, ok := ctx.Value(callerKey{}).(*fleet.Token); ok {
		return t
	}
	return &fleet.Token{}
}

// actorOf is who makes a request, for the log.
func actorOf(ctx context.Context) string {
	t := callerOf(ctx)
	if t.ID == firstToken {
		return firstToken
	}
	return t.Name + "/" + t.ID
}

const noToken = "a token is needed: set PINNACE_TOKEN, or use a context that has one (pinnace context add)"

// withToken lets only requests with a token through that is good now, before anything of them is read. A token is found by
// its hash, so that the time that takes says nothing of others.
func (s *Server) withToken(next http.Handler) http.Handler {
	refusal := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, err := s.authenticate(r)
		if err != nil {
			turnAway(refusal, w, r, err)
			return
		}
		s.tokenUse.used(token.ID, s.now())
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, token))
		whileGood(w, r, func() error { return s.stillGood(token) }, next)
	})
}

// turnAway answers a request of somebody who is not let in. An error without a code is about who asks.
func turnAway(refusal *connect.ErrorWriter, w http.ResponseWriter, r *http.Request, err error) {
	refused, ok := errors.AsType[*connect.Error](err)
	status := http.StatusServiceUnavailable
	if !ok {
		refused, status = connect.NewError(connect.CodeUnauthenticated, err), http.StatusUnauthorized
	}
	if !refusal.IsSupported(r) || refusal.Write(w, r, refused) != nil {
		http.Error(w, err.Error(), status)
	}
}

func (s *Server) authenticate(r *http.Request) (*fleet.Token, error) {
	if err := s.informed(); err != nil {
		return nil, err
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return nil, errors.New(noToken)
	}
	secret, _, err := identity.ParseSecret(given)
	if err != nil {
		return nil, errors.New("the token is not known here: " + noToken)
	}
	var token *fleet.Token
	s.ledger.read(func(st *fleet.State) { token = st.TokenByHash(secret.Hash()) })
	switch {
	case token == nil:
		return nil, errors.New("the token is not known here: " + noToken)
	case !token.RevokedAt.IsZero():
		return nil, errors.New("the token was revoked: ask for another one")
	case !token.Usable(s.now()):
		return nil, errors.New("the token has expired: ask for another one")
	}
	return token, nil
}

// stillGood says why a token that was good is not any more.
func (s *Server) stillGood(t *fleet.Token) error {
	if err := s.informed(); err != nil {
		return err
	}
	var now *fleet.Token
	s.ledger.read(func(st *fleet.State) { now = st.TokenByHash(t.Hash) })
	if now == nil || !now.Usable(s.now()) {
		return refuse(connect.CodeUnauthenticated, "the token was revoked or has expired")
	}
	return nil
}
