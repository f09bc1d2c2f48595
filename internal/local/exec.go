package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

const (
	// execWindow is how much output of a command the agent may send before the caller has taken it. Each message takes
	// its bytes and execCost.
	execWindow = 256 << 10
	execCost   = 256
	// maxExecs is how many commands run at a time.
	maxExecs = 16
	// execPatience is how long the agent may take to answer a task.
	execPatience = 15 * time.Second
)

// Listen lets programs of the same user run commands in the instance, through a unix socket at path: it answers Exec of
// the control API there, whatever target is named. Close ends it.
func (s *Server) Listen(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // one that a killed process has left is in the way
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen for those who run commands: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	_, handler := pinnacev1connect.NewControlServiceHandler(control{server: s})
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: heartbeat, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	s.commands = srv
	go func() { _ = srv.Serve(l) }() // until Close
	return nil
}

// Dial is a client for what listens at path.
func Dial(path string) pinnacev1connect.ControlServiceClient {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return pinnacev1connect.NewControlServiceClient(&http.Client{Transport: transport}, "http://pinnace.internal")
}

// control is the part of the control API that there is.
type control struct {
	pinnacev1connect.UnimplementedControlServiceHandler
	server *Server
}

// execTask is a command between its caller and the agent.
type execTask struct {
	task      *pinnacev1.ExecTask
	toAgent   chan *pinnacev1.ServeExecResponse
	fromAgent chan *pinnacev1.ServeExecRequest
	taken     chan struct{} // closed when the agent answers
	lost      chan struct{} // closed when it does no more
	gone      <-chan struct{}
}

// Exec implements the API.
func (c control) Exec(ctx context.Context, stream *connect.BidiStream[pinnacev1.ExecRequest, pinnacev1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.server.addTask(first.GetStart(), ctx.Done())
	if err != nil {
		return err
	}
	defer c.server.removeTask(t)
	go func() { // it ends with the request
		defer cancel()
		t.passCaller(ctx, stream)
	}()
	return t.passAgent(ctx, stream)
}

// addTask asks the agent for a command in what runs.
func (s *Server) addTask(start *pinnacev1.ExecStart, gone <-chan struct{}) (*execTask, error) {
	if len(start.GetArgv()) == 0 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("there is no command"))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.set.Assignments) == 0 {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("nothing runs yet"))
	}
	if len(s.tasks) >= maxExecs {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d commands run already; end one of them", maxExecs))
	}
	s.lastTask++
	t := &execTask{
		toAgent: make(chan *pinnacev1.ServeExecResponse), fromAgent: make(chan *pinnacev1.ServeExecRequest),
		taken: make(chan struct{}), lost: make(chan struct{}), gone: gone,
		task: &pinnacev1.ExecTask{
			Id: fmt.Sprint("exec-", s.lastTask), Instance: s.set.Assignments[0].Instance, Start: start, OutputCredit: execWindow,
		},
	}
	s.tasks[t.task.Id] = t
	s.fire()
	return t, nil
}

func (s *Server) removeTask(t *execTask) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tasks, t.task.Id)
}

// takeTask hands a task to the agent that answers it, once.
func (s *Server) takeTask(id string) *execTask {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	if t == nil {
		return nil
	}
	select {
	case <-t.taken:
		return nil
	default:
	}
	close(t.taken)
	return t
}

// passCaller hands to the agent what the caller says, until the caller is gone.
func (t *execTask) passCaller(ctx context.Context, stream *connect.BidiStream[pinnacev1.ExecRequest, pinnacev1.ExecResponse]) {
	for {
		m, err := stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			// It has nothing more to say, and still listens.
			t.tell(ctx, &pinnacev1.ServeExecResponse{Message: &pinnacev1.ExecRequest{
				Message: &pinnacev1.ExecRequest_Input{Input: &pinnacev1.ExecInput{Eof: true}},
			}})
			<-ctx.Done()
			return
		case err != nil:
			return
		case m.GetStart() == nil:
			t.tell(ctx, &pinnacev1.ServeExecResponse{Message: m})
		}
	}
}

// tell says something to the agent, if it still listens.
func (t *execTask) tell(ctx context.Context, m *pinnacev1.ServeExecResponse) {
	select {
	case t.toAgent <- m:
	case <-t.lost:
	case <-ctx.Done():
	}
}

// passAgent hands to the caller what the agent says, until the command has ended.
func (t *execTask) passAgent(ctx context.Context, stream *connect.BidiStream[pinnacev1.ExecRequest, pinnacev1.ExecResponse]) error {
	late := time.NewTimer(execPatience)
	defer late.Stop()
	taken := t.taken
	for owed := 0; ; {
		select {
		case <-taken:
			taken = nil
			late.Stop()
		case m := <-t.fromAgent:
			if r := m.GetRefusal(); r != nil {
				return connect.NewError(connect.CodeFailedPrecondition, errors.New(r.GetMessage()))
			}
			if m.GetMessage() == nil {
				continue // of a later version
			}
			if err := stream.Send(m.Message); err != nil || m.Message.GetEnded() != nil {
				return err
			}
			if owed += len(m.Message.GetOutput().GetData()) + execCost; owed >= execWindow/4 {
				t.tell(ctx, &pinnacev1.ServeExecResponse{OutputCredit: uint32(owed)})
				owed = 0
			}
		case <-t.lost:
			return connect.NewError(connect.CodeUnavailable, errors.New("the agent has let go of the command; it is ended"))
		case <-late.C:
			return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the agent has not answered within %s", execPatience))
		case <-ctx.Done():
			return connect.NewError(connect.CodeCanceled, ctx.Err())
		}
	}
}

// ServeExec implements the API.
func (s *Server) ServeExec(ctx context.Context, stream *connect.BidiStream[pinnacev1.ServeExecRequest, pinnacev1.ServeExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	t := s.takeTask(first.Task)
	if t == nil {
		return connect.NewError(connect.CodeNotFound, errors.New("nobody waits for the command"))
	}
	defer close(t.lost)
	over := make(chan error, 1)
	go func() { over <- t.passMessages(ctx, stream) }() // it ends with the request
	for {
		select {
		case m := <-t.toAgent:
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-over:
			return err
		case <-t.gone:
			return connect.NewError(connect.CodeCanceled, errors.New("nobody waits for the command any more"))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// passMessages hands over what the agent says, in order, until it has said everything.
func (t *execTask) passMessages(ctx context.Context, stream *connect.BidiStream[pinnacev1.ServeExecRequest, pinnacev1.ServeExecResponse]) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case t.fromAgent <- m:
		case <-t.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
