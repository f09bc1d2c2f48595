package server

import (
	"cmp"
	"context"
	"fmt"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// logReader is one StreamLogs request at work. It belongs to its handler; only the channels are shared.
type logReader struct {
	control *control
	req     *pb.StreamLogsRequest
	// after are the last lines that the caller has, by instance.
	after map[string]*pb.LogPosition
	// asked maps instances to the requests that were made for them, open holds the requests that go on.
	asked map[string]string
	open  map[string]bool

	done  <-chan struct{}
	lines chan *pb.StreamLogsResponse
	ended chan string
	// watchers tell that a request has ended.
	watchers sync.WaitGroup
}

// ask makes a request for each instance that has none yet. While a caller follows an app, new instances join.
func (r *logReader) ask(ctx context.Context, stream *connect.ServerStream[pb.StreamLogsResponse]) error {
	targets, err := r.control.logTargets(r.req)
	if err != nil {
		return err
	}
	if r.open == nil {
		r.open = map[string]bool{}
	}
	added := false
	for _, i := range targets {
		on, _ := r.control.observed.connected(i.Host, r.control.now())
		if r.asked[i.ID] != "" {
			continue
		}
		if !on {
			r.asked[i.ID] = "away"
			err := stream.Send(&pb.StreamLogsResponse{
				Instance: i.ID, Stream: "platform", At: timestamppb.New(r.control.now()),
				Line: fmt.Appendf(nil, "host %s is away: the lines of %s are there, and cannot be read now", i.Host, i.ID),
			})
			if err != nil {
				return err
			}
			continue
		}
		id, err := r.control.newID("log")
		if err != nil {
			return r.control.onWire(ctx, err)
		}
		want := &logWant{
			lines: r.lines, done: r.done, ended: make(chan struct{}),
			request: &pb.LogRequest{Id: id, Instance: i.ID, Follow: r.req.GetFollow()},
		}
		if r.after[i.ID] == nil { // otherwise all lines since are wanted, and has leaves out the rest
			want.request.Tail, want.request.Since = r.req.GetTail(), r.req.GetSince()
		}
		if !r.control.logs.add(id, i.Host, i.ID, want) {
			return refuse(connect.CodeResourceExhausted, "%d logs are read through this server already; end one of the readers", maxLogWants)
		}
		r.asked[i.ID], r.open[id] = id, true
		r.watchers.Go(func() { r.await(id, want) })
		added = true
	}
	if added {
		r.control.asked.fire()
	}
	return nil
}

func logPositions(all []*pb.LogPosition) map[string]*pb.LogPosition {
	m := make(map[string]*pb.LogPosition, len(all))
	for _, p := range all {
		m[p.GetInstance()] = p
	}
	return m
}

// has tells whether the caller has a line already, or does not want it for its age: an agent may be older than these
// questions.
func (r *logReader) has(line *pb.StreamLogsResponse) bool {
	if p := r.after[line.GetInstance()]; p != nil {
		return cmp.Or(cmp.Compare(line.GetAttempt(), p.GetAttempt()), cmp.Compare(line.GetSeq(), p.GetSeq())) <= 0
	}
	since := r.req.GetSince()
	return since != nil && line.GetAt().AsTime().Before(since.AsTime())
}

// await tells the handler when the agent has sent everything.
func (r *logReader) await(id string, want *logWant) {
	select {
	case <-want.ended:
	case <-r.done:
		return
	}
	select {
	case r.ended <- id:
	case <-r.done:
	}
}

// close takes the requests back and waits for what the reader started. The handler has cancelled done.
func (r *logReader) close() {
	for _, id := range r.asked {
		r.control.logs.remove(id)
	}
	r.watchers.Wait()
}
