//go:build linux

package pid1

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	maxExecs = 4 // commands running beside the workload
	// lateOutput is how long an ended command's output may still be held open by a process that was given it.
	lateOutput = 200 * time.Millisecond
)

// serveExecs runs the commands that the host asks for.
func (b *Boot) serveExecs() {
	slots := make(chan struct{}, maxExecs)
	for request := range b.control.execs {
		slots <- struct{}{}
		safely("exec", func() {
			defer func() { <-slots }()
			result := guest.ExecResult{Code: exitNotRun}
			if err := recovered(func() error { result = b.exec(request); return nil }); err != nil {
				result.Error = err.Error()
			}
			result.ID = request.ID
			b.control.trySend(result)
		})
	}
}

// exec runs one command as the workload's user and waits for it.
func (b *Boot) exec(request guest.Exec) guest.ExecResult {
	if len(request.Argv) == 0 {
		return guest.ExecResult{Code: exitNotFound, Error: "the command is empty"}
	}
	file, err := lookUp(request.Argv[0], lookEnv(b.env, "PATH"), b.workdir, b.user)
	if err != nil {
		return execFailed(err)
	}
	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return execFailed(err)
	}
	defer stdin.Close()
	reader, writer, err := pipe(b.user)
	if err != nil {
		return execFailed(err)
	}
	in := b.newBox()
	defer in.remove()
	c, err := b.processes.start(command{
		path: file, argv: request.Argv, env: b.env, dir: b.workdir, user: b.user, stdin: stdin, stdout: writer, stderr: writer, cgroupFD: in.fd(),
	})
	writer.Close()
	if err != nil {
		reader.Close()
		return execFailed(startError(file, err))
	}
	return b.collect(c, in, reader, time.Duration(request.TimeoutMS)*time.Millisecond)
}

// collect waits for a command, for as long as limit, and for its output. What the command leaves behind ends with it.
func (b *Boot) collect(c *child, in *box, output *os.File, limit time.Duration) guest.ExecResult {
	heads := make(chan guest.ExecResult, 1)
	safely("output of exec", func() {
		defer output.Close()
		heads <- head(output)
	})
	late := time.NewTimer(limit)
	defer late.Stop()
	var status syscall.WaitStatus
	timedOut := false
	select {
	case status = <-c.status:
	case <-late.C:
		timedOut = true
		in.kill(b.processes, c)
		status = <-c.status
	}
	in.kill(b.processes, c)
	_ = output.SetReadDeadline(time.Now().Add(lateOutput)) // of a pipe: always possible
	result := <-heads
	result.TimedOut = timedOut
	result.Code = ending{status: status}.report(false).Code
	return result
}

// head reads all of r and keeps the start.
func head(r io.Reader) guest.ExecResult {
	var result guest.ExecResult
	buf := make([]byte, guest.MaxExecOutput)
	n, err := io.ReadFull(r, buf)
	result.Output = buf[:n]
	if err != nil {
		return result
	}
	more, _ := io.Copy(io.Discard, r) // ends with the writers or the deadline
	result.Truncated = more > 0
	return result
}

func execFailed(err error) guest.ExecResult {
	result := guest.ExecResult{Code: exitNotRun, Error: err.Error()}
	if start, ok := errors.AsType[*execError](err); ok {
		result.Code = start.code
	}
	return result
}
