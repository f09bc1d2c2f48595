package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

type agentExec = connect.BidiStreamForClient[pb.ServeExecRequest, pb.ServeExecResponse]

// serveExec answers a task as its command says: cat sends its input back, flood sends as much as it has credit for and
// then notes what else comes, lost hangs up, refuse refuses, silent never answers.
func (a *fakeAgent) serveExec(ctx context.Context, task *pb.ExecTask) {
	what := task.GetStart().GetArgv()[0]
	if what == "silent" {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := a.client.ServeExec(ctx)
	_ = stream.Send(&pb.ServeExecRequest{Task: task.GetId()})
	say := func(m *pb.ExecResponse) { _ = stream.Send(&pb.ServeExecRequest{Message: m}) }
	ended := &pb.ExecEnded{}
	if what != "refuse" {
		say(&pb.ExecResponse{Message: &pb.ExecResponse_Started{Started: &pb.ExecStarted{Instance: task.GetInstance(), Host: a.id}}})
	}
	switch what {
	case "cat":
		a.cat(stream, say)
		ended.Code = 42
	case "flood":
		a.flood(stream, int(task.GetOutputCredit()), say)
		return
	case "lost":
		return
	case "refuse":
		_ = stream.Send(&pb.ServeExecRequest{Refusal: &pb.ExecRefusal{Reason: task.GetStart().GetArgv()[1], Message: "it says no"}})
		_ = stream.CloseRequest()
		_, _ = stream.Receive()
		return
	}
	say(&pb.ExecResponse{Message: &pb.ExecResponse_Ended{Ended: ended}})
	_ = stream.CloseRequest()
	_, _ = stream.Receive()
}

func (a *fakeAgent) cat(stream *agentExec, say func(*pb.ExecResponse)) {
	say(&pb.ExecResponse{Message: &pb.ExecResponse_InputCredit{InputCredit: 64 << 10}})
	for {
		m, err := stream.Receive()
		if err != nil {
			return
		}
		note := ""
		switch what := m.GetMessage().GetMessage().(type) {
		case *pb.ExecRequest_Input:
			if what.Input.GetEof() {
				return
			}
			note = string(what.Input.GetData())
		case *pb.ExecRequest_Size:
			note = fmt.Sprintf("<%dx%d>", what.Size.GetRows(), what.Size.GetColumns())
		case *pb.ExecRequest_Signal:
			note = "<" + what.Signal + ">"
		default:
			continue
		}
		say(&pb.ExecResponse{Message: &pb.ExecResponse_Output{Output: &pb.ExecOutput{Stream: "stdout", Data: []byte(note)}}})
	}
}

// flood spends all credit that it gets, until nobody waits for the command.
func (a *fakeAgent) flood(stream *agentExec, credit int, say func(*pb.ExecResponse)) {
	data := make([]byte, maxExecData)
	_, _ = rand.Read(data) // documented never to fail; nothing on the way can make it smaller
	credit -= execCost     // for the start
	for {
		for ; credit >= len(data)+execCost; credit -= len(data) + execCost {
			say(&pb.ExecResponse{Message: &pb.ExecResponse_Output{Output: &pb.ExecOutput{Stream: "stdout", Data: data}}})
		}
		m, err := stream.Receive()
		if err != nil {
			a.mu.Lock()
			a.ended = append(a.ended, err.Error())
			a.mu.Unlock()
			return
		}
		credit += int(m.GetOutputCredit())
	}
}

type callerExec = connect.BidiStreamForClient[pb.ExecRequest, pb.ExecResponse]

func (p *plane) exec(ctx context.Context, target string, argv ...string) *callerExec {
	p.t.Helper()
	stream := p.client.Exec(ctx)
	err := stream.Send(&pb.ExecRequest{Message: &pb.ExecRequest_Start{Start: &pb.ExecStart{Environment: "dev", Target: target, Argv: argv, User: "web", Tty: true}}})
	if err != nil && !errors.Is(err, io.EOF) {
		p.t.Fatal(err)
	}
	return stream
}

// outcome reads to the end of a command.
func outcome(stream *callerExec) (output string, ended *pb.ExecEnded, err error) {
	for {
		m, err := stream.Receive()
		if err != nil {
			return output, ended, err
		}
		output += string(m.GetOutput().GetData())
		if m.GetEnded() != nil {
			ended = m.GetEnded()
		}
	}
}

func TestExec(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	id := p.instances("dev", false)[0].GetId()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, target := range []string{"api", "api/0", id, id[:8]} {
		stream := p.exec(ctx, target, "cat", "a secret")
		if m, err := stream.Receive(); err != nil || m.GetStarted().GetInstance() != id || m.GetStarted().GetHost() != "h1" {
			t.Fatalf("%s: got %v, %v", target, m, err)
		}
		if m, err := stream.Receive(); err != nil || m.GetInputCredit() != 64<<10 {
			t.Fatalf("%s: got %v, %v", target, m, err)
		}
		for _, m := range []*pb.ExecRequest{
			{Message: &pb.ExecRequest_Input{Input: &pb.ExecInput{Data: []byte("hello ")}}},
			{Message: &pb.ExecRequest_Size{Size: &pb.TerminalSize{Rows: 24, Columns: 80}}},
			{Message: &pb.ExecRequest_Signal{Signal: "INT"}},
		} {
			if err := stream.Send(m); err != nil {
				t.Fatal(err)
			}
		}
		if err := stream.CloseRequest(); err != nil { // says that there is no more input
			t.Fatal(err)
		}
		output, ended, err := outcome(stream)
		if output != "hello <24x80><INT>" || ended.GetCode() != 42 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: got %q, %v, %v", target, output, ended, err)
		}
	}
	p.eventually("no task is left", func() bool {
		p.execs.mu.Lock()
		defer p.execs.mu.Unlock()
		return len(p.execs.wants) == 0
	})

	found := 0
	for e, err := range p.ledger.log.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(e.Payload), "a secret") {
			t.Errorf("an argument is in the log: %s", e.Payload)
		}
		if e.Type == "exec.requested" {
			found++
			if want := `{"instance":"` + id + `","program":"cat","arguments":1,"user":"web","terminal":true}`; string(e.Payload) != want || e.Actor != firstToken || e.Stream != "instance/"+id {
				t.Errorf("got %s by %s in %s, want %s", e.Payload, e.Actor, e.Stream, want)
			}
		}
	}
	if found != 4 {
		t.Errorf("%d events of 4 commands", found)
	}
}

