package feed

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

const (
	// MaxKnown bounds what a Known takes in, in bytes: a hundred times what 10,000 instances take.
	MaxKnown = 128 << 20
	// each is what a thing takes beside its encoding, about.
	each = 256
)

// Known is what changes have said. The zero value knows nothing. It is not safe for use by several goroutines.
type Known struct {
	feeds map[ID]map[string]thing
	bytes int
	limit int // MaxKnown when 0
}

type thing struct {
	message proto.Message
	bytes   int
}

// Apply takes changes in, in their order. After an error the Known is of no use any more.
func (k *Known) Apply(changes []*pb.FleetChange) error {
	if k.feeds == nil {
		k.feeds = map[ID]map[string]thing{}
	}
	for _, c := range changes {
		if err := k.apply(c); err != nil {
			return err
		}
	}
	return nil
}

func (k *Known) apply(c *pb.FleetChange) error {
	id := ID{c.GetFeed(), c.GetEnvironment()}
	if c.GetWhole() || c.GetEnded() {
		k.drop(id)
	}
	if c.GetEnded() {
		return nil
	}
	things := k.feeds[id]
	if things == nil {
		things = map[string]thing{}
		k.feeds[id] = things
		k.bytes += each + len(id.Environment)
	}
	put := func(key string, m proto.Message) {
		n := proto.Size(m) + each
		k.bytes += n - things[key].bytes
		things[key] = thing{m, n}
	}
	// Of a feed of a later version there is nothing here that could be understood: it stays empty.
	switch id.Kind {
	case pb.FleetFeed_FLEET_FEED_HOSTS:
		for _, h := range c.GetHosts() {
			put(h.GetHost(), h)
		}
	case pb.FleetFeed_FLEET_FEED_APPS:
		for _, a := range c.GetApps() {
			put(a.GetApp(), a)
		}
	case pb.FleetFeed_FLEET_FEED_INSTANCES:
		for _, i := range c.GetInstances() {
			if i.GetInstance() != nil {
				put(i.GetInstance().GetInstance(), i)
			}
		}
	case pb.FleetFeed_FLEET_FEED_STATES:
		for _, s := range c.GetStates() {
			put(s.GetInstance(), s)
		}
	case pb.FleetFeed_FLEET_FEED_UNSPECIFIED:
	}
	for _, key := range c.GetGone() {
		k.bytes -= things[key].bytes
		delete(things, key)
	}
	if limit := cmp.Or(k.limit, MaxKnown); k.bytes > limit {
		return fmt.Errorf("the server says more of the fleet than the %d MiB that this host is ready to know", limit>>20)
	}
	return nil
}

func (k *Known) drop(id ID) {
	things, ok := k.feeds[id]
	if !ok {
		return
	}
	for _, t := range things {
		k.bytes -= t.bytes
	}
	k.bytes -= each + len(id.Environment)
	delete(k.feeds, id)
}

// Fleet is what a host knows by now, as sets for agents that do not follow have it: the other hosts by id, and the
// environments by name, with what runs on other hosts. It is the caller's.
func (k *Known) Fleet(host string) (peers []*pb.Peer, environments []*pb.AssignedEnvironment) {
	for _, t := range k.feeds[ID{Kind: pb.FleetFeed_FLEET_FEED_HOSTS}] {
		if p, ok := t.message.(*pb.Peer); ok && p.GetHost() != host {
			peers = append(peers, proto.CloneOf(p))
		}
	}
	slices.SortFunc(peers, func(a, b *pb.Peer) int { return cmp.Compare(a.GetHost(), b.GetHost()) })
	for id, apps := range k.feeds {
		if id.Kind != pb.FleetFeed_FLEET_FEED_APPS {
			continue
		}
		env := &pb.AssignedEnvironment{Name: id.Environment}
		elsewhere := k.elsewhere(id.Environment, host)
		for name, t := range apps {
			known, ok := t.message.(*pb.AssignedApp)
			if !ok {
				continue
			}
			app := proto.CloneOf(known)
			app.Elsewhere = elsewhere[name]
			env.Apps = append(env.Apps, app)
		}
		slices.SortFunc(env.GetApps(), func(a, b *pb.AssignedApp) int { return cmp.Compare(a.GetApp(), b.GetApp()) })
		environments = append(environments, env)
	}
	slices.SortFunc(environments, func(a, b *pb.AssignedEnvironment) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return peers, environments
}

// elsewhere are the instances of an environment on other hosts than one, by app.
func (k *Known) elsewhere(environment, host string) map[string][]*pb.RemoteInstance {
	states := k.feeds[ID{pb.FleetFeed_FLEET_FEED_STATES, environment}]
	out := map[string][]*pb.RemoteInstance{}
	for id, t := range k.feeds[ID{pb.FleetFeed_FLEET_FEED_INSTANCES, environment}] {
		i, ok := t.message.(*pb.FleetInstance)
		if !ok || i.GetInstance().GetHost() == host {
			continue
		}
		remote := proto.CloneOf(i.GetInstance())
		if s, ok := states[id].message.(*pb.InstanceState); ok {
			remote.State = s.GetState()
		}
		out[i.GetApp()] = append(out[i.GetApp()], remote)
	}
	for _, all := range out {
		slices.SortFunc(all, func(a, b *pb.RemoteInstance) int { return cmp.Compare(a.GetInstance(), b.GetInstance()) })
	}
	return out
}
