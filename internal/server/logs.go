package server

import (
	"context"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// maxLogInstances is of how many instances one request may read the logs at a time, and maxLogWants of how many all may
// together.
const (
	maxLogInstances = 256
	maxLogWants     = 64 << 10
)

// logWant is a request for the lines of one instance. They pass through; none are kept.
type logWant struct {
	request *pb.LogRequest
	// lines is what the agent sends; done is closed by whoever asked when it has enough, ended by the agent's
	// side when there are no more.
	lines chan *pb.StreamLogsResponse
	done  <-chan struct{}
	ended chan struct{}
}

// SendLogs takes the lines of one request from an agent.
func (a *agents) SendLogs(ctx context.Context, stream *connect.ClientStream[pb.SendLogsRequest]) (*connect.Response[pb.SendLogsResponse], error) {
	var want *logWant
	for stream.Receive() {
		msg := stream.Msg()
		if want == nil {
			var ok bool
			if want, ok = a.logs.take(msg.GetRequest(), hostOf(ctx).ID); !ok {
				return nil, refuse(connect.CodeNotFound, "nobody waits for the logs of request %q", cut(msg.GetRequest()))
			}
			defer close(want.ended)
		}
		// An agent without lines sends empty messages: this is where it learns that nobody reads.
		select {
		case <-want.done:
			return nil, refuse(connect.CodeCanceled, "nobody reads anymore")
		default:
		}
		for _, line := range msg.GetLines() {
			line.Instance = want.request.GetInstance() // an agent speaks for what it was asked for, and for nothing else
			select {
			case want.lines <- line:
			case <-want.done:
				return nil, refuse(connect.CodeCanceled, "nobody reads anymore")
			case <-ctx.Done():
				return nil, a.onWire(ctx, ctx.Err())
			}
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.SendLogsResponse{}), nil
}

func (c *control) StreamLogs(ctx context.Context, req *connect.Request[pb.StreamLogsRequest], stream *connect.ServerStream[pb.StreamLogsResponse]) error {
	if _, err := c.logTargets(req.Msg); err != nil {
		return err
	}
	if n := len(req.Msg.GetAfter()); n > maxLogInstances {
		return refuse(connect.CodeInvalidArgument, "after: %d positions, there can be %d at most", n, maxLogInstances)
	}
	reading, stop := context.WithCancel(ctx)
	r := &logReader{control: c, req: req.Msg, after: logPositions(req.Msg.GetAfter()), done: reading.Done(), lines: make(chan *pb.StreamLogsResponse), ended: make(chan string), asked: map[string]string{}}
	defer r.close()
	defer stop()
	for {
		changed := c.changed.next()
		if err := r.ask(ctx, stream); err != nil {
			return err
		}
		if len(r.open) == 0 && !req.Msg.GetFollow() {
			return nil
		}
		select {
		case <-ctx.Done():
			return c.onWire(ctx, ctx.Err())
		case line := <-r.lines:
			if r.has(line) {
				continue
			}
			if err := stream.Send(line); err != nil {
				return err
			}
		case id := <-r.ended:
			delete(r.open, id)
		case <-changed:
		}
	}
}

// appLogs are the instances whose logs are meant by the name of an app: those that run, or, when none does,
// the last that did, because what it said last is what somebody wants to know.
func appLogs(st *fleet.State, environment, app string) []*fleet.Instance {
	if running := st.Instances(environment, app); len(running) > 0 {
		return running
	}
	var last *fleet.Instance
	for _, i := range st.EndedInstances(environment, app) {
		if last == nil || i.PlacedAt.After(last.PlacedAt) {
			last = i
		}
	}
	if last == nil {
		return nil
	}
	return []*fleet.Instance{last}
}

// logTargets are the instances that a request means: one, or all of an app.
func (c *control) logTargets(req *pb.StreamLogsRequest) (targets []*fleet.Instance, err error) {
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, req.GetEnvironment()); err != nil {
			return
		}
		if st.App(req.GetEnvironment(), req.GetTarget()) != nil {
			targets = appLogs(st, req.GetEnvironment(), req.GetTarget())
			return
		}
		var i *fleet.Instance
		if i, err = findInstance(st, req.GetEnvironment(), req.GetTarget()); err == nil {
			targets = []*fleet.Instance{i}
		}
	})
	return targets[:min(len(targets), maxLogInstances)], err
}
