// Package scheduler decides which host runs an instance.
//
// Place is a pure function: the same request and the same hosts give the same placements, in the same
// order, whoever asks and whenever. It reads no clock and draws no random number; what is equal is
// decided by the host's id. It knows neither instances nor deployments, and it never moves anything that
// runs: package rollout says when to start and stop.
//
// Memory, disk for scratch and volumes, architecture, labels, the place of volumes and being connected are hard. CPU is a
// weight: hosts whose CPUs are oversubscribed beyond their factor are taken last, but they are taken.
package scheduler

import "slices"

const (
	mib = 1 << 20
	// overheadPerVM is what the monitor process and the guest's page tables need beside the guest's RAM.
	overheadPerVM = 64 * mib
	// overheadShare adds 1/64 of the RAM, which grows with the tables that map it.
	overheadShare = 64
	// DefaultCPUFactor is how often a host's CPU may be promised, in percent, before the host is taken last.
	DefaultCPUFactor = 400
)

// Footprint is the memory, in bytes, that one instance with the given cap takes from its host: the cap,
// which is the RAM of the VM, and what the monitor needs beside it.
func Footprint(memoryBytes int64) int64 { return Footprints(1, memoryBytes) }

// Footprints is the memory, in bytes, that a number of instances take whose caps sum up to memoryBytes.
func Footprints(instances int, memoryBytes int64) int64 {
	return memoryBytes + memoryBytes/overheadShare + int64(instances)*overheadPerVM
}

// Host is what the scheduler needs to know of one host. Booked values are of all instances that are
// placed there, the platform's overhead included.
type Host struct {
	ID           string
	Architecture string
	// Zone is what fails together; instances are spread over zones before hosts. Hosts without one are a zone.
	Zone   string
	Labels map[string]string
	// Connected is false for a host that may be gone, Draining true for one that is to become empty. Neither
	// is given anything.
	Connected, Draining bool

	MemoryBytes, MemoryBooked int64
	DiskBytes, DiskBooked     int64
	// VolumesBooked is what volumes take of DiskBytes, beside DiskBooked: their sizes, whatever is in them.
	VolumesBooked       int64
	CPUMilli, CPUBooked int64
	// CPUFactor is how often CPUMilli may be promised, in percent; 0 for DefaultCPUFactor.
	CPUFactor int64
}

// Request asks for places for a number of equal instances of one app.
type Request struct {
	// Ordinals of the instances, each once. They are placed in this order, those that are bound before the others.
	Ordinals []int
	// MemoryBytes is the cap of one instance, without overhead.
	MemoryBytes int64
	// DiskBytes is the scratch disk of one instance.
	DiskBytes int64
	// VolumesBytes are the volumes that an instance gets which has none yet, together.
	VolumesBytes int64
	CPUMilli     int64
	// Architectures that the release has an image for and its manifest allows; empty fits no host.
	Architectures []string
	// Labels that a host must have, with these values.
	Labels map[string]string
	// Running counts the app's instances by host; it is what spreading looks at.
	Running map[string]int
	// Bound has the host of an ordinal whose volumes are there: volumes do not move.
	Bound map[int]string
	// Grown is by how much the volumes of a bound ordinal grow with its instance, those included that it gets in addition.
	Grown map[int]int64
	// Quota is what the environment may book in addition to what it has booked; nil for no bound.
	Quota *Quota
}

// Quota is an amount that may be booked.
type Quota struct {
	Instances   int
	MemoryBytes int64 // caps, without overhead
	CPUMilli    int64
}

// room is for how many of the request's instances there is quota, at most n.
func (q *Quota) room(req Request, n int) int {
	if q == nil {
		return n
	}
	n = min(n, max(q.Instances, 0))
	if req.MemoryBytes > 0 {
		n = int(min(int64(n), max(q.MemoryBytes, 0)/req.MemoryBytes))
	}
	if req.CPUMilli > 0 {
		n = int(min(int64(n), max(q.CPUMilli, 0)/req.CPUMilli))
	}
	return n
}

