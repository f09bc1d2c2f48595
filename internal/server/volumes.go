package server

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

// volumeError says why an instance can't have its volumes. It is as final as a lack of room: others may change it.
type volumeError struct{ reason string }

func (e *volumeError) Error() string { return e.reason }

func noVolume(format string, args ...any) error { return &volumeError{fmt.Sprintf(format, args...)} }

// boundHosts has the hosts of the ordinals whose volumes are somewhere.
func boundHosts(st *fleet.State, environment string, m *manifest.Manifest, ordinals []int) (map[int]string, error) {
	if len(m.Volumes) == 0 {
		return nil, nil
	}
	bound := map[int]string{}
	for _, ordinal := range ordinals {
		host, name := "", ""
		for _, volume := range slices.Sorted(maps.Keys(m.Volumes)) {
			v := st.VolumeOf(environment, m.Name, ordinal, volume)
			switch {
			case v == nil && m.Volumes[volume].OnMissing == manifest.OnMissingFail:
				return nil, noVolume("%s/%d has no volume %s, and on_missing = \"fail\"\nhint: pinnace volumes import %s/%d/%s FILE makes one of a file",
					m.Name, ordinal, volume, m.Name, ordinal, volume)
			case v == nil:
			case host != "" && v.Host != host:
				return nil, noVolume("the volumes of %s/%d are on two hosts: %s on %s, and %s on %s\nhint: export one of them, detach it, and import it where the other one is",
					m.Name, ordinal, name, host, volume, v.Host)
			default:
				host, name = v.Host, volume
			}
		}
		if host != "" {
			bound[ordinal] = host
		}
	}
	return bound, nil
}

// reachVolumes says of the first ordinal whose volumes are on a host that is away, or is to become empty, that nothing
// can be started there. A deployment that stops before it starts must know before it stops anything.
func (s *Server) reachVolumes(st *fleet.State, environment string, m *manifest.Manifest, count int, now time.Time) error {
	if problems := m.CheckCount(count); problems.HasErrors() {
		return refuse(connect.CodeInvalidArgument, "%s", list(problems.Errors()))
	}
	bound, err := boundHosts(st, environment, m, firstOrdinals(count))
	if err != nil {
		return err
	}
	for ordinal := range count {
		host, ok := bound[ordinal]
		if !ok {
			continue
		}
		on, _ := s.observed.connected(host, now)
		switch h := st.Host(host); {
		case !on:
			return noVolume("%s/%d can only run on host %s, where its volumes are, and that is away\nhint: is `pinnace agent` running there?", m.Name, ordinal, host)
		case !h.DrainingAt.IsZero():
			return noVolume("%s/%d can only run on host %s, where its volumes are, and that is draining\nhint: pinnace host drain --end %s", m.Name, ordinal, host, host)
		}
	}
	return nil
}

// unchangedFor says that settings stay as they are, because what brings them to an app could not be carried out.
func unchangedFor(app *fleet.App, err error) error {
	if v, ok := errors.AsType[*volumeError](err); ok {
		return noVolume("nothing was changed: %s is live in %s and would have to restart: %s, or --later, to have it changed with the next deployment", app.Name, app.Environment, v.reason)
	}
	return err
}

// bindVolumes are the events that bind the volumes which instances of a release get where they are placed.
func (s *Server) bindVolumes(st *fleet.State, owner *fleet.Deployment, places []scheduler.Placement) ([]fleet.Payload, error) {
	var binds []fleet.Payload
	volumes := st.Release(owner.Release).Manifest.Volumes
	for _, p := range places {
		for _, name := range slices.Sorted(maps.Keys(volumes)) {
			if st.VolumeOf(owner.Environment, owner.App, p.Ordinal, name) != nil {
				continue
			}
			id, err := s.newID("vol")
			if err != nil {
				return nil, err
			}
			binds = append(binds, &fleet.VolumeBound{
				Volume: id, Environment: owner.Environment, App: owner.App, Name: name, Ordinal: p.Ordinal, Host: p.Host, SizeBytes: volumes[name].SizeBytes,
			})
		}
	}
	return binds, nil
}

