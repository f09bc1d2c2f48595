package local_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/local"
)

// heard is what a server has been told.
type heard struct {
	reports  chan string
	lines    chan string
	answered chan string
	full     error // what Lines answers
}

func newServer(t *testing.T, h *heard) *local.Server {
	t.Helper()
	h.reports, h.lines, h.answered = make(chan string, 10), make(chan string, 10), make(chan string, 10)
	s := local.New(local.Options{
		Report: func(revision uint64, instances []*pinnacev1.InstanceReport) {
			text := fmt.Sprint(revision)
			for _, i := range instances {
				text += " " + i.Instance
			}
			h.reports <- text
		},
		Lines: func(lines []*pinnacev1.StreamLogsResponse) error {
			for _, l := range lines {
				h.lines <- string(l.Line)
			}
			return h.full
		},
		Answered: func(request string) { h.answered <- request },
	})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// receive waits for what comes next.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing comes")
		panic("not reached")
	}
}

// TestSets: an agent gets what is wanted when it comes, and each set that is wanted later.
func TestSets(t *testing.T) {
	s := newServer(t, &heard{})
	stream, err := s.Client().WatchAssignments(within(t), connect.NewRequest(&pinnacev1.WatchAssignmentsRequest{Host: "local"}))
	if err != nil {
		t.Fatal(err)
	}
	next := func() string {
		t.Helper()
		if !stream.Receive() {
			t.Fatal(stream.Err())
		}
		m := stream.Msg()
		text := fmt.Sprintf("%d %v", m.Revision, m.Complete)
		for _, a := range m.Assignments {
			text += fmt.Sprintf(" %s %v", a.Instance, a.Stop)
		}
		return text
	}
	if got, want := next(), "1 true"; got != want {
		t.Fatalf("at first: got %q, want %q", got, want)
	}
	set := &pinnacev1.WatchAssignmentsResponse{Assignments: []*pinnacev1.Assignment{{Instance: "app-1"}}}
	if got := s.Run(set); got != 2 {
		t.Errorf("the first set has revision %d", got)
	}
	if got, want := next(), "2 true app-1 false"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	set.Assignments[0].Stop = true // what was given is not looked at any more
	s.Run(set)
	if got, want := next(), "3 true app-1 true"; got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
	if set.Revision != 0 {
		t.Error("Run changed what it was given")
	}
}