// Placement is the place of one instance.
type Placement struct {
	Ordinal int
	Host    string
}

// Place returns the host of each requested instance, in the order of the request. When not all of them have a
// place the error is a *Refusal, and the placements are those for which there is room. Nothing is changed.
//
// A host takes precedence that is in the zone with the fewest instances of the app; then one that runs the
// fewest itself; then one whose CPUs are not oversubscribed; then the fullest that still fits, so that large
// instances find room later; ties go to the lower id.
func Place(req Request, hosts []Host) ([]Placement, error) {
	return NewCluster(hosts).Place(req)
}

// lack is the first reason why a host cannot take one more instance.
type lack int

const (
	fits lack = iota
	lacksConnection
	isDraining
	lacksArchitecture
	lacksLabel
	lacksMemory
	lacksDisk
)

// lacks is what a host lacks for an instance that has no volumes yet.
func lacks(req *Request, h *Host) lack {
	if why := lacksMore(req, h); why != fits {
		return why
	}
	return lacksRoom(req, h)
}

// lacksFor is what the host of an ordinal's volumes lacks. What it has promised to volumes is in the way only of more:
// an instance can go back to those that it has, also where too much was promised at some time.
func lacksFor(req *Request, h *Host, ordinal int) lack {
	more := req.Grown[ordinal]
	if why := lacksMore(req, h); why != fits {
		return why
	}
	switch free := h.DiskBytes - h.DiskBooked; {
	case h.MemoryBytes-h.MemoryBooked < Footprint(req.MemoryBytes):
		return lacksMemory
	case free < req.DiskBytes, more > 0 && free-h.VolumesBooked < req.DiskBytes+more:
		return lacksDisk
	default:
		return fits
	}
}

// lacksMore is what a host lacks that is not a question of room.
func lacksMore(req *Request, h *Host) lack {
	switch {
	case !h.Connected:
		return lacksConnection
	case h.Draining:
		return isDraining
	case !slices.Contains(req.Architectures, h.Architecture):
		return lacksArchitecture
	case !hasLabels(h.Labels, req.Labels):
		return lacksLabel
	default:
		return fits
	}
}

func lacksRoom(req *Request, h *Host) lack {
	switch {
	case h.MemoryBytes-h.MemoryBooked < Footprint(req.MemoryBytes):
		return lacksMemory
	case h.DiskBytes-h.DiskBooked-h.VolumesBooked < req.DiskBytes+req.VolumesBytes:
		return lacksDisk
	default:
		return fits
	}
}

func hasLabels(have, want map[string]string) bool {
	for name, value := range want {
		if got, ok := have[name]; !ok || got != value {
			return false
		}
	}
	return true
}

// book takes what one instance needs of a host, and so much for its volumes.
func (h *Host) book(req *Request, volumes int64) {
	h.VolumesBooked += volumes
	h.MemoryBooked += Footprint(req.MemoryBytes)
	h.DiskBooked += req.DiskBytes
	h.CPUBooked += req.CPUMilli
}

// shares is how much of a host is booked, in 1/shares: whole steps keep small differences from overruling the
// order of the ids.
const shares = 256

// fullness is the dominant share of a host: the largest of the shares of memory, disk and promised CPU that
// are booked, in 1/256.
func (h *Host) fullness() int64 {
	return max(share(h.MemoryBooked, h.MemoryBytes), share(h.DiskBooked+h.VolumesBooked, h.DiskBytes), share(h.CPUBooked, h.promisable()))
}

// promisable is how much of the CPU can be promised before the host counts as oversubscribed, in thousandths.
func (h *Host) promisable() int64 {
	if h.CPUFactor == 0 {
		return h.CPUMilli * DefaultCPUFactor / 100
	}
	return h.CPUMilli * h.CPUFactor / 100
}

func share(booked, have int64) int64 {
	if have < shares {
		return shares
	}
	return max(min(booked/(have/shares), shares), 0)
}
