package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	rpc "github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// maxAdmission is the largest request to be admitted, in bytes: whoever sends it is unknown.
const maxAdmission = 32 << 10

// neverCompressed is larger than any message, in bytes. What agents are sent is encoded once for many of them; to compress it
// for each would take more time than anything else here, and a megabyte for each that is sent something at the moment.
const neverCompressed = 1 << 30

// AgentHandler serves AgentService to hosts. They prove who they are by a certificate, so it is to be served over TLS
// that asks for one, as Authority.ServerTLS does.
func (s *Server) AgentHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(rpc.NewAgentServiceHandler(&agents{s}, connect.WithReadMaxBytes(maxMessage), connect.WithCompressMinBytes(neverCompressed), connect.WithInterceptors(&hostGate{s})))
	return s.withHost(mux)
}

// AgentHTTP2 is how connections of agents are to be served. All calls of an agent share one: what nobody reads of one
// stream, such as logs in a pager, must leave room in the connection's window for the reports of the rest. An agent sends
// 64 logs at most.
func AgentHTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxReceiveBufferPerConnection: 4<<20 - 1, MaxReceiveBufferPerStream: 32 << 10}
}

// hostKey is the key of the host of a request, in its context.
type hostKey struct{}

// hostOf is the host that makes a request; nobody when it is not known.
func hostOf(ctx context.Context) identity.Host {
	h, _ := ctx.Value(hostKey{}).(identity.Host)
	return h
}

// withHost lets only requests of hosts through that are admitted, and those to be admitted.
func (s *Server) withHost(next http.Handler) http.Handler {
	refusal := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == rpc.AgentServiceAdmitProcedure {
			r.Body = http.MaxBytesReader(w, r.Body, maxAdmission)
			next.ServeHTTP(w, r)
			return
		}
		host, err := s.authenticateHost(r)
		if err != nil {
			turnAway(refusal, w, r, err)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), hostKey{}, host))
		whileGood(w, r, func() error {
			_, err := s.authenticateHost(r)
			if _, coded := errors.AsType[*connect.Error](err); err == nil || coded {
				return err
			}
			return connect.NewError(connect.CodeUnauthenticated, err)
		}, next)
	})
}

func (s *Server) authenticateHost(r *http.Request) (identity.Host, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return identity.Host{}, errors.New("the certificate of a host is needed: let this one join (pinnace host join-token)")
	}
	if err := s.informed(); err != nil {
		return identity.Host{}, err
	}
	now := s.now()
	host, err := s.opts.Authority.VerifyHost(r.TLS.PeerCertificates[0], now)
	if expired, ok := errors.AsType[*identity.ExpiredError](err); ok {
		if r.URL.Path != rpc.AgentServiceRenewProcedure || now.Sub(expired.At) > identity.Grace {
			return identity.Host{}, err
		}
		host = expired.Host
	} else if err != nil {
		return identity.Host{}, err
	}
	return host, s.admitted(host)
}

// admitted says why a host that had a certificate is not welcome any more.
func (s *Server) admitted(host identity.Host) error {
	var a *fleet.Admission
	s.ledger.read(func(st *fleet.State) { a = st.Admission(host.ID) })
	if a == nil || a.ID != host.Admission {
		return fmt.Errorf("host %s was revoked or removed, or has joined anew: let it join again (pinnace host join-token %s)", host.ID, host.ID)
	}
	return nil
}

// hostNamedBy is the host that a request says it is from, for each call of AgentService. Where it is nil the handler
// itself looks at hostOf: the first message of SendLogs, ServeExec and ServeTask names a request that is for one host.
var hostNamedBy = map[string]func(request any) string{
	rpc.AgentServiceJoinProcedure:             func(m any) string { return m.(*pb.JoinRequest).GetHost().GetId() },
	rpc.AgentServiceWatchAssignmentsProcedure: func(m any) string { return m.(*pb.WatchAssignmentsRequest).GetHost() },
	rpc.AgentServiceReportProcedure:           func(m any) string { return m.(*pb.ReportRequest).GetHost() },
	rpc.AgentServiceSendLogsProcedure:         nil,
	rpc.AgentServiceServeExecProcedure:        nil,
	rpc.AgentServiceServeTaskProcedure:        nil,
	rpc.AgentServiceAdmitProcedure:            nil,
	rpc.AgentServiceRenewProcedure:            nil,
}

// hostGate lets a host speak for itself alone.
type hostGate struct{ *Server }

var _ connect.Interceptor = (*hostGate)(nil)

func (g *hostGate) admit(ctx context.Context, procedure string, request any) error {
	named, ok := hostNamedBy[procedure]
	if !ok {
		return refuse(connect.CodePermissionDenied, "no host may call %s: it has no rule", procedure)
	}
	if named == nil {
		return nil
	}
	if host := hostOf(ctx); named(request) != host.ID {
		return refuse(connect.CodePermissionDenied, "host %s speaks for host %q", host.ID, cut(named(request)))
	}
	return nil
}

// WrapUnary implements connect.Interceptor.
func (g *hostGate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.admit(ctx, req.Spec().Procedure, req.Any()); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (g *hostGate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		guarded := &guardedConn{StreamingHandlerConn: conn, admit: func(first any) error {
			return g.admit(ctx, conn.Spec().Procedure, first)
		}}
		return cutOff(ctx, next(ctx, guarded))
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (g *hostGate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
