package agent

import (
	"context"
	"sort"
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
			case <-time.After(reportSpacing):
			}
		case <-time.After(heartbeatEvery):
		}
		callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := a.report(callCtx)
		cancel()
		if err != nil && ctx.Err() == nil {
			a.Log.Debug("report", "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(reconnectAfter):
				a.changed()
			}
		}
	}
}

// report sends the state of all instances.
func (a *Agent) report(ctx context.Context) error {
	a.mu.Lock()
	req := &pinnacev1.ReportRequest{Host: a.Host.Id, Revision: a.acted}
	for _, inst := range a.instances {
		req.Instances = append(req.Instances, inst.report())
	}
	a.mu.Unlock()
	sort.Slice(req.Instances, func(i, j int) bool { return req.Instances[i].Instance < req.Instances[j].Instance })
	_, err := a.Server.Report(ctx, connect.NewRequest(req))
	return err
}
