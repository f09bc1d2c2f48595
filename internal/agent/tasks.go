package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/volume"
)

const (
	// maxTasks is how many tasks of the server are done at a time, connections to ports included.
	maxTasks = 128
	// maxForwardData is the most that one message of a connection carries, in bytes.
	maxForwardData = 32 << 10
	// dialPatience is how long a port of an instance may take to accept a connection.
	dialPatience = 10 * time.Second
)

// taskError is why a task is not done, with the word for it that is on the wire.
type taskError struct {
	reason string
	err    error
}

func (e *taskError) Error() string { return e.err.Error() }
func (e *taskError) Unwrap() error { return e.err }

func taskFailed(reason, format string, args ...any) error {
	return &taskError{reason, fmt.Errorf(format, args...)}
}

// errand is a task with the stream that it is talked over.
type errand struct {
	agent  *Agent
	stream *connect.BidiStreamForClient[pinnacev1.ServeTaskRequest, pinnacev1.ServeTaskResponse]
	id     string
	// gone is closed when the server's side is over; nil while nobody listens to it.
	gone chan struct{}
}

// listen takes what the server says until its side is over, in the background. Nobody else may receive then.
func (e *errand) listen(each func(*pinnacev1.ServeTaskResponse)) {
	e.gone = make(chan struct{})
	go func() {
		defer close(e.gone)
		for {
			m, err := e.stream.Receive()
			if err != nil {
				return
			}
			each(m)
		}
	}()
}

// serveTask does a task of the server, and tells how it went.
func (a *Agent) serveTask(ctx context.Context, task *pinnacev1.HostTask) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e := &errand{agent: a, stream: a.Server.ServeTask(ctx), id: task.Id}
	// As long as there may be more to send, nobody who receives hears of the end of ctx.
	stop := context.AfterFunc(ctx, func() { _ = e.stream.CloseRequest() })
	defer stop()
	if err := e.stream.Send(&pinnacev1.ServeTaskRequest{Task: task.Id}); err != nil {
		a.Log.Debug("answer a task", "task", task.Id, "err", err)
	}
	var done *pinnacev1.TaskDone
	var err error
	select {
	case a.taskSlots <- struct{}{}:
		done, err = e.do(ctx, task)
		<-a.taskSlots
	default:
		err = taskFailed("busy", "host %s does %d tasks already; try again later", a.Host.Id, maxTasks)
	}
	last := &pinnacev1.ServeTaskRequest{Done: done}
	if err != nil {
		a.Log.Info("a task was not done", "task", task.Id, "err", err)
		last = &pinnacev1.ServeTaskRequest{Refusal: refusalOf(err)}
	}
	if err := errors.Join(e.stream.Send(last), e.stream.CloseRequest()); err != nil {
		a.Log.Debug("tell how a task went", "task", task.Id, "err", err)
		return
	}
	// The server ends the stream when it has everything; whoever cancels before takes it away.
	late := time.AfterFunc(a.timing.call, cancel)
	defer late.Stop()
	if e.gone == nil {
		e.listen(func(*pinnacev1.ServeTaskResponse) {})
	}
	<-e.gone
	_ = e.stream.CloseResponse() // it is over
}

func (e *errand) do(ctx context.Context, task *pinnacev1.HostTask) (*pinnacev1.TaskDone, error) {
	switch what := task.What.(type) {
	case *pinnacev1.HostTask_Forward:
		return &pinnacev1.TaskDone{}, e.forward(ctx, what.Forward)
	case *pinnacev1.HostTask_Snapshot:
		return e.snapshot(ctx, what.Snapshot)
	case *pinnacev1.HostTask_Export:
		return &pinnacev1.TaskDone{}, e.export(ctx, what.Export)
	case *pinnacev1.HostTask_Import:
		return e.receiveImage(ctx, what.Import)
	default:
		return nil, taskFailed("refused", "the agent of host %s is older than the server, and does not know this task", e.agent.Host.Id)
	}
}

func refusalOf(err error) *pinnacev1.TaskRefusal {
	reason := "failed"
	known, ok := errors.AsType[*taskError](err)
	switch {
	case ok:
		reason = known.reason
	case errors.Is(err, volume.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		reason = "not-found"
	case errors.Is(err, volume.ErrExists):
		reason = "exists"
	case errors.Is(err, volume.ErrHeld):
		reason = "held"
	case errors.Is(err, volume.ErrImage):
		reason = "invalid"
	}
	return &pinnacev1.TaskRefusal{Reason: reason, Message: err.Error()}
}

// forward connects the caller with a port of an instance, until both have nothing more to say or one is gone.
func (e *errand) forward(ctx context.Context, task *pinnacev1.ForwardTask) error {
	env, address, err := e.agent.addressOf(task.Instance)
	if err != nil {
		return err
	}
	conn, err := e.agent.dial(ctx, env, address, task.Port)
	if err != nil {
		return taskFailed("refused", "port %d of instance %s: %w", task.Port, task.Instance, err)
	}
	end := func() { _ = conn.Close() } // whoever reads or writes it is told
	defer end()
	if err := e.stream.Send(&pinnacev1.ServeTaskRequest{Connected: true}); err != nil {
		return err
	}
	said := make(chan struct{}) // closed when the caller has said all
	hush := sync.OnceFunc(func() { close(said) })
	e.listen(func(m *pinnacev1.ServeTaskResponse) {
		if _, err := conn.Write(m.Data); len(m.Data) > 0 && err != nil {
			end()
		}
		if m.Eof {
			if half, ok := conn.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // the other direction tells when it is broken
			}
			hush()
		}
	})
	over := make(chan struct{})
	defer close(over)
	go func() { // it ends with this function
		select {
		case <-e.gone:
			end() // nobody is there any more
		case <-ctx.Done():
			end()
		case <-over:
		}
	}()
	buf := make([]byte, maxForwardData)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := e.stream.Send(&pinnacev1.ServeTaskRequest{Data: append([]byte(nil), buf[:n]...)}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			err = e.stream.Send(&pinnacev1.ServeTaskRequest{Eof: true})
			select {
			case <-said:
			case <-e.gone:
			case <-ctx.Done():
			}
			return err
		}
		if err != nil {
			return taskFailed("failed", "the connection to port %d of instance %s broke: %w", task.Port, task.Instance, err)
		}
	}
}

