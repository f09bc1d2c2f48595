package agent

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/volume"
)

// fakeTask is the server's side of a task.
type fakeTask struct {
	say  chan *pinnacev1.ServeTaskResponse
	said chan *pinnacev1.ServeTaskRequest
}

// ServeTask passes on what the test says, and to the test what the agent says.
func (s *fakeServer) ServeTask(ctx context.Context, stream *connect.BidiStream[pinnacev1.ServeTaskRequest, pinnacev1.ServeTaskResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	s.mu.Lock()
	task := s.errands[first.Task]
	s.mu.Unlock()
	if task == nil {
		return errors.New("no such task")
	}
	over := make(chan struct{})
	go func() { // it ends with the request
		defer close(over)
		defer close(task.said)
		for {
			m, err := stream.Receive()
			if err != nil {
				return
			}
			select {
			case task.said <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case m, ok := <-task.say:
			if !ok {
				return nil // the caller is gone
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errand gives the agent a task.
func (l *lab) errand(task *pinnacev1.HostTask) *fakeTask {
	e := &fakeTask{say: make(chan *pinnacev1.ServeTaskResponse), said: make(chan *pinnacev1.ServeTaskRequest)}
	l.server.change(func() {
		if l.server.errands == nil {
			l.server.errands = map[string]*fakeTask{}
		}
		l.server.errands[task.Id] = e
		l.server.handed = append(l.server.handed, task)
	})
	return e
}

// last is what a task ends with; what comes before is counted in bytes.
func (e *fakeTask) last(t *testing.T) (refusal *pinnacev1.TaskRefusal, parts []*pinnacev1.ServeTaskRequest) {
	t.Helper()
	for m := range e.said {
		if m.Done != nil || m.Refusal != nil {
			return m.Refusal, parts
		}
		parts = append(parts, m)
	}
	return nil, parts
}

// TestTasks: a volume is exported and comes back from what was sent; a port that nobody listens on, an instance that is
// not there and what cannot be done are refused in words.
func TestTasks(t *testing.T) {
	needMkfs(t)
	l := newLab(t).start()
	l.assign("dev", "db-0", l.app("db", atOnceReady, "[volumes.data]", "path = \"/data\"", "size = \"64MiB\""), bind("data=one"))
	l.awaitState("db-0", stateReady)
	l.stop("db-0")
	l.awaitEnd("db-0")

	refusal, parts := l.errand(&pinnacev1.HostTask{Id: "t1", What: &pinnacev1.HostTask_Export{Export: &pinnacev1.ExportTask{Volume: "one"}}}).last(t)
	if refusal != nil || len(parts) < 3 || parts[0].ImageStart.GetSizeBytes() != 64<<20 || len(parts[len(parts)-1].ImageEnd.GetSha256()) != 32 {
		t.Fatalf("got %v, %d parts", refusal, len(parts))
	}
	if left := l.volume("one").Snapshots; len(left) > 0 {
		t.Errorf("the export has left %v", left)
	}
	image := &pinnacev1.ImageStart{SizeBytes: 64 << 20}
	in := l.errand(&pinnacev1.HostTask{Id: "t2", What: &pinnacev1.HostTask_Import{Import: &pinnacev1.ImportTask{Volume: "two", Image: image}}})
	for _, p := range parts[1:] {
		in.say <- &pinnacev1.ServeTaskResponse{ImageData: p.ImageData, ImageEnd: p.ImageEnd}
	}
	if refusal, _ := in.last(t); refusal != nil || l.volume("two").Size != 64<<20 {
		t.Errorf("the import: %v", refusal)
	}
	cutOff := l.errand(&pinnacev1.HostTask{Id: "t3", What: &pinnacev1.HostTask_Import{Import: &pinnacev1.ImportTask{Volume: "three", Image: image}}})
	cutOff.say <- &pinnacev1.ServeTaskResponse{ImageData: parts[1].ImageData}
	close(cutOff.say)
	for range cutOff.said { // why it was not done, when the server is still there to hear it
	}
	l.poll("nothing of what was cut off is left", func() bool {
		temps, err := filepath.Glob(filepath.Join(l.dir, "data", "volumes", ".tmp-*"))
		if err != nil || len(temps) > 0 {
			return false
		}
		_, err = l.agent.volumes.Stat("three")
		return errors.Is(err, volume.ErrNotFound)
	})

	for want, task := range map[string]*pinnacev1.HostTask{
		"not-found": {Id: "t4", What: &pinnacev1.HostTask_Export{Export: &pinnacev1.ExportTask{Volume: "none"}}},
		"exists":    {Id: "t5", What: &pinnacev1.HostTask_Import{Import: &pinnacev1.ImportTask{Volume: "two", Image: image}}},
		"refused":   {Id: "t6", What: &pinnacev1.HostTask_Forward{Forward: &pinnacev1.ForwardTask{Instance: "none", Port: 80}}},
	} {
		e := l.errand(task)
		if refusal, _ := e.last(t); refusal.GetReason() != want || refusal.GetMessage() == "" {
			t.Errorf("%s: got %v", want, refusal)
		}
	}
}
