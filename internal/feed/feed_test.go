package feed

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// reader is somebody who hears of feeds, now and then.
type reader struct {
	known   Known
	version map[ID]uint64
}

func (r *reader) forget() { r.known, r.version = Known{}, map[ID]uint64{} }

// read brings a reader up to date over the wire, in messages of a few pieces.
func (r *reader) read(t *testing.T, feeds ...*Feed) (bytes int) {
	t.Helper()
	for _, f := range feeds {
		pieces, version := f.Since(r.version[f.ID()])
		for _, p := range pieces {
			bytes += r.take(t, p)
		}
		r.version[f.ID()] = version
	}
	return bytes
}

func (r *reader) take(t *testing.T, pieces ...[]byte) int {
	t.Helper()
	msg := &pb.WatchAssignmentsResponse{Revision: 7}
	Attach(msg, pieces...)
	wire, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	var got pb.WatchAssignmentsResponse
	if err := proto.Unmarshal(wire, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.GetFleetChanges()) != len(pieces) || len(got.ProtoReflect().GetUnknown()) > 0 || got.GetRevision() != 7 {
		t.Fatalf("%d pieces are read as %v", len(pieces), &got)
	}
	if err := r.known.Apply(got.GetFleetChanges()); err != nil {
		t.Fatal(err)
	}
	return len(wire)
}

func app(name string, n int) *pb.FleetChange {
	return &pb.FleetChange{Apps: []*pb.AssignedApp{{App: name, VirtualAddress: fmt.Sprint("10.101.0.", n)}}}
}

func instance(app, id, host string) *pb.FleetChange {
	return &pb.FleetChange{Instances: []*pb.FleetInstance{{App: app, Instance: &pb.RemoteInstance{Instance: id, Host: host}}}}
}

func state(id, state string) *pb.FleetChange {
	return &pb.FleetChange{States: []*pb.InstanceState{{Instance: id, State: state}}}
}

// TestReadersAgree: whoever has heard of a feed, at whatever times, knows what somebody knows who has just come.
func TestReadersAgree(t *testing.T) {
	for seed := range uint64(10) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		apps := New(pb.FleetFeed_FLEET_FEED_APPS, "dev")
		instances, states := New(pb.FleetFeed_FLEET_FEED_INSTANCES, "dev"), New(pb.FleetFeed_FLEET_FEED_STATES, "dev")
		all := []*Feed{apps, instances, states}
		model := map[string]string{} // the state of each instance
		readers := make([]reader, 5)
		for i := range readers {
			readers[i].forget()
		}
		apps.Put("web", app("web", 1))
		apps.Publish()
		for step := range 300 {
			id := fmt.Sprint("web-", rnd.IntN(60))
			switch rnd.IntN(5) {
			case 0:
				delete(model, id)
				instances.Remove(id)
				states.Remove(id)
			case 1:
				apps.Put("web", app("web", rnd.IntN(3)))
			default:
				model[id] = []string{"active", "draining", strings.Repeat("x", rnd.IntN(3000))}[rnd.IntN(3)]
				instances.Put(id, instance("web", id, "h1"))
				states.Put(id, state(id, model[id]))
			}
			if rnd.IntN(2) > 0 {
				continue
			}
			for _, f := range all {
				f.Publish()
			}
			for i := range readers {
				if rnd.IntN(1<<i) == 0 { // some come often, some seldom
					if rnd.IntN(20) == 0 {
						readers[i].forget()
					}
					readers[i].read(t, all...)
					readers[i].agrees(t, fmt.Sprintf("seed %d, step %d, reader %d", seed, step, i), model, all)
				}
			}
		}
	}
}

// agrees checks a reader against the model, and against one who has just come.
func (r *reader) agrees(t *testing.T, when string, model map[string]string, feeds []*Feed) {
	t.Helper()
	var fresh reader
	fresh.forget()
	fresh.read(t, feeds...)
	_, want := fresh.known.Fleet("h2")
	_, got := r.known.Fleet("h2")
	if len(got) != 1 || len(want) != 1 || !proto.Equal(got[0], want[0]) {
		t.Fatalf("%s: knows %v, and one who has just come %v", when, got, want)
	}
	have := map[string]string{}
	for _, i := range got[0].GetApps()[0].GetElsewhere() {
		have[i.GetInstance()] = i.GetState()
	}
	if !maps.Equal(have, model) {
		t.Fatalf("%s: knows %v, want %v", when, have, model)
	}
	if r.known.bytes != fresh.known.bytes {
		t.Fatalf("%s: counts %d bytes, and one who has just come %d", when, r.known.bytes, fresh.known.bytes)
	}
}

