package server

import (
	"context"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// keepAlive is how often a stream that has nothing to say says so, for both ends to notice a dead connection.
const keepAlive = 15 * time.Second

func (c *control) WatchDeployment(ctx context.Context, req *connect.Request[pb.WatchDeploymentRequest], stream *connect.ServerStream[pb.WatchDeploymentResponse]) error {
	id := req.Msg.GetDeployment()
	var after position
	if text := req.Msg.GetAfter(); text != "" {
		var ok bool
		if after, ok = parsePosition(text); !ok {
			return refuse(connect.CodeInvalidArgument, "after: %q is no position of a transition", cut(text))
		}
	}
	sent := c.journals.behind(id, after)
	for {
		changed := c.changed.next()
		// The record first: when it says that the deployment has ended, all of its lines are there.
		var d *fleet.Deployment
		c.ledger.read(func(st *fleet.State) { d = st.Deployment(id) })
		if d == nil {
			return noDeployment(id)
		}
		if !d.Active() {
			c.ledger.awaitTold() // the state is there a moment before the line that tells of it
		}
		lines := c.journals.since(id, sent)
		for _, line := range lines {
			if err := stream.Send(withDeployment(line, d)); err != nil {
				return err
			}
		}
		sent += len(lines)
		switch {
		case !d.Active() && sent == 0: // so long ago that nobody kept its journal
			level, text := closing(d)
			return stream.Send(&pb.WatchDeploymentResponse{At: timestampOrNil(d.EndedAt), Level: level, Text: text, Deployment: deploymentProto(d)})
		case !d.Active() && len(lines) == 0: // the last line was sent before the end was seen
			return stream.Send(&pb.WatchDeploymentResponse{At: timestampOrNil(d.EndedAt), Level: levelInfo, Position: req.Msg.GetAfter(), Deployment: deploymentProto(d)})
		case !d.Active():
			return nil
		}
		select {
		case <-ctx.Done():
			return c.onWire(ctx, ctx.Err())
		case <-changed:
		}
	}
}

// withDeployment is a line with the deployment as it is now. Lines are shared, so it is a copy.
func withDeployment(line *pb.WatchDeploymentResponse, d *fleet.Deployment) *pb.WatchDeploymentResponse {
	return &pb.WatchDeploymentResponse{
		At: line.GetAt(), Text: line.GetText(), Instance: line.GetInstance(), Level: line.GetLevel(), LogTail: line.GetLogTail(),
		Position: line.GetPosition(), Deployment: deploymentProto(d),
	}
}
