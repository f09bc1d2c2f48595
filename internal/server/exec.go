package server

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

const (
	// execWindow is how much output of a command an agent may send before the caller has taken it: what the server
	// holds for one at most. Each message takes its bytes and execCost, so that small ones can't take more.
	execWindow = 256 << 10
	execCost   = 256
	// maxExecs is how many commands pass through the server at a time, and maxExecData what one message may hold.
	maxExecs    = 128
	maxExecData = 16 << 10
	// execPatience is how long an agent may take to answer a task.
	execPatience = 15 * time.Second
)

// execTask is a command that somebody waits for.
type execTask struct {
	host string
	task *pb.ExecTask
	// toAgent carries what the caller says; whoever serves the agent takes it. done is closed when the caller is gone,
	// lost when the agent's side is over.
	toAgent chan *pb.ServeExecResponse
	done    <-chan struct{}
	lost    chan struct{}
	more    chan struct{} // something has come from the agent

	mu     sync.Mutex             // guards what follows
	taken  bool                   // an agent has answered
	came   []*pb.ServeExecRequest // from the agent, for the caller
	credit int                    // how much more the agent may send
	end    bool                   // nothing more may come
}

// take notes that an agent has answered.
func (t *execTask) take() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken = true
}

// isTaken tells whether an agent has answered.
func (t *execTask) isTaken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken
}

// put keeps what an agent has sent until the caller takes it.
func (t *execTask) put(m *pb.ServeExecRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end {
		return refuse(connect.CodeInvalidArgument, "the command had ended")
	}
	cost := 0
	switch what := m.GetMessage().GetMessage().(type) {
	case nil:
		t.end = m.GetRefusal() != nil
		if !t.end {
			return nil // of a later version
		}
	case *pb.ExecResponse_Output:
		if len(what.Output.GetData()) > maxExecData {
			return refuse(connect.CodeInvalidArgument, "%d bytes of output in one message", len(what.Output.GetData()))
		}
		cost = len(what.Output.GetData())
	case *pb.ExecResponse_Ended:
		t.end = true
	}
	if !t.end {
		cost += execCost
	}
	if t.credit -= cost; t.credit < 0 {
		return refuse(connect.CodeResourceExhausted, "more than there was credit for")
	}
	t.came = append(t.came, m)
	select {
	case t.more <- struct{}{}:
	default:
	}
	return nil
}

// pull takes what has come.
func (t *execTask) pull() []*pb.ServeExecRequest {
	t.mu.Lock()
	defer t.mu.Unlock()
	came := t.came
	t.came = nil
	return came
}

// give lets the agent send more.
func (t *execTask) give(ctx context.Context, n int) {
	t.mu.Lock()
	t.credit += n
	t.mu.Unlock()
	t.tell(ctx, &pb.ServeExecResponse{OutputCredit: uint32(n)})
}

// tell says something to the agent, if it still serves.
func (t *execTask) tell(ctx context.Context, m *pb.ServeExecResponse) {
	select {
	case t.toAgent <- m:
	case <-t.lost:
	case <-ctx.Done():
	}
}