// TestReportsAndLines: what an agent says is heard, in order.
func TestReportsAndLines(t *testing.T) {
	h := &heard{}
	client := newServer(t, h).Client()
	ctx := within(t)
	if _, err := client.Join(ctx, connect.NewRequest(&pinnacev1.JoinRequest{Host: &pinnacev1.HostFacts{Id: "local"}})); err != nil {
		t.Fatal(err)
	}
	_, err := client.Report(ctx, connect.NewRequest(&pinnacev1.ReportRequest{
		Host: "local", Revision: 7, Instances: []*pinnacev1.InstanceReport{{Instance: "app-1"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got := receive(t, h.reports); got != "7 app-1" {
		t.Errorf("report: got %q", got)
	}
	stream := client.SendLogs(ctx)
	for _, lines := range [][]string{nil, {"one", "two"}, {strings.Repeat("x", 200<<10)}, {"three"}} {
		req := &pinnacev1.SendLogsRequest{Request: "output"}
		for _, l := range lines {
			req.Lines = append(req.Lines, &pinnacev1.StreamLogsResponse{Line: []byte(l)})
		}
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stream.CloseAndReceive(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two", strings.Repeat("x", 200<<10), "three"} {
		if got := receive(t, h.lines); got != want {
			t.Errorf("line: got %.20q, want %.20q", got, want)
		}
	}
	if got := receive(t, h.answered); got != "output" {
		t.Errorf("answered: got %q", got)
	}
}

// TestLinesThatNobodyTakes: the agent is told to send no more.
func TestLinesThatNobodyTakes(t *testing.T) {
	h := &heard{full: errors.New("broken pipe")}
	stream := newServer(t, h).Client().SendLogs(within(t))
	if err := stream.Send(&pinnacev1.SendLogsRequest{Request: "output", Lines: []*pinnacev1.StreamLogsResponse{{Line: []byte("one")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndReceive(); connect.CodeOf(err) != connect.CodeAborted {
		t.Errorf("got %v", err)
	}
	if got := receive(t, h.answered); got != "output" {
		t.Errorf("answered: got %q", got)
	}
}

// TestClose: streams end, and nobody connects any more.
func TestClose(t *testing.T) {
	s := local.New(local.Options{})
	client := s.Client()
	stream, err := client.WatchAssignments(within(t), connect.NewRequest(&pinnacev1.WatchAssignmentsRequest{}))
	if err != nil || !stream.Receive() {
		t.Fatal(err, stream.Err())
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if stream.Receive() {
		t.Error("the stream goes on")
	}
	if _, err := client.Join(within(t), connect.NewRequest(&pinnacev1.JoinRequest{})); err == nil {
		t.Error("it answers still")
	}
}

// TestExec: a caller and the agent talk about a command, through a socket and through the server.
func TestExec(t *testing.T) {
	s := newServer(t, &heard{})
	socket := filepath.Join(t.TempDir(), "exec.sock")
	if err := os.WriteFile(socket, nil, 0o600); err != nil { // what a killed one has left
		t.Fatal(err)
	}
	if err := s.Listen(socket); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info, err)
	}
	caller := local.Dial(socket)
	start := &pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Start{Start: &pinnacev1.ExecStart{Argv: []string{"sh"}}}}
	begin := func() *connect.BidiStreamForClient[pinnacev1.ExecRequest, pinnacev1.ExecResponse] {
		t.Helper()
		stream := caller.Exec(within(t))
		if err := stream.Send(start); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	if _, err := begin().Receive(); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("with nothing that runs: got %v", err)
	}
	s.Run(&pinnacev1.WatchAssignmentsResponse{Assignments: []*pinnacev1.Assignment{{Instance: "app-1"}}})
	agent := s.Client()
	watch, err := agent.WatchAssignments(within(t), connect.NewRequest(&pinnacev1.WatchAssignmentsRequest{}))
	if err != nil || !watch.Receive() {
		t.Fatal(err, watch.Err())
	}
	next := func() *pinnacev1.ExecTask {
		t.Helper()
		for watch.Receive() {
			if tasks := watch.Msg().ExecTasks; len(tasks) > 0 {
				return tasks[0]
			}
		}
		t.Fatal(watch.Err())
		return nil
	}
	serve := func(task *pinnacev1.ExecTask) *connect.BidiStreamForClient[pinnacev1.ServeExecRequest, pinnacev1.ServeExecResponse] {
		t.Helper()
		stream := agent.ServeExec(within(t))
		if err := stream.Send(&pinnacev1.ServeExecRequest{Task: task.Id}); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	say := func(to *connect.BidiStreamForClient[pinnacev1.ServeExecRequest, pinnacev1.ServeExecResponse], m *pinnacev1.ExecResponse) {
		t.Helper()
		if err := to.Send(&pinnacev1.ServeExecRequest{Message: m}); err != nil {
			t.Fatal(err)
		}
	}

	stream := begin()
	task := next()
	if task.Instance != "app-1" || task.Start.Argv[0] != "sh" || task.OutputCredit == 0 {
		t.Errorf("task: got %v", task)
	}
	serving := serve(task)
	if err := stream.Send(&pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Signal{Signal: "INT"}}); err != nil {
		t.Fatal(err)
	}
	if m, err := serving.Receive(); err != nil || m.Message.GetSignal() != "INT" {
		t.Errorf("to the agent: got %v, %v", m, err)
	}
	for range 20 { // more than there is credit for at first
		say(serving, &pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Output{Output: &pinnacev1.ExecOutput{Data: make([]byte, 16<<10)}}})
	}
	credit := 0
	for range 20 {
		m, err := stream.Receive()
		if err != nil || len(m.GetOutput().GetData()) != 16<<10 {
			t.Fatalf("to the caller: got %v, %v", m, err)
		}
	}
	for credit < 20*(16<<10)-64<<10 {
		m, err := serving.Receive()
		if err != nil {
			t.Fatal(err)
		}
		credit += int(m.OutputCredit)
	}
	say(serving, &pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Ended{Ended: &pinnacev1.ExecEnded{Code: 7}}})
	if m, err := stream.Receive(); err != nil || m.GetEnded().GetCode() != 7 {
		t.Errorf("the end: got %v, %v", m, err)
	}
	if _, err := stream.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: got %v", err)
	}

	stream = begin()
	refused := serve(next())
	if err := refused.Send(&pinnacev1.ServeExecRequest{Refusal: &pinnacev1.ExecRefusal{Reason: "busy", Message: "too many"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Receive(); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "too many") {
		t.Errorf("refused: got %v", err)
	}

	ctx, leave := context.WithCancel(within(t))
	stream = caller.Exec(ctx)
	if err := stream.Send(start); err != nil {
		t.Fatal(err)
	}
	serving = serve(next())
	leave()
	if _, err := serving.Receive(); err == nil {
		t.Error("the agent is not told that the caller has gone")
	}
	if _, err := serve(&pinnacev1.ExecTask{Id: task.Id}).Receive(); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a task that is over: got %v", err)
	}
}