// assignedVolumes say which volume of the host each of an instance's is.
func assignedVolumes(st *fleet.State, i *fleet.Instance) []*pb.AssignedVolume {
	if i.Task {
		return nil
	}
	var out []*pb.AssignedVolume
	for _, name := range slices.Sorted(maps.Keys(st.Release(i.Release).Manifest.Volumes)) {
		if v := st.VolumeOf(i.Environment, i.App, i.Ordinal, name); v != nil {
			out = append(out, &pb.AssignedVolume{Name: name, Id: v.ID, SizeBytes: v.SizeBytes, MustExist: v.Made})
		}
	}
	return out
}

// removedVolumes are those that a host is to remove.
func removedVolumes(st *fleet.State, host string) []string {
	var ids []string
	for _, v := range st.VolumesOn(host) {
		if !v.DeletedAt.IsZero() {
			ids = append(ids, v.ID)
		}
	}
	return ids
}

// removals are the events for the volumes that a host was to remove, and has no longer.
func removals(st *fleet.State, r *pb.ReportRequest) []fleet.Payload {
	if !r.GetVolumesListed() {
		return nil
	}
	has := map[string]bool{}
	for _, v := range r.GetVolumes() {
		has[v.GetId()] = true
	}
	var gone []fleet.Payload
	for _, id := range removedVolumes(st, r.GetHost()) {
		if !has[id] {
			gone = append(gone, &fleet.VolumeRemoved{Volume: id})
		}
	}
	return gone
}

// volumeText says in a plan which volumes an instance gets.
func volumeText(st *fleet.State, environment string, m *manifest.Manifest, ordinal int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(m.Volumes)) {
		want := m.Volumes[name].SizeBytes
		switch v := st.VolumeOf(environment, m.Name, ordinal, name); {
		case v == nil:
			parts = append(parts, fmt.Sprintf("%s (new, %s)", name, sizeText(want)))
		case v.SizeBytes < want:
			parts = append(parts, fmt.Sprintf("%s (%s, grown from %s to %s)", name, v.ID, sizeText(v.SizeBytes), sizeText(want)))
		default:
			parts = append(parts, fmt.Sprintf("%s (%s, %s)", name, v.ID, sizeText(v.SizeBytes)))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " with " + strings.Join(parts, " and ")
}

// volumeWarnings say what of a manifest has no effect on volumes that are there.
func volumeWarnings(st *fleet.State, environment string, m *manifest.Manifest, count int) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m.Volumes)) {
		want := m.Volumes[name].SizeBytes
		for ordinal := range count {
			if v := st.VolumeOf(environment, m.Name, ordinal, name); v != nil && v.SizeBytes > want {
				out = append(out, fmt.Sprintf("volumes.%s.size: volume %s of %s/%d is %s large and stays so, not %s: volumes never shrink",
					name, v.ID, m.Name, ordinal, sizeText(v.SizeBytes), sizeText(want)))
			}
		}
	}
	return out
}

// sizeText is a size in the largest unit that it is a whole number of.
func sizeText(bytes int64) string {
	for _, unit := range []struct {
		shift uint
		name  string
	}{{40, "TiB"}, {30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if bytes > 0 && bytes&(1<<unit.shift-1) == 0 {
			return fmt.Sprintf("%d%s", bytes>>unit.shift, unit.name)
		}
	}
	return fmt.Sprintf("%d bytes", bytes)
}

// quotaOf is what the environment may book beside what it has; nil for no bound.
func quotaOf(st *fleet.State, environment string) *scheduler.Quota {
	q := st.Environment(environment).Quota
	if q == (fleet.Quota{}) {
		return nil
	}
	booked := st.Booked(environment)
	left := func(limit, booked int64) int64 {
		if limit == 0 {
			return 1 << 62
		}
		return max(limit-booked, 0)
	}
	return &scheduler.Quota{
		Instances:   int(left(int64(q.Instances), int64(booked.Instances))),
		MemoryBytes: left(q.MemoryBytes, booked.MemoryBytes), CPUMilli: left(q.CPUMilli, booked.CPUMilli),
	}
}

// volumesOn are the volumes of a host that are not to be removed, for people.
func (s *Server) volumesOn(host string) []string {
	var names []string
	s.ledger.read(func(st *fleet.State) {
		for _, v := range st.VolumesOn(host) {
			if v.DeletedAt.IsZero() {
				names = append(names, fmt.Sprintf("%s (%s of %s/%d in %s)", v.ID, v.Name, v.App, v.Ordinal, v.Environment))
			}
		}
	})
	return names
}
