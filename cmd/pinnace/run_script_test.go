package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"sync"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// scriptRuns are the one-offs of a scriptAgent.
type scriptRuns struct {
	mu  sync.Mutex
	all map[string]*scriptRun // guarded by mu; by instance
}

// scriptRun is a one-off that runs on this machine, or has.
type scriptRun struct {
	stop context.CancelFunc
	done chan struct{} // closed when all of its lines are there

	mu    sync.Mutex
	lines []*pinnacev1.StreamLogsResponse // guarded by mu
}

// runOnce runs the command of a one-off on this machine, as agent, guest and image would, or has it stop.
func (a *scriptAgent) runOnce(ctx context.Context, asg *pinnacev1.Assignment, parts *sync.WaitGroup) {
	a.runs.mu.Lock()
	defer a.runs.mu.Unlock()
	if a.runs.all == nil {
		a.runs.all = map[string]*scriptRun{}
	}
	r := a.runs.all[asg.Instance]
	if r == nil {
		var running context.Context
		r = &scriptRun{done: make(chan struct{})}
		running, r.stop = context.WithCancel(ctx)
		a.runs.all[asg.Instance] = r
		parts.Go(func() {
			end := r.run(running, a.dir, asg)
			report := &pinnacev1.InstanceReport{Instance: asg.Instance, Attempt: 1, State: "ended", Final: true, End: end, Booted: &pinnacev1.Booted{Driver: "none"}}
			_, _ = a.client.Report(ctx, connect.NewRequest(&pinnacev1.ReportRequest{Host: a.id, Instances: []*pinnacev1.InstanceReport{report}})) // the script ends
		})
	}
	if asg.Stop {
		r.stop()
	}
}

func (r *scriptRun) run(ctx context.Context, dir string, asg *pinnacev1.Assignment) *pinnacev1.Cause {
	defer close(r.done)
	cmd := exec.CommandContext(ctx, asg.Task[0], asg.Task[1:]...)
	cmd.Dir, cmd.Cancel = dir, func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	for name, value := range asg.Vars {
		cmd.Env = append(cmd.Environ(), name+"="+value)
	}
	var reading sync.WaitGroup
	var ends []io.Closer
	for name, to := range map[string]*io.Writer{guest.StreamStdout: &cmd.Stdout, guest.StreamStderr: &cmd.Stderr} {
		out, in := io.Pipe()
		*to = in
		ends = append(ends, in)
		reading.Go(func() { r.read(name, out) })
	}
	err := cmd.Run()
	for _, end := range ends {
		_ = end.Close()
	}
	reading.Wait()
	end := &pinnacev1.Cause{Kind: "exited", Planned: ctx.Err() != nil, At: timestamppb.Now()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		end.Code = int32(exit.ExitCode())
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			end.Kind, end.Code, end.Signal = "signalled", 0, unix.SignalName(status.Signal())
		}
	} else if err != nil {
		end.Kind, end.Stage, end.Code, end.Detail = "start_failed", "exec", 127, err.Error()
	}
	return end
}

// read keeps the lines of a stream.
func (r *scriptRun) read(stream string, from io.Reader) {
	for lines := bufio.NewScanner(from); lines.Scan(); {
		r.mu.Lock()
		r.lines = append(r.lines, &pinnacev1.StreamLogsResponse{
			Attempt: 1, Seq: uint64(len(r.lines) + 1), Stream: stream, At: timestamppb.Now(), Line: append([]byte(nil), lines.Bytes()...),
		})
		r.mu.Unlock()
	}
}

// sendLogs sends the lines of a one-off: those that are there, or with follow all to its end.
func (a *scriptAgent) sendLogs(ctx context.Context, req *pinnacev1.LogRequest) {
	a.runs.mu.Lock()
	r := a.runs.all[req.Instance]
	a.runs.mu.Unlock()
	stream := a.client.SendLogs(ctx)
	msg := &pinnacev1.SendLogsRequest{Request: req.Id}
	if r != nil {
		if req.Follow {
			select {
			case <-r.done:
			case <-ctx.Done():
			}
		}
		r.mu.Lock()
		msg.Lines = r.lines
		r.mu.Unlock()
	}
	_ = stream.Send(msg) // who does not read any more has gone
	_, _ = stream.CloseAndReceive()
}
