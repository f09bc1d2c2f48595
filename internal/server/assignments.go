package server

import (
	"cmp"
	"slices"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// assignments is everything that a host is to run, with what it needs for that: the manifests and images of
// the releases, by digest, and the names and ports of the environments. Its revision is the position in the
// log, so that a later set has a larger one, across restarts of the server too. It is what agents get that do not follow
// changes, and what the others know by now.
func (s *Server) assignments(v *view, host string) (out *pb.WatchAssignmentsResponse) {
	now := s.now()
	v.read(func(st *fleet.State) {
		var here map[string]bool
		out, here = s.ownAssignments(st, host)
		for _, env := range st.Environments() {
			if here[env.Name] {
				out.Environments = append(out.Environments, v.environment(env.Name))
			}
		}
		s.addElsewhere(v, st, host, out, now)
	})
	return out
}

// ownAssignments is what a host is to run itself, and the environments of that.
func (s *Server) ownAssignments(st *fleet.State, host string) (out *pb.WatchAssignmentsResponse, here map[string]bool) {
	out = &pb.WatchAssignmentsResponse{Complete: true, Revision: st.Seq(), RemovedVolumes: append(removedVolumes(st, host), s.observed.straysOn(host)...)}
	h := st.Host(host)
	here = map[string]bool{}
	releases := map[string]bool{}
	for _, i := range st.InstancesOn(host) {
		vars, _ := st.Settings(i)
		asg := &pb.Assignment{
			Instance: i.ID, Environment: i.Environment, App: i.App, Ordinal: uint32(i.Ordinal), Release: string(i.Release),
			Deployment: i.Deployment, Stop: i.Stop, Vars: vars, Parked: parked(st, i), Volumes: assignedVolumes(st, i),
			Secrets: s.assignedSecrets(st, i), Logins: assignedLogins(st, i),
		}
		switch {
		case i.Run != nil: // deliver puts the command in
			asg.Once, asg.Task = true, []string{i.Run.Sealed}
		case i.Task:
			asg.Task = st.Release(i.Release).Manifest.Rollout.Before.Command
		}
		out.Assignments = append(out.Assignments, asg)
		here[i.Environment] = true
		if !releases[string(i.Release)] {
			releases[string(i.Release)] = true
			out.Releases = append(out.Releases, assignedRelease(st.Release(i.Release), h.Architecture))
		}
	}
	slices.SortFunc(out.Assignments, func(a, b *pb.Assignment) int { return cmp.Compare(a.GetInstance(), b.GetInstance()) })
	slices.SortFunc(out.Releases, func(a, b *pb.AssignedRelease) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out, here
}

// parked reports whether an instance is passed over for new connections: in a blue-green deployment one side has all of
// them. When such a deployment turns back, the previous side has them again, beside what is left of the new one.
func parked(st *fleet.State, i *fleet.Instance) bool {
	d := st.Deployment(st.App(i.Environment, i.App).Active)
	if d == nil || i.Run != nil || d.Kind == fleet.KindStop || d.Kind.InPlace() || st.Release(d.Release).Manifest.Rollout.Strategy != manifest.StrategyBlueGreen {
		return false
	}
	if i.Deployment == d.ID {
		return !d.Switched && servesBefore(st, d)
	}
	return d.Switched && d.State == fleet.Running
}

// servesBefore reports whether there was something that served before the deployment.
func servesBefore(st *fleet.State, d *fleet.Deployment) bool {
	previous := st.Deployment(d.Previous)
	return previous != nil && previous.Count > 0
}

func assignedRelease(r *fleet.Release, architecture string) *pb.AssignedRelease {
	out := &pb.AssignedRelease{
		Id: string(r.ID), Image: string(r.Image), ManifestHash: string(r.Hash), ManifestCanonical: []byte(r.Canonical), Sources: r.Sources,
	}
	for _, p := range r.Platforms {
		if p.Architecture == architecture {
			out.Platform = platformProto(p)
		}
	}
	return out
}

// assignedEnvironment lists all apps of an environment: their names are to resolve also on hosts that run none
// of their instances.
func assignedEnvironment(st *fleet.State, name string) *pb.AssignedEnvironment {
	out := &pb.AssignedEnvironment{Name: name}
	for _, app := range st.Apps(name) {
		out.Apps = append(out.Apps, assignedApp(st, app))
	}
	return out
}

func assignedApp(st *fleet.State, app *fleet.App) *pb.AssignedApp {
	v4, v6 := app.VirtualAddresses()
	return &pb.AssignedApp{
		App: app.Name, VirtualAddress: v4.String(), VirtualAddressV6: v6.String(), Ports: assignedPorts(st, app),
		Routes: assignedRoutes(st, app),
	}
}

// assignedPorts are the ports of all releases in force. While one release replaces another they may differ;
// each stays until nothing serves behind it.
func assignedPorts(st *fleet.State, app *fleet.App) []*pb.AssignedPort {
	type place struct {
		name             string
		port, publicPort int
		expose           string
	}
	var out []*pb.AssignedPort
	have := map[place]bool{}
	for _, r := range st.ReleasesInForce(app) {
		for name, p := range r.Manifest.Ports {
			at := place{name, p.Port, p.PublicPort, p.Expose}
			if have[at] {
				continue
			}
			have[at] = true
			out = append(out, &pb.AssignedPort{
				Name: name, Port: uint32(p.Port), Protocol: p.Protocol, Expose: p.Expose, Edge: p.Edge,
				PublicPort: uint32(p.PublicPort), ProxyProtocol: p.ProxyProtocol,
			})
		}
	}
	slices.SortFunc(out, func(a, b *pb.AssignedPort) int {
		return cmp.Or(cmp.Compare(a.GetName(), b.GetName()), cmp.Compare(a.GetPort(), b.GetPort()), cmp.Compare(a.GetPublicPort(), b.GetPublicPort()),
			cmp.Compare(a.GetExpose(), b.GetExpose()))
	})
	return out
}
