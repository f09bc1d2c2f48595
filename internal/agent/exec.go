package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// maxExecs is how many commands run at a time beside the workloads of a host.
const maxExecs = 64

// Reasons why a command cannot be run, as they are on the wire.
const (
	execNotRunning = "not-running"
	execBusy       = "busy"
	execUnable     = "unable"
	execLost       = "lost"
)

// execError is a reason with what to tell people.
type execError struct {
	reason string
	err    error
}

func (e *execError) Error() string { return e.err.Error() }
func (e *execError) Unwrap() error { return e.err }

// errCallerGone ends a command that nobody waits for any more.
var errCallerGone = errors.New("nobody waits for the command any more")

// Exec runs a command in an instance's microVM, beside its workload. See guest.Host.Command.
func (a *Agent) Exec(ctx context.Context, instance string, spec guest.CommandSpec, with guest.CommandIO) (guest.CommandResult, error) {
	host, _, err := a.talkTo(instance)
	if err != nil {
		return guest.CommandResult{}, err
	}
	return host.Command(ctx, spec, with)
}

// talkTo is the guest of an instance whose workload runs, and the number of its attempt.
func (a *Agent) talkTo(instance string) (*guest.Host, uint32, error) {
	a.mu.Lock()
	i := a.instances[instance]
	a.mu.Unlock()
	if i == nil {
		return nil, 0, &execError{execNotRunning, fmt.Errorf("instance %s is not on host %s", instance, a.Host.Id)}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.talk == nil {
		return nil, 0, &execError{execNotRunning, fmt.Errorf("instance %s does not run just now: it is %s", instance, i.status.State)}
	}
	return i.talk, i.status.Attempt, nil
}

// talks lets commands run beside the workload, until the returned function is called.
func (t *attempt) talks() (ends func()) {
	set := func(host *guest.Host) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.talk = host
	}
	set(t.guest)
	return func() { set(nil) }
}

// serveExec runs the command of a task and connects it with whoever asked for it, until one of both has ended.
func (a *Agent) serveExec(ctx context.Context, task *pinnacev1.ExecTask) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	x := &execution{
		agent: a, task: task, stream: a.Server.ServeExec(ctx), cancel: cancel, credit: guest.NewCredit(int(task.OutputCredit)), done: ctx.Done(),
		input: &execInput{room: guest.NewCredit(guest.InputWindow), more: make(chan struct{}, 1), done: ctx.Done()},
		sizes: make(chan guest.Size, 1), signals: make(chan string, 16),
	}
	x.input.taken = func(n int) {
		_ = x.send(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_InputCredit{InputCredit: uint32(n)}})
	}
	if err := x.stream.Send(&pinnacev1.ServeExecRequest{Task: task.Id}); err != nil {
		a.Log.Debug("answer a request for a command", "instance", task.Instance, "err", err)
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		cancel(x.receive())
	}()
	last := x.run(ctx)
	if err := x.sendLast(last); err != nil {
		a.Log.Debug("say how a command ended", "instance", task.Instance, "err", err)
	}
	// The server ends the stream when it has everything; whoever cancels before takes it away.
	late := time.AfterFunc(a.timing.call, func() { cancel(errCallerGone) })
	<-received
	late.Stop()
	_ = x.stream.CloseResponse() // it is over
}

// execution is a command with the stream that it is talked to through.
type execution struct {
	agent   *Agent
	task    *pinnacev1.ExecTask
	stream  *connect.BidiStreamForClient[pinnacev1.ServeExecRequest, pinnacev1.ServeExecResponse]
	cancel  context.CancelCauseFunc
	credit  *guest.Credit // for output
	done    <-chan struct{}
	input   *execInput
	sizes   chan guest.Size
	signals chan string

	sendMu sync.Mutex // held while a message is sent
}

// run runs the command and returns the last message about it.
func (x *execution) run(ctx context.Context) *pinnacev1.ServeExecRequest {
	select {
	case x.agent.execSlots <- struct{}{}:
		defer func() { <-x.agent.execSlots }()
	default:
		return refusal(execBusy, fmt.Errorf("host %s runs %d commands already; end one of them and try again", x.agent.Host.Id, maxExecs))
	}
	host, attempt, err := x.agent.talkTo(x.task.Instance)
	if err != nil {
		return refusal("", err)
	}
	start := x.task.Start
	spec := guest.CommandSpec{
		Argv: start.GetArgv(), Env: start.GetEnv(), WorkDir: start.GetWorkdir(), User: start.GetUser(), TTY: start.GetTty(),
		Size: sizeOf(start.GetSize()), Timeout: time.Duration(max(0, start.GetTimeoutMs())) * time.Millisecond,
	}
	with := guest.CommandIO{
		Stdout: execOutput{x, guest.StreamStdout}, Stderr: execOutput{x, guest.StreamStderr}, Resize: x.sizes, Signals: x.signals,
		Started: func(pid int) {
			_ = x.send(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Started{Started: &pinnacev1.ExecStarted{
				Instance: x.task.Instance, Attempt: attempt, Host: x.agent.Host.Id, Pid: uint32(pid),
			}}})
		},
	}
	if start.GetStdin() {
		with.Stdin = x.input
		x.input.taken(guest.InputWindow)
	}
	x.agent.Log.Info("a command begins", "instance", x.task.Instance, "attempt", attempt, "task", x.task.Id)
	result, err := host.Command(ctx, spec, with)
	x.agent.Log.Info("a command has ended", "instance", x.task.Instance, "task", x.task.Id, "code", result.Code, "err", err)
	if err != nil {
		return refusal("", err)
	}
	return &pinnacev1.ServeExecRequest{Message: &pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Ended{Ended: &pinnacev1.ExecEnded{
		Code: uint32(result.Code), Signal: result.Signal, TimedOut: result.TimedOut, Error: result.Error,
	}}}}
}

