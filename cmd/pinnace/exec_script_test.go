package main

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// scriptAgent is a host that says of everything assigned to it that it is ready, and runs commands on this machine.
type scriptAgent struct {
	id     string
	client pinnacev1connect.AgentServiceClient
	dir    string // where commands run
	runs   scriptRuns
}

// runAgent starts a scriptAgent until the script ends: agent NAME. It follows "host NAME ARCH MEMORY".
func runAgent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: agent NAME")
	}
	a := &scriptAgent{id: args[0], dir: ts.MkAbs("."), client: hostClient(ts, args[0])}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := a.client.WatchAssignments(ctx, connect.NewRequest(&pinnacev1.WatchAssignmentsRequest{Host: a.id}))
	ts.Check(err)
	var parts sync.WaitGroup
	parts.Go(func() {
		for stream.Receive() {
			a.act(ctx, stream.Msg(), &parts)
		}
		_ = stream.Close()
	})
	ts.Defer(func() {
		cancel()
		parts.Wait()
	})
}

func (a *scriptAgent) act(ctx context.Context, msg *pinnacev1.WatchAssignmentsResponse, parts *sync.WaitGroup) {
	for _, task := range msg.ExecTasks {
		parts.Go(func() { a.exec(ctx, task) })
	}
	for _, req := range msg.LogRequests {
		parts.Go(func() { a.sendLogs(ctx, req) })
	}
	if !msg.Complete {
		return
	}
	report := &pinnacev1.ReportRequest{Host: a.id, Revision: msg.Revision}
	for _, asg := range msg.Assignments {
		if asg.Once {
			a.runOnce(ctx, asg, parts)
			continue
		}
		r := &pinnacev1.InstanceReport{Instance: asg.Instance, Attempt: 1, State: "ready", ReadyAt: timestamppb.Now(), Booted: &pinnacev1.Booted{Driver: "none"}}
		if asg.Stop {
			r.State, r.Final, r.End = "ended", true, &pinnacev1.Cause{Kind: "exited", Planned: true, At: timestamppb.Now()}
		}
		report.Instances = append(report.Instances, r)
	}
	_, _ = a.client.Report(ctx, connect.NewRequest(report)) // the script ends
}

// exec runs a command, and stands in for agent, guest and image.
func (a *scriptAgent) exec(ctx context.Context, task *pinnacev1.ExecTask) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := a.client.ServeExec(ctx)
	var sending sync.Mutex
	say := func(m *pinnacev1.ExecResponse) {
		sending.Lock()
		defer sending.Unlock()
		_ = stream.Send(&pinnacev1.ServeExecRequest{Task: task.Id, Message: m})
	}
	credit := guest.NewCredit(int(task.OutputCredit))
	stdin, input := io.Pipe()
	inputs := make(chan *pinnacev1.ExecInput, 1+guest.InputWindow/guest.FrameCost)
	say(nil)
	cmd := exec.CommandContext(ctx, task.Start.Argv[0], task.Start.Argv[1:]...)
	cmd.Dir, cmd.Env = a.dir, append([]string{"WHO=" + task.Start.User}, task.Start.Env...)
	if task.Start.Stdin {
		cmd.Stdin = stdin
	}
	out := func(stream string) io.Writer {
		return writerFunc(func(b []byte) (int, error) {
			for n := 0; n < len(b); {
				data := b[n:min(len(b), n+guest.MaxCommandData)]
				if !credit.Take(ctx.Done(), len(data)+guest.FrameCost) {
					return n, ctx.Err()
				}
				say(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Output{Output: &pinnacev1.ExecOutput{Stream: stream, Data: data}}})
				n += len(data)
			}
			return len(b), nil
		})
	}
	cmd.Stdout, cmd.Stderr = out(guest.StreamStdout), out(guest.StreamStderr)
	ended := &pinnacev1.ExecEnded{}
	if err := cmd.Start(); err != nil {
		ended.Code, ended.Error = 127, "run "+task.Start.Argv[0]+": "+err.Error()
	} else {
		say(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Started{Started: &pinnacev1.ExecStarted{Instance: task.Instance, Attempt: 1, Host: a.id}}})
		say(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_InputCredit{InputCredit: guest.InputWindow}})
		go func() {
			defer cancel()
			for {
				m, err := stream.Receive()
				if err != nil {
					return
				}
				credit.Give(int(m.OutputCredit))
				if in := m.Message.GetInput(); in != nil {
					inputs <- in
				}
				if m.Message.GetSignal() == "INT" {
					_ = cmd.Process.Signal(syscall.SIGINT)
				}
			}
		}()
		go func() {
			defer input.Close()
			for in := range inputs {
				_, _ = input.Write(in.Data)
				say(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_InputCredit{InputCredit: uint32(len(in.Data) + guest.FrameCost)}})
				if in.Eof {
					return
				}
			}
		}()
		err := cmd.Wait()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			status := exit.Sys().(syscall.WaitStatus)
			ended.Code = uint32(status.ExitStatus())
			if status.Signaled() {
				ended.Code = 128 + uint32(status.Signal())
			}
		}
	}
	say(&pinnacev1.ExecResponse{Message: &pinnacev1.ExecResponse_Ended{Ended: ended}})
	sending.Lock()
	_ = stream.CloseRequest()
	sending.Unlock()
	<-ctx.Done()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
