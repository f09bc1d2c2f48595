// Package local stands in for a server where there is none: it tells an agent of this process what to run, and hears what
// becomes of it. The agent cannot tell the difference, so what runs here runs as it does in production.
//
// Server and agent talk over HTTP/2 as ever, but through pipes in memory: there is no port that somebody else could
// talk to.
package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// heartbeat is how often a stream without news says that it lives. Agents take a silent one for dead after 45 s.
const heartbeat = 15 * time.Second

// Options are whom a Server tells of what it hears. Each function is called by one caller at a time, for which the agent
// waits; one that does not return holds up the other one not.
type Options struct {
	// Report hears what runs, and which of the sets the agent has acted on.
	Report func(revision uint64, instances []*pinnacev1.InstanceReport)
	// Lines hears what instances write, in order. After an error the agent sends no more.
	Lines func([]*pinnacev1.StreamLogsResponse) error
	// Answered hears that there are no more lines for a request, by its id.
	Answered func(request string)
}

// A Server serves one agent.
type Server struct {
	pinnacev1connect.UnimplementedAgentServiceHandler
	opts   Options
	http   *http.Server
	pipes  *pipes
	served chan error
	ended  chan struct{} // closed by Close

	commands *http.Server // nil without Listen

	reports, lines sync.Mutex // held while the function of opts is called

	mu sync.Mutex
	// Guarded by mu:
	set      *pinnacev1.WatchAssignmentsResponse // not changed, only replaced
	changed  chan struct{}                       // closed when there is something new for the agent
	tasks    map[string]*execTask                // by id
	lastTask uint64
}

// New starts a Server that wants nothing to run. Close ends it.
func New(opts Options) *Server {
	s := &Server{
		opts: opts, pipes: newPipes(), served: make(chan error, 1), ended: make(chan struct{}), changed: make(chan struct{}),
		tasks: map[string]*execTask{},
		set:   &pinnacev1.WatchAssignmentsResponse{Revision: 1, Complete: true},
	}
	_, handler := pinnacev1connect.NewAgentServiceHandler(s)
	s.http = &http.Server{Handler: handler, ReadHeaderTimeout: heartbeat, Protocols: new(http.Protocols)}
	s.http.Protocols.SetUnencryptedHTTP2(true)
	go func() { s.served <- s.http.Serve(s.pipes) }()
	return s
}

// Client is for the agent.
func (s *Server) Client() pinnacev1connect.AgentServiceClient {
	transport := &http.Transport{DialContext: s.pipes.dial, Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: transport}, "http://pinnace.internal")
}

// Close ends the server and what it has open.
func (s *Server) Close() error {
	close(s.ended)
	err := s.http.Close()
	if s.commands != nil {
		err = errors.Join(err, s.commands.Close())
	}
	if served := <-s.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Run wants set to run, whatever was wanted before, and returns its revision. Requests for logs in it are asked once.
func (s *Server) Run(set *pinnacev1.WatchAssignmentsResponse) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	set = proto.CloneOf(set)
	set.Revision, set.Complete = s.set.Revision+1, true
	s.set = set
	s.fire()
	return set.Revision
}

// fire wakes those who wait for something new. The caller has mu.
func (s *Server) fire() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Join implements the API. There is no log that could have been restored from an older copy.
func (s *Server) Join(context.Context, *connect.Request[pinnacev1.JoinRequest]) (*connect.Response[pinnacev1.JoinResponse], error) {
	return connect.NewResponse(&pinnacev1.JoinResponse{}), nil
}

// WatchAssignments implements the API.
func (s *Server) WatchAssignments(ctx context.Context, _ *connect.Request[pinnacev1.WatchAssignmentsRequest], stream *connect.ServerStream[pinnacev1.WatchAssignmentsResponse]) error {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	asked := map[string]bool{}
	for sent := uint64(0); ; {
		s.mu.Lock()
		msg, changed := s.set, s.changed
		if msg.Revision == sent {
			msg = &pinnacev1.WatchAssignmentsResponse{Revision: sent}
		} else {
			sent = msg.Revision
			msg = proto.CloneOf(msg)
		}
		for id, t := range s.tasks {
			if !asked[id] {
				asked[id] = true
				msg.ExecTasks = append(msg.ExecTasks, t.task)
			}
		}
		s.mu.Unlock()
		if err := stream.Send(msg); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			return connect.NewError(connect.CodeUnavailable, errors.New("it is over"))
		}
	}
}

// Report implements the API.
func (s *Server) Report(_ context.Context, req *connect.Request[pinnacev1.ReportRequest]) (*connect.Response[pinnacev1.ReportResponse], error) {
	s.reports.Lock()
	defer s.reports.Unlock()
	s.opts.Report(req.Msg.Revision, req.Msg.Instances)
	return connect.NewResponse(&pinnacev1.ReportResponse{}), nil
}

// SendLogs implements the API.
func (s *Server) SendLogs(_ context.Context, stream *connect.ClientStream[pinnacev1.SendLogsRequest]) (*connect.Response[pinnacev1.SendLogsResponse], error) {
	request := ""
	defer func() { s.opts.Answered(request) }()
	for stream.Receive() {
		request = stream.Msg().Request
		if err := s.hear(stream.Msg().Lines); err != nil {
			return nil, connect.NewError(connect.CodeAborted, err)
		}
	}
	return connect.NewResponse(&pinnacev1.SendLogsResponse{}), stream.Err()
}

func (s *Server) hear(lines []*pinnacev1.StreamLogsResponse) error {
	s.lines.Lock()
	defer s.lines.Unlock()
	if len(lines) == 0 {
		return nil
	}
	return s.opts.Lines(lines)
}

// pipes is a listener in memory.
type pipes struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-ctx.Done():
	case <-p.closed:
	}
	return nil, errors.Join(fmt.Errorf("connect: %w", net.ErrClosed), here.Close(), there.Close())
}

// Accept implements net.Listener.
func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// Addr implements net.Listener.
func (p *pipes) Addr() net.Addr { return memory{} }

type memory struct{}

func (memory) Network() string { return "memory" }
func (memory) String() string  { return "memory" }