func sizeOf(s *pinnacev1.TerminalSize) guest.Size {
	return guest.Size{Rows: uint16(min(s.GetRows(), guest.MaxTerminal)), Cols: uint16(min(s.GetColumns(), guest.MaxTerminal))}
}

func refusal(reason string, err error) *pinnacev1.ServeExecRequest {
	known, ok := errors.AsType[*execError](err)
	switch {
	case ok:
		reason = known.reason
	case reason != "":
	case errors.Is(err, guest.ErrNoCommands):
		reason = execUnable
	case errors.Is(err, guest.ErrNotRunning):
		reason = execNotRunning
	case errors.Is(err, guest.ErrBusy):
		reason = execBusy
	default:
		reason = execLost
	}
	return &pinnacev1.ServeExecRequest{Refusal: &pinnacev1.ExecRefusal{Reason: reason, Message: err.Error()}}
}

// send sends a message to the server. When that can't be done, nobody waits for the command any more.
func (x *execution) send(m *pinnacev1.ExecResponse) error {
	x.sendMu.Lock()
	defer x.sendMu.Unlock()
	if err := x.stream.Send(&pinnacev1.ServeExecRequest{Message: m}); err != nil {
		x.cancel(errCallerGone)
		return errCallerGone
	}
	return nil
}

func (x *execution) sendLast(m *pinnacev1.ServeExecRequest) error {
	x.sendMu.Lock()
	defer x.sendMu.Unlock()
	return errors.Join(x.stream.Send(m), x.stream.CloseRequest())
}

// receive acts on what the caller says, without waiting for the command. It returns when there is nobody any more.
func (x *execution) receive() error {
	for {
		m, err := x.stream.Receive()
		if err != nil {
			return errCallerGone
		}
		if m.OutputCredit > 0 {
			x.credit.Give(int(m.OutputCredit))
		}
		switch what := m.GetMessage().GetMessage().(type) {
		case *pinnacev1.ExecRequest_Input:
			if !x.input.put(what.Input) {
				return errors.New("more input came than there was credit for")
			}
		case *pinnacev1.ExecRequest_Size:
			select {
			case <-x.sizes: // only the newest counts
			default:
			}
			x.sizes <- sizeOf(what.Size)
		case *pinnacev1.ExecRequest_Signal:
			select {
			case x.signals <- what.Signal:
			default: // many wait already
			}
		}
	}
}

// execOutput sends one stream of a command.
type execOutput struct {
	*execution
	stream string
}

// Write implements io.Writer.
func (o execOutput) Write(b []byte) (int, error) {
	if !o.credit.Take(o.done, len(b)+guest.FrameCost) {
		return 0, errCallerGone
	}
	err := o.send(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Output{Output: &pinnacev1.ExecOutput{Stream: o.stream, Data: b}}})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// execInput is what the caller has sent and the command has not read.
type execInput struct {
	room  *guest.Credit
	taken func(n int) // tells the caller that there is room for so much more
	more  chan struct{}
	done  <-chan struct{}

	mu    sync.Mutex
	queue [][]byte // guarded by mu; bounded by room
	eof   bool     // guarded by mu
}

// put returns false when there is no room.
func (i *execInput) put(in *pinnacev1.ExecInput) bool {
	if len(in.GetData()) > guest.MaxCommandData || (len(in.GetData()) > 0 && !i.room.Spend(len(in.GetData())+guest.FrameCost)) {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(in.GetData()) > 0 && !i.eof {
		i.queue = append(i.queue, in.GetData())
	}
	i.eof = i.eof || in.GetEof()
	select {
	case i.more <- struct{}{}:
	default:
	}
	return true
}

// Read implements io.Reader.
func (i *execInput) Read(b []byte) (int, error) {
	for {
		i.mu.Lock()
		if len(i.queue) > 0 {
			n := copy(b, i.queue[0])
			whole := n == len(i.queue[0])
			if i.queue[0] = i.queue[0][n:]; whole {
				i.queue = i.queue[1:]
			}
			i.mu.Unlock()
			if whole {
				n += guest.FrameCost
			}
			i.room.Give(n) // before the caller knows of it
			i.taken(n)
			if whole {
				n -= guest.FrameCost
			}
			return n, nil
		}
		eof := i.eof
		i.mu.Unlock()
		if eof {
			return 0, io.EOF
		}
		select {
		case <-i.more:
		case <-i.done:
			return 0, errCallerGone
		}
	}
}
