package server

import (
	"context"
	"errors"
	"io"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

const (
	// maxTasks is how many tasks pass through the server at a time, connections to ports included.
	maxTasks = 256
	// taskPatience is how long an agent may take to take a task.
	taskPatience = 15 * time.Second
)

// hostTask is something that a host is to do for somebody who waits. What the two say passes through, one message at a
// time: who does not read slows the other one down.
type hostTask struct {
	host  string
	task  *pb.HostTask
	taken chan struct{} // closed when the agent has taken it
	// toAgent and fromAgent are what is said. done is closed when nobody waits any more, lost when the agent's side is over.
	toAgent   chan *pb.ServeTaskResponse
	fromAgent chan *pb.ServeTaskRequest
	done      <-chan struct{}
	lost      chan struct{}
}

// ServeTask takes what an agent says of one task, and tells it what its caller says.
func (a *agents) ServeTask(ctx context.Context, stream *connect.BidiStream[pb.ServeTaskRequest, pb.ServeTaskResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	t, ok := a.tasks.take(first.GetTask(), hostOf(ctx).ID)
	if !ok {
		return refuse(connect.CodeNotFound, "nobody waits for task %q", cut(first.GetTask()))
	}
	defer close(t.lost)
	close(t.taken)
	received := make(chan error, 1)
	go func() { // it ends with the request
		for {
			m, err := stream.Receive()
			if err != nil {
				received <- err
				return
			}
			select {
			case t.fromAgent <- m:
			case <-t.done:
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case m := <-t.toAgent:
			if err := stream.Send(m); err != nil {
				return err
			}
		case err := <-received:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-t.done:
			return nil
		case <-ctx.Done():
			return a.onWire(ctx, ctx.Err())
		}
	}
}

// ask has a host take a task, which is over when ctx ends.
func (c *control) ask(ctx context.Context, host string, task *pb.HostTask) (*hostTask, error) {
	id, err := c.newID("task")
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	if on, _ := c.observed.connected(host, c.now()); !on {
		return nil, refuse(connect.CodeUnavailable, "host %s is away\nhint: is `pinnace agent` running there?", host)
	}
	task.Id = id
	t := &hostTask{
		host: host, task: task, taken: make(chan struct{}), toAgent: make(chan *pb.ServeTaskResponse), fromAgent: make(chan *pb.ServeTaskRequest),
		done: ctx.Done(), lost: make(chan struct{}),
	}
	if !c.tasks.add(id, host, task.GetForward().GetInstance(), t) {
		return nil, refuse(connect.CodeResourceExhausted, "%d connections and transfers pass through this server already; end one of them", maxTasks)
	}
	defer c.tasks.remove(id) // once it is taken, or not wanted any more
	c.asked.fire()
	late := time.NewTimer(taskPatience)
	defer late.Stop()
	select {
	case <-t.taken:
		return t, nil
	case <-late.C:
		return nil, refuse(connect.CodeUnavailable, "host %s has not answered within %s: its agent may be away, or older than this server", host, taskPatience)
	case <-ctx.Done():
		return nil, c.onWire(ctx, ctx.Err())
	}
}

// tell says something to the agent; false when that does not listen any more.
func (t *hostTask) tell(ctx context.Context, m *pb.ServeTaskResponse) bool {
	select {
	case t.toAgent <- m:
		return true
	case <-t.lost:
		return false
	case <-ctx.Done():
		return false
	}
}

// hear waits for what the agent says next. The error is fit for the wire: also a refusal of the task is one.
func (t *hostTask) hear(ctx context.Context) (*pb.ServeTaskRequest, error) {
	select {
	case m := <-t.fromAgent:
		if r := m.GetRefusal(); r != nil {
			return nil, taskRefusal(r)
		}
		return m, nil
	case <-t.lost:
		return nil, refuse(connect.CodeUnavailable, "the connection to host %s broke", t.host)
	case <-ctx.Done():
		return nil, connect.NewError(connect.CodeCanceled, ctx.Err())
	}
}

// do has a host do a task of which nothing but the end is of interest.
func (c *control) do(ctx context.Context, host string, task *pb.HostTask) (*pb.TaskDone, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.ask(ctx, host, task)
	if err != nil {
		return nil, err
	}
	for {
		m, err := t.hear(ctx)
		if err != nil {
			return nil, err
		}
		if done := m.GetDone(); done != nil {
			return done, nil
		}
	}
}

// taskRefusal is what an agent says of a task that it does not do, for the caller.
func taskRefusal(r *pb.TaskRefusal) error {
	code := connect.CodeFailedPrecondition
	switch r.GetReason() {
	case "not-found":
		code = connect.CodeNotFound
	case "exists":
		code = connect.CodeAlreadyExists
	case "busy":
		code = connect.CodeResourceExhausted
	case "invalid":
		code = connect.CodeInvalidArgument
	}
	return refuse(code, "%s", cut(r.GetMessage()))
}

// ForwardPort is one connection to a port of an instance.
func (c *control) ForwardPort(ctx context.Context, stream *connect.BidiStream[pb.ForwardPortRequest, pb.ForwardPortResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	i, err := c.execTarget(&pb.ExecStart{Environment: first.GetStart().GetEnvironment(), Target: first.GetStart().GetTarget()})
	if err != nil {
		return c.onWire(ctx, err)
	}
	var port uint32
	c.ledger.read(func(st *fleet.State) { port, err = portOf(st.Release(i.Release).Manifest, first.GetStart().GetPort()) })
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := c.ask(ctx, i.Host, &pb.HostTask{What: &pb.HostTask_Forward{Forward: &pb.ForwardTask{Instance: i.ID, Port: port}}})
	if err != nil {
		return err
	}
	go func() { // it ends with the request
		for {
			m, err := stream.Receive()
			switch {
			case errors.Is(err, io.EOF):
				t.tell(ctx, &pb.ServeTaskResponse{Eof: true})
				return
			case err != nil:
				cancel()
				return
			case m.GetStart() == nil && !t.tell(ctx, &pb.ServeTaskResponse{Data: m.GetData(), Eof: m.GetEof()}):
				return
			}
		}
	}()
	for {
		m, err := t.hear(ctx)
		if err != nil {
			return err
		}
		out := &pb.ForwardPortResponse{Data: m.GetData(), Eof: m.GetEof()}
		if m.GetConnected() {
			out.Connected = &pb.ForwardConnected{Instance: i.ID, Host: i.Host, Port: port}
		}
		if m.GetDone() != nil {
			return nil
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}
