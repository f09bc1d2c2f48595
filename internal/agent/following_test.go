package agent

import (
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// TestFollowing: what is told in changes is known once a set has left the fleet to them, and no half of it before.
func TestFollowing(t *testing.T) {
	var f following
	hear := func(msg *pinnacev1.WatchAssignmentsResponse) (fleet, bool) {
		t.Helper()
		if err := f.take(msg); err != nil {
			t.Fatal(err)
		}
		if msg.More {
			return fleet{}, false
		}
		return f.fleet("h1", msg)
	}
	hosts := func(ids ...string) *pinnacev1.FleetChange {
		c := &pinnacev1.FleetChange{Feed: pinnacev1.FleetFeed_FLEET_FEED_HOSTS}
		for _, id := range ids {
			c.Hosts = append(c.Hosts, &pinnacev1.Peer{Host: id})
		}
		return c
	}
	changes := func(c ...*pinnacev1.FleetChange) *pinnacev1.WatchAssignmentsResponse {
		return &pinnacev1.WatchAssignmentsResponse{FleetChanges: c}
	}
	if _, ok := hear(changes(hosts("h1"))); ok {
		t.Error("there is a fleet before there is a set")
	}
	first := changes(hosts("h2"))
	first.More = true
	hear(first)
	got, ok := hear(&pinnacev1.WatchAssignmentsResponse{Complete: true, FleetApart: true, NoIngress: true})
	if !ok || len(got.peers) != 1 || got.peers[0].Host != "h2" || !got.noIngress {
		t.Errorf("knows %v, %v", got, ok)
	}
	if _, ok := hear(&pinnacev1.WatchAssignmentsResponse{Complete: true, FleetApart: true, NoIngress: true}); ok {
		t.Error("a set of this host alone makes another fleet")
	}
	if got, ok := hear(changes(hosts("h3"))); !ok || len(got.peers) != 2 || !got.noIngress {
		t.Errorf("after a change: knows %v, %v", got, ok)
	}
	if got, ok := hear(&pinnacev1.WatchAssignmentsResponse{Complete: true, FleetApart: true}); !ok || got.noIngress {
		t.Errorf("another host binds public ports no more: knows %v, %v", got, ok)
	}
	// A server of the version before says it all in each set.
	if got, ok := hear(&pinnacev1.WatchAssignmentsResponse{Complete: true, Peers: []*pinnacev1.Peer{{Host: "h9"}}}); !ok || len(got.peers) != 1 || got.peers[0].Host != "h9" {
		t.Errorf("of a whole set: knows %v, %v", got, ok)
	}
}
