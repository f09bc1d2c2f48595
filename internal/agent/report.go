package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// reportLoop tells the server what runs: soon after something changed, and as a heartbeat. A report that
// does not arrive is no loss, because each one holds everything.
func (a *Agent) reportLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.reportc:
			// What changes together is reported together.
			select {
			case <-ctx.Done():
				return
			case <-time.After(a.timing.reportSpacing):
			}
		case <-time.After(a.timing.heartbeat):
		}
		err := a.report(ctx, min(a.timing.call, heartbeatReport))
		if err != nil && ctx.Err() == nil {
			a.Log.Debug("report", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(jittered(a.timing.reconnect)):
				a.changed()
			}
		}
	}
}

// heartbeatReport bounds a report: one that is stuck must not cost the next ones, or the host would count as away.
const heartbeatReport = 4 * time.Second

// lastReport bounds the report with which an agent takes its leave: nobody waits long for a server that is away.
const lastReport = 2 * time.Second

// report sends the state of all instances. It takes patience at most.
func (a *Agent) report(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	a.mu.Lock()
	req := &pinnacev1.ReportRequest{Host: a.Host.Id, Revision: a.acted}
	for _, inst := range a.instances {
		req.Instances = append(req.Instances, inst.report())
	}
	a.mu.Unlock()
	req.Volumes, req.VolumesListed = a.volumeReports()
	slices.SortFunc(req.Instances, func(x, y *pinnacev1.InstanceReport) int { return strings.Compare(x.Instance, y.Instance) })
	if err := a.heads.refusal(); err != nil {
		return err // it would decide on an older state
	}
	res, err := a.Server.Report(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	return a.heads.remember(res.Msg.Head, false)
}
