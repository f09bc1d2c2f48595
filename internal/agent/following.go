package agent

import (
	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/feed"
)

// following is what a stream of assignments has said of the fleet. A server of an earlier version says it all in each set;
// others say what changes, and the sets are of this host alone.
type following struct {
	known     feed.Known
	apart     bool // a set has come that leaves the fleet to changes
	noIngress bool // as that set says
	changed   bool // something has been said that fleet has not given yet
}

// take takes in what a message says of the fleet.
func (f *following) take(msg *pinnacev1.WatchAssignmentsResponse) error {
	f.changed = f.changed || len(msg.FleetChanges) > 0
	return f.known.Apply(msg.FleetChanges)
}

// fleet is what is known once a message is all there, and whether that may be something else than before.
func (f *following) fleet(host string, msg *pinnacev1.WatchAssignmentsResponse) (fleet, bool) {
	switch {
	case msg.Complete && !msg.FleetApart:
		return fleetOf(msg), true
	case msg.Complete:
		f.changed = f.changed || !f.apart || f.noIngress != msg.NoIngress
		f.apart, f.noIngress = true, msg.NoIngress
	}
	if !f.changed || !f.apart {
		return fleet{}, false
	}
	f.changed = false
	peers, environments := f.known.Fleet(host)
	return fleet{environments: environments, peers: peers, noIngress: f.noIngress}, true
}