func (a *Agent) dial(ctx context.Context, env, address string, port uint32) (net.Conn, error) {
	at, err := netip.ParseAddr(address)
	if err != nil || port == 0 || port > 65535 {
		return nil, fmt.Errorf("%q and %d are no address and port", address, port)
	}
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	return a.Network.Dial(ctx, env, netip.AddrPortFrom(at, uint16(port)))
}

// addressOf is where an instance is in its environment.
func (a *Agent) addressOf(instance string) (env, address string, err error) {
	if _, _, err := a.talkTo(instance); err != nil {
		return "", "", &taskError{"refused", err}
	}
	a.mu.Lock()
	i := a.instances[instance]
	a.mu.Unlock()
	if i == nil {
		return "", "", taskFailed("not-found", "instance %s is not on host %s", instance, a.Host.Id)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.assignment.Environment, i.status.Address, nil
}

func (e *errand) snapshot(ctx context.Context, task *pinnacev1.SnapshotTask) (*pinnacev1.TaskDone, error) {
	a := e.agent
	defer a.shelf.stale()
	if task.Delete {
		return &pinnacev1.TaskDone{}, a.volumes.RemoveSnapshot(task.Volume, task.Snapshot)
	}
	if err := e.whileWanted(ctx, func(ctx context.Context) error { return a.SnapshotVolume(ctx, task.Volume, task.Snapshot) }); err != nil {
		return nil, err
	}
	info, err := a.volumes.Stat(task.Volume)
	if err != nil {
		return nil, err
	}
	return &pinnacev1.TaskDone{Volume: volumeReport(info)}, nil
}

// whileWanted does something for as long as the server's side of the stream is there.
func (e *errand) whileWanted(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	e.listen(func(*pinnacev1.ServeTaskResponse) {})
	over := make(chan struct{})
	defer close(over)
	go func() { // it ends with this function
		select {
		case <-e.gone:
			cancel(errCallerGone)
		case <-over:
		}
	}()
	return do(ctx)
}

// export sends the image of a volume as it is now, or of a snapshot.
func (e *errand) export(ctx context.Context, task *pinnacev1.ExportTask) error {
	return e.whileWanted(ctx, func(ctx context.Context) error {
		f, size, err := e.agent.openImage(ctx, task, e.id)
		if err != nil {
			return err
		}
		defer f.Close()
		start := &pinnacev1.ImageStart{SizeBytes: size, DataBytes: dataBytes(f)}
		if err := e.stream.Send(&pinnacev1.ServeTaskRequest{ImageStart: start}); err != nil {
			return err
		}
		sum, err := volume.ReadImage(ctx, f, size, func(offset int64, part []byte) error {
			return e.stream.Send(&pinnacev1.ServeTaskRequest{ImageData: &pinnacev1.ImageData{Offset: offset, Data: part}})
		})
		if err != nil {
			return err
		}
		return e.stream.Send(&pinnacev1.ServeTaskRequest{ImageEnd: &pinnacev1.ImageEnd{Sha256: sum[:]}})
	})
}

// receiveImage makes a volume of the image that comes.
func (e *errand) receiveImage(ctx context.Context, task *pinnacev1.ImportTask) (*pinnacev1.TaskDone, error) {
	a, size := e.agent, task.GetImage().GetSizeBytes()
	err := a.volumes.Import(ctx, task.Volume, size, func(f *os.File) error {
		w := volume.NewImageWriter(f, size)
		for {
			m, err := e.stream.Receive()
			switch {
			case err != nil:
				return fmt.Errorf("the image was cut off: %w", err)
			case m.ImageEnd != nil:
				return w.End(m.ImageEnd.Sha256)
			case m.ImageData == nil:
			default:
				if err := w.Part(m.ImageData.Offset, m.ImageData.Data); err != nil {
					return err
				}
			}
		}
	})
	if err != nil {
		return nil, err
	}
	a.shelf.stale()
	info, err := a.volumes.Stat(task.Volume)
	if err != nil {
		return nil, err
	}
	a.changed()
	return &pinnacev1.TaskDone{Volume: volumeReport(info)}, nil
}