// ServeExec takes what an agent says of one command, and tells it what the caller does.
func (a *agents) ServeExec(ctx context.Context, stream *connect.BidiStream[pb.ServeExecRequest, pb.ServeExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	t, ok := a.execs.take(first.GetTask(), hostOf(ctx).ID)
	if !ok {
		return refuse(connect.CodeNotFound, "nobody waits for task %q", cut(first.GetTask()))
	}
	defer close(t.lost)
	t.take()
	received := make(chan error, 1)
	go func() { // it ends with the request
		for {
			m, err := stream.Receive()
			if err == nil {
				err = t.put(m)
			}
			if err != nil {
				received <- err
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
			return refuse(connect.CodeCanceled, "nobody waits for the command any more")
		case <-ctx.Done():
			return a.onWire(ctx, ctx.Err())
		}
	}
}

// Exec runs a command in an instance.
func (c *control) Exec(ctx context.Context, stream *connect.BidiStream[pb.ExecRequest, pb.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if len(start.GetArgv()) == 0 || start.GetArgv()[0] == "" {
		return refuse(connect.CodeInvalidArgument, "there is no command")
	}
	if err := checkKey(start.GetIdempotencyKey()); err != nil {
		return err
	}
	i, err := c.execTarget(start)
	if err != nil {
		return c.onWire(ctx, err)
	}
	id, err := c.newID("exec")
	if err != nil {
		return c.onWire(ctx, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := &execTask{
		host: i.Host, toAgent: make(chan *pb.ServeExecResponse), done: ctx.Done(), lost: make(chan struct{}), more: make(chan struct{}, 1),
		task: &pb.ExecTask{Id: id, Instance: i.ID, Start: start, OutputCredit: execWindow}, credit: execWindow,
	}
	if !c.execs.add(id, i.Host, i.ID, t) {
		return refuse(connect.CodeResourceExhausted, "%d commands run through this server already; end one of them", maxExecs)
	}
	defer c.execs.remove(id)
	// Who wanted to run what is on record before it runs.
	repeated, err := c.ledger.appendOnce(ctx, actorOf(ctx), requestKey("exec", start.GetIdempotencyKey()), &fleet.ExecRequested{
		Instance: i.ID, Program: cut(start.GetArgv()[0]), Arguments: len(start.GetArgv()) - 1, User: cut(start.GetUser()), Terminal: start.GetTty(),
	})
	if err != nil {
		return c.onWire(ctx, err)
	}
	if repeated {
		return refuse(connect.CodeAlreadyExists, "a command with this idempotency key was started before; what it said is gone")
	}
	c.asked.fire()
	go func() { // it ends with the request
		defer cancel()
		c.passCaller(ctx, stream, t)
	}()
	return c.passAgent(ctx, stream, t)
}

// passCaller hands to the agent what the caller says, until the caller is gone.
func (c *control) passCaller(ctx context.Context, stream *connect.BidiStream[pb.ExecRequest, pb.ExecResponse], t *execTask) {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			// It has nothing more to say, and still listens.
			t.tell(ctx, &pb.ServeExecResponse{Message: &pb.ExecRequest{Message: &pb.ExecRequest_Input{Input: &pb.ExecInput{Eof: true}}}})
			<-ctx.Done()
			return
		}
		if err != nil {
			return
		}
		if m.GetStart() == nil {
			t.tell(ctx, &pb.ServeExecResponse{Message: m})
		}
	}
}

// passAgent hands to the caller what the agent sends, until the command has ended.
func (c *control) passAgent(ctx context.Context, stream *connect.BidiStream[pb.ExecRequest, pb.ExecResponse], t *execTask) error {
	late := time.NewTimer(execPatience)
	defer late.Stop()
	owed := 0
	for {
		came := t.pull()
		for _, m := range came {
			if r := m.GetRefusal(); r != nil {
				return execRefusal(r)
			}
			answer := m.GetMessage()
			if err := stream.Send(answer); err != nil {
				return err
			}
			if answer.GetEnded() != nil {
				return nil
			}
			if owed += len(answer.GetOutput().GetData()) + execCost; owed >= execWindow/4 {
				t.give(ctx, owed)
				owed = 0
			}
		}
		if len(came) > 0 {
			continue
		}
		select {
		case <-t.more:
		case <-t.lost:
			if !t.pending() {
				return c.lostExec(t)
			}
		case <-late.C:
			if !t.isTaken() {
				return refuse(connect.CodeUnavailable, "host %s has not answered within %s: its agent may be away, or older than this server", t.host, execPatience)
			}
		case <-ctx.Done():
			return c.onWire(ctx, ctx.Err())
		}
	}
}

// pending tells whether something has come that is not taken.
func (t *execTask) pending() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.came) > 0
}

func (c *control) lostExec(t *execTask) error {
	return refuse(connect.CodeUnavailable, "the connection to host %s broke; the command in %s is ended there", t.host, t.task.GetInstance())
}
