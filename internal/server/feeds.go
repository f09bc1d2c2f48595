package server

import (
	"maps"
	"slices"
	"sync"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/feed"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// feeds are what many hosts are told alike: the hosts of the fleet, and of each environment its apps, its instances and
// what connections those get. What may have changed is marked (dirt.go), worked out once for all, and encoded once; so
// the work of a change is that of the apps that it is about, and of the hosts that hear of it.
type feeds struct {
	server *Server
	dirt   dirt

	mu           sync.Mutex
	hosts        *feed.Feed                   // guarded by mu
	environments map[string]*environmentFeeds // guarded by mu; by name
	labelled     bool                         // guarded by mu; whether any host is labelled as one that binds public ports
	published    bool                         // guarded by mu; whether all was worked out since somebody follows
	unheard      bool                         // guarded by mu; whether something has changed that not all were woken for

	following sync.Mutex
	followers map[string]map[*follower]struct{} // guarded by following; by host
	count     int                               // guarded by following
}

// environmentFeeds are those of one environment.
type environmentFeeds struct {
	apps, instances, states *feed.Feed
	members                 map[string][]string // by app: which instances of it are in the feeds
	leads                   map[string]bool     // by app: whether it is reached from outside
}

func newFeeds(s *Server) *feeds {
	f := &feeds{
		server: s, hosts: feed.New(pb.FleetFeed_FLEET_FEED_HOSTS, ""), environments: map[string]*environmentFeeds{},
		followers: map[string]map[*follower]struct{}{},
	}
	f.dirt.take = f.publish
	f.dirt.marked.all = true
	return f
}

// environment gives the feeds of an environment. The caller holds mu.
func (f *feeds) environment(name string) *environmentFeeds {
	e := f.environments[name]
	if e == nil {
		e = &environmentFeeds{
			apps:      feed.New(pb.FleetFeed_FLEET_FEED_APPS, name),
			instances: feed.New(pb.FleetFeed_FLEET_FEED_INSTANCES, name),
			states:    feed.New(pb.FleetFeed_FLEET_FEED_STATES, name),
			members:   map[string][]string{}, leads: map[string]bool{},
		}
		f.environments[name] = e
	}
	return e
}

// public reports whether something in the environment is reached from outside, so that hosts lead there that have nothing
// of it themselves.
func (e *environmentFeeds) public() bool {
	for app, leads := range e.leads {
		if leads && len(e.members[app]) > 0 {
			return true
		}
	}
	return false
}

// publish works out what was marked, and wakes those who follow when there is something for them.
func (f *feeds) publish() {
	f.mu.Lock()
	f.published = true
	news := f.work(f.dirt.sweep()) || f.unheard
	f.unheard = false
	f.mu.Unlock()
	if news {
		f.wakeAll(false)
	}
}

// ready has everything worked out that was when somebody came first. The caller holds mu.
func (f *feeds) ready() {
	if !f.published {
		f.published, f.unheard = true, f.work(f.dirt.sweep())
	}
}

// work brings the feeds up to date in what is marked, and tells whether anything is other than it was. The caller holds
// mu. The state is read for one app at a time, so that nobody waits long for it.
func (f *feeds) work(m marks) (news bool) {
	if m.all {
		m.hosts = true
		m.names, m.instances = f.everything(), f.everything()
	}
	if m.hosts {
		news = f.workHosts()
	}
	touched := map[string]bool{}
	for at := range m.names {
		f.workNames(at)
		touched[at.environment] = true
	}
	for at := range m.instances {
		f.workInstances(at)
		touched[at.environment] = true
	}
	for name := range touched {
		e := f.environments[name]
		was := e.public()
		for _, each := range []*feed.Feed{e.apps, e.instances, e.states} {
			news = each.Publish() || news
		}
		news = news || was != e.public()
		if e.apps.Len()+e.instances.Len() == 0 {
			delete(f.environments, name)
			news = true
		}
	}
	return news
}

// everything is all apps that there are, and that there were.
func (f *feeds) everything() map[appAt]bool {
	all := map[appAt]bool{}
	f.server.ledger.read(func(st *fleet.State) {
		for _, app := range st.Apps("") {
			all[appAt{app.Environment, app.Name}] = true
		}
	})
	for name, e := range f.environments {
		for app := range e.leads {
			all[appAt{name, app}] = true
		}
		for app := range e.members {
			all[appAt{name, app}] = true
		}
	}
	return all
}

func (f *feeds) workHosts() (news bool) {
	still := map[string]bool{}
	labelled := false
	var peers []*pb.Peer
	f.server.ledger.read(func(st *fleet.State) {
		for _, h := range st.Hosts() {
			labelled = labelled || isIngress(h)
			// One that was revoked is nobody's peer.
			if admission := st.Admission(h.ID); admission != nil {
				peers = append(peers, &pb.Peer{Host: h.ID, Admission: admission.ID})
			}
		}
	})
	for _, p := range peers {
		p.Address = f.server.observed.peerAddress(p.GetHost())
		f.hosts.Put(p.GetHost(), &pb.FleetChange{Hosts: []*pb.Peer{p}})
		still[p.GetHost()] = true
	}
	for _, host := range f.hosts.Keys() {
		if !still[host] {
			f.hosts.Remove(host)
		}
	}
	if labelled != f.labelled {
		f.labelled = labelled
		f.wakeAll(true) // who binds public ports is in each host's own set
	}
	return f.hosts.Publish()
}

// workNames brings the feed of apps up to date in one of them, until the next Publish.
func (f *feeds) workNames(at appAt) {
	e := f.environment(at.environment)
	var out *pb.AssignedApp
	f.server.ledger.read(func(st *fleet.State) {
		if app := st.App(at.environment, at.app); app != nil {
			out = assignedApp(st, app)
		}
	})
	if out == nil {
		e.apps.Remove(at.app)
		delete(e.leads, at.app)
		return
	}
	e.apps.Put(at.app, &pb.FleetChange{Apps: []*pb.AssignedApp{out}})
	e.leads[at.app] = leadsOutside(out)
}

// workInstances brings the feeds of instances and states up to date in those of one app, until the next Publish.
func (f *feeds) workInstances(at appAt) {
	e := f.environment(at.environment)
	var all []*pb.RemoteInstance
	f.server.ledger.read(func(st *fleet.State) {
		if app := st.App(at.environment, at.app); app != nil {
			all = f.server.elsewhere(st, app, "", f.server.now())
		}
	})
	var members []string
	for _, i := range all {
		id, state := i.GetInstance(), i.GetState()
		i.State = ""
		e.instances.Put(id, &pb.FleetChange{Instances: []*pb.FleetInstance{{App: at.app, Instance: i}}})
		e.states.Put(id, &pb.FleetChange{States: []*pb.InstanceState{{Instance: id, State: state}}})
		members = append(members, id)
	}
	for _, id := range e.members[at.app] {
		if _, still := slices.BinarySearch(members, id); !still { // they are in the order of their ids
			e.instances.Remove(id)
			e.states.Remove(id)
		}
	}
	if e.members[at.app] = members; len(members) == 0 {
		delete(e.members, at.app)
	}
}

// heard is how far a follower has heard of a feed.
type heard struct {
	feed    *feed.Feed
	version uint64
}

// news are the pieces that a follower lacks, which has instances in some environments, and leads connections to other
// hosts or does not. The names are as new as the state, which the follower's own set was made of; everything else is as
// it was worked out last.
func (f *feeds) news(w *follower, here map[string]bool, own ownFacts) (pieces [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ready()
	f.unheard = f.work(marks{names: f.dirt.sweepNames()}) || f.unheard
	wanted := map[*feed.Feed]bool{f.hosts: true}
	order := []*feed.Feed{f.hosts}
	add := func(each ...*feed.Feed) {
		for _, one := range each {
			wanted[one] = true
			order = append(order, one)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.environments)) {
		e := f.environments[name]
		switch {
		case own.leads && (here[name] || own.ingress && e.public()):
			add(e.apps, e.instances, e.states)
		case here[name]:
			add(e.apps)
		}
	}
	for id, h := range w.heard {
		if !wanted[h.feed] {
			// An environment of the same name may be another one by now.
			pieces = append(pieces, h.feed.End())
			delete(w.heard, id)
		}
	}
	for _, each := range order {
		h := w.heard[each.ID()]
		missed, version := each.Since(h.version)
		pieces = append(pieces, missed...)
		w.heard[each.ID()] = heard{each, version}
	}
	return pieces
}