func TestExecRefused(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	id := p.instances("dev", false)[0].GetId()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for _, tc := range []struct {
		target string
		argv   []string
		code   connect.Code
		part   string
	}{
		{"nobody", []string{"x"}, connect.CodeNotFound, "does not exist"},
		{"api/7", []string{"x"}, connect.CodeNotFound, "no instance 7"},
		{"api", nil, connect.CodeInvalidArgument, "there is no command"},
		{"api", []string{"lost"}, connect.CodeUnavailable, "the connection to host h1 broke"},
		{"api", []string{"refuse", "not-running"}, connect.CodeFailedPrecondition, "it says no"},
		{"api", []string{"refuse", "unable"}, connect.CodeFailedPrecondition, "it says no"},
		{"api", []string{"refuse", "busy"}, connect.CodeResourceExhausted, "it says no"},
		{"api", []string{"refuse", "lost"}, connect.CodeUnavailable, "it says no"},
	} {
		_, _, err := outcome(p.exec(ctx, tc.target, tc.argv...))
		wantCode(t, err, tc.code, tc.part)
	}

	// Places for commands are few.
	for n := range maxExecs {
		p.execs.add(fmt.Sprint(n), "", "", &execTask{task: &pb.ExecTask{Id: fmt.Sprint(n)}})
	}
	_, _, err := outcome(p.exec(ctx, "api", "cat"))
	wantCode(t, err, connect.CodeResourceExhausted, "128 commands")
	for n := range maxExecs {
		p.execs.remove(fmt.Sprint(n))
	}

	// One that has ended, and one that is on its way.
	if _, err := p.client.Stop(ctx, connect.NewRequest(&pb.StopRequest{Environment: "dev", App: "api"})); err != nil {
		t.Fatal(err)
	}
	p.eventually("it has ended", func() bool { return len(p.instances("dev", false)) == 0 })
	_, _, err = outcome(p.exec(ctx, id, "cat"))
	wantCode(t, err, connect.CodeFailedPrecondition, "has ended")
	_, _, err = outcome(p.exec(ctx, "api", "cat"))
	wantCode(t, err, connect.CodeFailedPrecondition, "no instance of api runs")
	let := a.hold()
	defer let()
	p.deploy("dev", p.release(text("api", 80, ""), "v2"))
	p.pulls("dev")
	_, _, err = outcome(p.exec(ctx, "api", "cat"))
	wantCode(t, err, connect.CodeFailedPrecondition, "has not started yet: it is pulling")
}

