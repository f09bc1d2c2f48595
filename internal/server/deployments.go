package server

import (
	"context"
	"fmt"
	"math"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

func (c *control) ListDeployments(ctx context.Context, req *connect.Request[pb.ListDeploymentsRequest]) (*connect.Response[pb.ListDeploymentsResponse], error) {
	environment, name := req.Msg.GetEnvironment(), req.Msg.GetApp()
	out := &pb.ListDeploymentsResponse{}
	var err error
	c.ledger.read(func(st *fleet.State) {
		if _, err = environmentIn(st, environment); err != nil {
			return
		}
		if name != "" {
			if _, err = appIn(st, environment, name); err != nil {
				return
			}
		}
		out.Deployments, out.NextPageToken, err = pageOf(req.Msg, st.Deployments(environment, name), newestDeployment, deploymentProto)
	})
	if err != nil {
		return nil, c.onWire(ctx, err)
	}
	return connect.NewResponse(out), nil
}

// newestDeployment is text that is ordered as fleet orders deployments.
func newestDeployment(d *fleet.Deployment) string {
	return fmt.Sprintf("%020d %s", math.MaxInt64-d.StartedAt.UnixNano(), d.ID)
}