// TestCostOfAChange: one instance of many that changes costs a message about one, for those who are up to date, and what
// is remembered stays within bounds, however long nobody comes.
func TestCostOfAChange(t *testing.T) {
	f := New(pb.FleetFeed_FLEET_FEED_STATES, "dev")
	for n := range 10000 {
		id := fmt.Sprintf("web-%06d", n)
		f.Put(id, state(id, "active"))
	}
	if !f.Publish() || f.Publish() || f.Len() != 10000 || len(f.Keys()) != 10000 {
		t.Fatalf("%d are there", f.Len())
	}
	var r reader
	r.forget()
	whole := r.read(t, f)
	if pieces, _ := f.Since(0); len(pieces) < whole/MaxPiece {
		t.Errorf("%d bytes come in %d pieces", whole, len(pieces))
	}
	f.Put("web-000001", state("web-000001", "active")) // as it is
	f.Put("web-000002", state("web-000002", "draining"))
	f.Put("web-000002", state("web-000002", "active")) // and back
	f.Remove("web-of-old")
	if f.Publish() {
		t.Error("there is a change, and nothing has changed")
	}
	f.Put("web-000003", state("web-000003", "draining"))
	f.Publish()
	if n := r.read(t, f); n > 200 {
		t.Errorf("a change of one takes %d bytes", n)
	}
	if n := r.read(t, f); n != 0 {
		t.Errorf("no change takes %d bytes", n)
	}
	for n := range 5000 {
		f.Put("web-000004", state("web-000004", fmt.Sprint(n)))
		f.Publish()
	}
	if f.kept > f.bytes+remembered || len(f.recent) == 0 {
		t.Errorf("remembers %d bytes of changes to %d", f.kept, f.bytes)
	}
	if n := r.read(t, f); n > 2*whole {
		t.Errorf("one who was away takes %d bytes, the whole is %d", n, whole)
	}
}

// TestEnd: a feed that ends is forgotten, and nothing else.
func TestEnd(t *testing.T) {
	dev, prod, hosts := New(pb.FleetFeed_FLEET_FEED_APPS, "dev"), New(pb.FleetFeed_FLEET_FEED_APPS, "prod"), New(pb.FleetFeed_FLEET_FEED_HOSTS, "")
	dev.Put("web", app("web", 1))
	prod.Put("web", app("web", 2))
	for _, h := range []string{"h1", "h2", "h3"} {
		hosts.Put(h, &pb.FleetChange{Hosts: []*pb.Peer{{Host: h}}})
	}
	for _, f := range []*Feed{dev, prod, hosts} {
		f.Publish()
	}
	var r reader
	r.forget()
	r.read(t, dev, prod, hosts)
	r.take(t, dev.End())
	peers, environments := r.known.Fleet("h2")
	if len(peers) != 2 || peers[0].GetHost() != "h1" || peers[1].GetHost() != "h3" || len(environments) != 1 || environments[0].GetName() != "prod" {
		t.Errorf("knows %v and %v", peers, environments)
	}
}

// TestHostileChanges: what a server may say wrongly is borne, and does not make an agent grow without bound.
func TestHostileChanges(t *testing.T) {
	var k Known
	odd := []*pb.FleetChange{
		{},
		{Feed: 77, Environment: "dev", Gone: []string{"x"}},
		{Feed: pb.FleetFeed_FLEET_FEED_HOSTS, Hosts: []*pb.Peer{{}}},
		{Feed: pb.FleetFeed_FLEET_FEED_INSTANCES, Environment: "dev", Instances: []*pb.FleetInstance{{}, {App: "web"}}},
		{Feed: pb.FleetFeed_FLEET_FEED_STATES, Environment: "dev", States: []*pb.InstanceState{{}}, Gone: []string{""}},
		{Feed: pb.FleetFeed_FLEET_FEED_APPS, Environment: "dev", Apps: []*pb.AssignedApp{{}}, Ended: true, Whole: true},
	}
	if err := k.Apply(odd); err != nil {
		t.Fatal(err)
	}
	k.Fleet("h1")
	grow := func(change func(n int) *pb.FleetChange) {
		t.Helper()
		k := Known{limit: 1 << 20}
		for n := range 1 << 14 {
			if err := k.Apply([]*pb.FleetChange{change(n)}); err != nil {
				return
			}
		}
		t.Errorf("after so many changes there is no end; it counts %d bytes", k.bytes)
	}
	grow(func(n int) *pb.FleetChange { return &pb.FleetChange{Feed: 77, Environment: fmt.Sprint(n)} })
	grow(func(n int) *pb.FleetChange {
		return &pb.FleetChange{Feed: pb.FleetFeed_FLEET_FEED_APPS, Environment: fmt.Sprint(n)}
	})
	long := strings.Repeat("x", 1000)
	grow(func(n int) *pb.FleetChange {
		return &pb.FleetChange{Feed: pb.FleetFeed_FLEET_FEED_STATES, States: []*pb.InstanceState{{Instance: fmt.Sprint(n), State: long}}}
	})
	// The same ever again is no more than once.
	same := Known{limit: 1 << 20}
	for range 2000 {
		if err := same.Apply([]*pb.FleetChange{{Feed: pb.FleetFeed_FLEET_FEED_STATES, Whole: true, States: []*pb.InstanceState{{Instance: "i", State: long}}}}); err != nil {
			t.Fatal(err)
		}
	}
}
