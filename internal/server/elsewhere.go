package server

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// labelIngress is the label of hosts that public ports are bound on. Where no host has it, all of them are.
const labelIngress = "ingress"

// What connections an instance on another host gets.
const (
	remoteActive   = "active"
	remoteDraining = "draining"
	remoteNone     = "none"
)

// reachedAt notes where other hosts' proxies reach that of a host, which its agent says when it joins, and tells whether
// that is news.
func (o *observed) reachedAt(host, address string) (news bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.host(host)
	news = h.peerAddress != address
	h.peerAddress = address
	return news
}

// checkPeerAddress refuses what other hosts cannot connect to.
func checkPeerAddress(address string) error {
	if address == "" {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() || at.Addr().IsMulticast() || at.Addr().Zone() != "" {
		return refuse(connect.CodeInvalidArgument, "peer address %q: want where other hosts reach this one, such as 192.0.2.7:7402", cut(address))
	}
	return nil
}

func (o *observed) peerAddress(host string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.hosts[host]; h != nil {
		return h.peerAddress
	}
	return ""
}

// addElsewhere adds to a host's set what it has to know to lead connections to other hosts: which there are, and what
// runs on them of the environments that it serves. A host that has not said where it is reached itself leads none.
func (s *Server) addElsewhere(v *view, st *fleet.State, host string, out *pb.WatchAssignmentsResponse, now time.Time) {
	for _, h := range st.Hosts() {
		// One that was revoked is nobody's peer.
		if admission := st.Admission(h.ID); h.ID != host && admission != nil {
			out.Peers = append(out.Peers, &pb.Peer{Host: h.ID, Address: s.observed.peerAddress(h.ID), Admission: admission.ID})
		}
	}
	out.NoIngress = !bindsPublic(st, host)
	if s.observed.peerAddress(host) == "" {
		return
	}
	here := map[string]*pb.AssignedEnvironment{}
	for _, e := range out.Environments {
		here[e.GetName()] = e
	}
	for _, env := range st.Environments() {
		e := here[env.Name]
		if e == nil {
			if out.NoIngress {
				continue
			}
			e = v.environment(env.Name)
		}
		public := false
		for _, app := range e.GetApps() {
			app.Elsewhere = s.elsewhere(st, st.App(env.Name, app.GetApp()), host, now)
			if len(app.GetElsewhere()) > 0 && leadsOutside(app) {
				public = true
			}
		}
		if here[env.Name] == nil && public {
			out.Environments = append(out.Environments, e)
		}
	}
	slices.SortFunc(out.Environments, func(a, b *pb.AssignedEnvironment) int { return cmp.Compare(a.GetName(), b.GetName()) })
}

// bindsPublic reports whether public ports are bound on a host.
func bindsPublic(st *fleet.State, host string) bool {
	h := st.Host(host)
	return h != nil && isIngress(h) || !slices.ContainsFunc(st.Hosts(), isIngress)
}

// isIngress reports whether a host is labelled as one that binds public ports.
func isIngress(h *fleet.Host) bool {
	return h.Labels[labelIngress] != "" && h.Labels[labelIngress] != "false"
}

// leadsOutside reports whether an app is reached from outside its environment.
func leadsOutside(app *pb.AssignedApp) bool {
	return len(app.GetRoutes()) > 0 || slices.ContainsFunc(app.GetPorts(), func(p *pb.AssignedPort) bool { return p.GetExpose() == manifest.ExposePublic })
}

// elsewhere are the instances of an app that other hosts than one have, and what connections they get.
func (s *Server) elsewhere(st *fleet.State, app *fleet.App, host string, now time.Time) []*pb.RemoteInstance {
	var out []*pb.RemoteInstance
	served, away := false, map[*pb.RemoteInstance]bool{} // by a host that is there
	for _, i := range st.Instances(app.Environment, app.Name) {
		if i.Final || i.Task {
			continue
		}
		seen := s.observed.instance(i.ID)
		r := &pb.RemoteInstance{Instance: i.ID, Ordinal: uint32(i.Ordinal), Host: i.Host, Ports: portsOf(st.Release(i.Release).Manifest)}
		if seen.report != nil {
			r.State = remoteState(st, i, seen.report.GetState())
		}
		on, _ := s.observed.connected(i.Host, now)
		away[r] = !on
		served = served || on && r.GetState() == remoteActive
		if i.Host != host {
			out = append(out, r)
		}
	}
	for _, r := range out {
		// What is on a host that is away may still be there; while others are, nobody need find out.
		if away[r] && served && r.GetState() == remoteActive {
			r.State = remoteDraining
		}
	}
	slices.SortFunc(out, func(a, b *pb.RemoteInstance) int { return cmp.Compare(a.GetInstance(), b.GetInstance()) })
	return out
}

// remoteState is what connections an instance gets that says of itself that it is in a state.
func remoteState(st *fleet.State, i *fleet.Instance, state string) string {
	switch state {
	case stateReady:
		if i.Stop || parked(st, i) {
			return remoteDraining
		}
		return remoteActive
	case "unready", stateStopping:
		return remoteDraining
	default:
		return remoteNone
	}
}

func portsOf(m *manifest.Manifest) []*pb.AssignedPort {
	var out []*pb.AssignedPort
	for name, p := range m.Ports {
		out = append(out, &pb.AssignedPort{
			Name: name, Port: uint32(p.Port), Protocol: p.Protocol, Expose: p.Expose, Edge: p.Edge,
			PublicPort: uint32(p.PublicPort), ProxyProtocol: p.ProxyProtocol,
		})
	}
	slices.SortFunc(out, func(a, b *pb.AssignedPort) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}
