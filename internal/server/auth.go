package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/api/openapi"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// maxMessage is the largest message that is read, in bytes.
const maxMessage = 16 << 20

// Handler serves ControlService to people and their scripts: everything but its description is behind the admin token.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(pinnacev1connect.NewControlServiceHandler(&control{s}, connect.WithReadMaxBytes(maxMessage), connect.WithInterceptors(s.tellHead(), checkKeys())))
	open := http.NewServeMux()
	openapi.Handle(open)
	open.Handle("/", bearer(s.opts.AdminToken, "an admin token is needed: pass --token, set PINNACE_TOKEN, or use the context that `pinnace dev` made", mux))
	return open
}

// AgentHandler serves AgentService to hosts: everything behind the agent token.
func (s *Server) AgentHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(pinnacev1connect.NewAgentServiceHandler(&agents{s}, connect.WithReadMaxBytes(maxMessage)))
	return bearer(s.opts.AgentToken, "the agent token is needed", mux)
}

// AgentHTTP2 is how connections of agents are to be served. All calls of an agent share one: what nobody reads of one
// stream, such as logs in a pager, must leave room in the connection's window for the reports of the rest. An agent sends
// 64 logs at most.
func AgentHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxReceiveBufferPerConnection: 4<<20 - 1, MaxReceiveBufferPerStream: 32 << 10}
}

// bearer lets only requests with the token through, whatever they ask for. Tokens are compared by their
// hashes, so neither content nor length shows in the time that it takes.
func bearer(token, hint string, next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(token))
	refusal := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(given))
		if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			err := connect.NewError(connect.CodeUnauthenticated, errors.New(hint))
			if !refusal.IsSupported(r) || refusal.Write(w, r, err) != nil {
				http.Error(w, hint, http.StatusUnauthorized)
			}
			return
		}
		next.ServeHTTP(w, r)
	})
}
