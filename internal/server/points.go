package server

import (
	"github.com/pinnacehq/pinnace/internal/failpoint"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// Where the tests kill the server, beside the points of the event log itself: where something is known to one side and
// not yet to the other. docs/design/crashes.md has the list.
var (
	leadsNow      = failpoint.New("server.run.leads")
	reportTaken   = failpoint.New("server.report.taken")
	reportDrained = failpoint.New("server.report.drained")
	assignBefore  = failpoint.New("server.assign.before")
	assignAfter   = failpoint.New("server.assign.after")
	sealedStored  = failpoint.New("server.secret.sealed")

	// decisions are around the append of an event: it is decided and in no log, and it is in the log and nobody was told.
	decisions = decisionPoints(
		(*fleet.TokenCreated)(nil), (*fleet.EnvironmentCreated)(nil), (*fleet.VarsChanged)(nil), (*fleet.SecretPut)(nil),
		(*fleet.JoinAllowed)(nil), (*fleet.HostAdmitted)(nil), (*fleet.HostJoined)(nil), (*fleet.HostRemoved)(nil),
		(*fleet.ReleaseCreated)(nil), (*fleet.DeploymentStarted)(nil), (*fleet.DeploymentSwitched)(nil),
		(*fleet.DeploymentTurnedBack)(nil), (*fleet.DeploymentFinished)(nil), (*fleet.InstancesPlanned)(nil),
		(*fleet.InstanceStarted)(nil), (*fleet.InstanceReady)(nil), (*fleet.InstanceEnded)(nil),
	)
)

// A decision has the points around the append of one type of event.
type decision struct{ before, after *failpoint.Point }

func decisionPoints(of ...fleet.Payload) map[string]decision {
	points := make(map[string]decision, len(of))
	for _, p := range of {
		name := "server." + p.EventType()
		points[p.EventType()] = decision{failpoint.New(name + ".before"), failpoint.New(name + ".after")}
	}
	return points
}

// decided and recorded are the two places of what is appended.
func decided(payloads []fleet.Payload) {
	for _, p := range payloads {
		if d, ok := decisions[p.EventType()]; ok {
			d.before.Hit()
		}
	}
}

func recorded(payloads []fleet.Payload) {
	for _, p := range payloads {
		if d, ok := decisions[p.EventType()]; ok {
			d.after.Hit()
		}
	}
}
