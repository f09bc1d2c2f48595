package server

import (
	"time"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

// volumesBooked is what the volumes of a host take of its disk, in bytes: their sizes, whatever is in them, and as long as
// the host has them, those that are detached or to be removed included. Snapshots are not counted.
func volumesBooked(st *fleet.State, host string) int64 {
	var sum int64
	for _, v := range st.VolumesOn(host) {
		sum += v.SizeBytes
	}
	return sum
}

// diskFree is what of a host's disk is promised to nobody, in bytes; negative when too much is.
func diskFree(st *fleet.State, h *fleet.Host) int64 {
	return h.DiskBytes - st.Booking(h.ID).DiskBytes - volumesBooked(st, h.ID)
}

// lacksDisk refuses to promise more of a host's disk than there is.
func lacksDisk(st *fleet.State, h *fleet.Host, what string, bytes int64) error {
	if free := diskFree(st, h); bytes > free {
		return refuse(connect.CodeFailedPrecondition, "host %s lacks disk for %s: %d MiB needed, %d MiB free\nhint: pinnace host list shows what is booked; delete volumes that are detached",
			h.ID, what, bytes>>20, max(free, 0)>>20)
	}
	return nil
}

// volumeNeeds says how much disk the volumes take that an instance of a manifest gets: of one that has no volumes yet, and
// for ordinals that have some, what comes in addition.
func volumeNeeds(st *fleet.State, environment string, m *manifest.Manifest, ordinals []int) (each int64, grown map[int]int64) {
	if len(m.Volumes) == 0 {
		return 0, nil
	}
	grown = map[int]int64{}
	for _, want := range m.Volumes {
		each += want.SizeBytes
	}
	for _, ordinal := range ordinals {
		more, bound := int64(0), false
		for name, want := range m.Volumes {
			if v := st.VolumeOf(environment, m.Name, ordinal, name); v != nil {
				bound = true
				more += max(want.SizeBytes-v.SizeBytes, 0)
			} else {
				more += want.SizeBytes
			}
		}
		if bound && more > 0 {
			grown[ordinal] = more
		}
	}
	return each, grown
}

// roomForVolumes refuses what would stop instances to start them with more volumes, or larger ones, and find no disk for
// those then. What the app itself books of memory and scratch disks is free by that time.
func (s *Server) roomForVolumes(st *fleet.State, environment string, r *fleet.Release, count int, now time.Time) error {
	m := r.Manifest
	each, grown := volumeNeeds(st, environment, m, firstOrdinals(count))
	bound, err := boundHosts(st, environment, m, firstOrdinals(count))
	if err != nil || each == 0 {
		return err
	}
	var more []int
	for ordinal := range count {
		if _, ok := bound[ordinal]; !ok || grown[ordinal] > 0 {
			more = append(more, ordinal)
		}
	}
	own := map[string]int64{}
	for _, i := range st.Instances(environment, r.App) {
		if !i.Task {
			own[i.Host] += st.Release(i.Release).Manifest.Resources.DiskBytes
		}
	}
	hosts := s.hostsFor(st, now)
	for i := range hosts {
		h := &hosts[i]
		h.MemoryBooked, h.CPUBooked, h.DiskBooked = 0, 0, h.DiskBooked-own[h.ID]
	}
	_, err = scheduler.Place(scheduler.Request{
		Ordinals: more, DiskBytes: m.Resources.DiskBytes, VolumesBytes: each, Architectures: architectures(r),
		Labels: st.Environment(environment).Placement[m.Name], Bound: bound, Grown: grown,
	}, hosts)
	return err
}