// TestExecHostAway: a host that does not answer, and one that is gone.
func TestExecHostAway(t *testing.T) {
	p := newPlane(t)
	p.hostTimeout = 300 * time.Millisecond
	p.kill()
	p.boot()
	p.environment("dev")
	a := p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	a.stop()
	p.eventually("the host is away", func() bool { return p.instances("dev", false)[0].GetState() == stateUnknown })
	_, _, err := outcome(p.exec(ctx, "api", "cat"))
	wantCode(t, err, connect.CodeUnavailable, "is away")
}

// TestExecFlood: the server holds little of what nobody reads, the agent's other calls go on, and the command is taken
// back with who has asked for it.
func TestExecFlood(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var streams []*callerExec
	for range 8 { // together more than a connection takes
		stream := p.exec(ctx, "api", "flood")
		streams = append(streams, stream)
		if _, err := stream.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	p.eventually("all have sent what they may", func() bool {
		p.execs.mu.Lock()
		defer p.execs.mu.Unlock()
		for _, want := range p.execs.wants {
			task := want.what
			task.mu.Lock()
			left, held := task.credit, 0
			for _, m := range task.came {
				held += len(m.GetMessage().GetOutput().GetData())
			}
			task.mu.Unlock()
			if held > execWindow {
				t.Fatalf("the server holds %d bytes of one command", held)
			}
			if left > maxExecData+execCost {
				return false
			}
		}
		return true
	})
	before, _ := p.observed.connected("h1", time.Now())
	lines := 0
	logs, err := p.client.StreamLogs(t.Context(), connect.NewRequest(&pb.StreamLogsRequest{Environment: "dev", Target: "api"}))
	if err != nil {
		t.Fatal(err)
	}
	for logs.Receive() {
		lines++
	}
	if on, _ := p.observed.connected("h1", time.Now()); !on || !before || lines != 3 {
		t.Errorf("beside the flood: connected %v, then %v, %d lines", before, on, lines)
	}
	cancel()
	for _, stream := range streams {
		_ = stream.CloseRequest() // an open one keeps the client from taking note of its context
	}
	p.eventually("the agent knows that nobody waits", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.ended) == 8
	})
}

// TestExecOverrun: an agent that sends more than it may loses its stream.
func TestExecOverrun(t *testing.T) {
	task := &execTask{credit: 3 * execCost, more: make(chan struct{}, 1)}
	output := &pb.ServeExecRequest{Message: &pb.ExecResponse{Message: &pb.ExecResponse_Output{Output: &pb.ExecOutput{Data: []byte("x")}}}}
	for range 2 {
		if err := task.put(output); err != nil {
			t.Fatal(err)
		}
	}
	wantCode(t, task.put(output), connect.CodeResourceExhausted, "credit")
	big := &pb.ServeExecRequest{Message: &pb.ExecResponse{Message: &pb.ExecResponse_Output{Output: &pb.ExecOutput{Data: make([]byte, maxExecData+1)}}}}
	wantCode(t, task.put(big), connect.CodeInvalidArgument, "in one message")
	ended := &pb.ServeExecRequest{Message: &pb.ExecResponse{Message: &pb.ExecResponse_Ended{Ended: &pb.ExecEnded{}}}}
	task.credit = 0
	if err := task.put(ended); err != nil {
		t.Errorf("the end needs credit: %v", err)
	}
	wantCode(t, task.put(ended), connect.CodeInvalidArgument, "had ended")
}

// TestLogsNobodyReads: logs that nobody reads, as of "pinnace logs | less", fill what is buffered for their stream, and
// the reports of the same agent come through still.
func TestLogsNobodyReads(t *testing.T) {
	p := newPlane(t)
	p.environment("dev")
	a := p.agent("h1")
	p.watch(p.deploy("dev", p.release(text("api", 80, ""), "v1")).GetId())
	a.mu.Lock()
	a.chatty = true
	a.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		stream, err := p.client.StreamLogs(ctx, connect.NewRequest(&pb.StreamLogsRequest{Environment: "dev", Target: "api"}))
		if err != nil {
			t.Fatal(err)
		}
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
	}
	p.eventually("the agent cannot send more", func() bool { return a.stalled() })
	call, done := context.WithTimeout(t.Context(), patience)
	defer done()
	for range 3 {
		if _, err := a.client.Report(call, connect.NewRequest(&pb.ReportRequest{Host: "h1"})); err != nil {
			t.Fatalf("a report beside logs that nobody reads: %v", err)
		}
	}
}
