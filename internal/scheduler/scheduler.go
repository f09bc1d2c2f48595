// Package scheduler decides which host runs an instance.
//
// Place is a pure function: the same request and the same hosts give the same placements, in the same
// order, whoever asks and whenever. It reads no clock and draws no random number; what is equal is
// decided by the host's id. It knows neither instances nor deployments, and it never moves anything that
// runs: package rollout says when to start and stop.
//
// Memory, scratch disk, architecture and being connected are hard. CPU is a weight: hosts whose CPUs are
// oversubscribed already are taken last, but they are taken.
package scheduler

import (
	"cmp"
	"container/heap"
	"slices"
)

const (
	mib = 1 << 20
	// overheadPerVM is what the monitor process and the guest's page tables need beside the guest's RAM.
	overheadPerVM = 64 * mib
	// overheadShare adds 1/64 of the RAM, which grows with the tables that map it.
	overheadShare = 64
	// cpuFactor is how often a host's CPU may be promised before the host is taken last.
	cpuFactor = 4
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
	Connected    bool

	MemoryBytes, MemoryBooked int64
	DiskBytes, DiskBooked     int64
	CPUMilli, CPUBooked       int64

	// AppInstances counts the instances of the app that is being placed; it is what spreading looks at.
	AppInstances int
}

// Request asks for places for a number of equal instances of one app.
type Request struct {
	Instances int
	// MemoryBytes is the cap of one instance, without overhead.
	MemoryBytes int64
	DiskBytes   int64
	CPUMilli    int64
	// Architectures that the release has an image for and its manifest allows; empty fits no host.
	Architectures []string
}

// Place returns the host of each requested instance, or a *Refusal when not all of them have a place.
// Hosts with the fewest instances of the app come first; among those the fullest that still fits, so that
// large instances find room later; ties go to the lower id. The hosts are not changed.
func Place(req Request, hosts []Host) ([]string, error) {
	q := make(queue, 0, len(hosts))
	for i := range hosts {
		if lacks(req, hosts[i]) == fits {
			q = append(q, hosts[i])
		}
	}
	heap.Init(&q)
	placed := make([]string, 0, req.Instances)
	for range req.Instances {
		if len(q) == 0 {
			return nil, refuse(req, hosts, placed)
		}
		h := &q[0]
		placed = append(placed, h.ID)
		h.MemoryBooked += Footprint(req.MemoryBytes)
		h.DiskBooked += req.DiskBytes
		h.CPUBooked += req.CPUMilli
		h.AppInstances++
		if lacks(req, *h) == fits {
			heap.Fix(&q, 0)
		} else {
			heap.Pop(&q)
		}
	}
	return placed, nil
}

// lack is the first reason why a host cannot take one more instance.
type lack int

const (
	fits lack = iota
	lacksConnection
	lacksArchitecture
	lacksMemory
	lacksDisk
)

func lacks(req Request, h Host) lack {
	switch {
	case !h.Connected:
		return lacksConnection
	case !slices.Contains(req.Architectures, h.Architecture):
		return lacksArchitecture
	case h.MemoryBytes-h.MemoryBooked < Footprint(req.MemoryBytes):
		return lacksMemory
	case h.DiskBytes-h.DiskBooked < req.DiskBytes:
		return lacksDisk
	default:
		return fits
	}
}

// queue is a heap of hosts that fit, the best one first.
type queue []Host

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return compare(q[i], q[j]) < 0 }
func (q queue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(h any)        { *q = append(*q, h.(Host)) }
func (q *queue) Pop() any {
	last := len(*q) - 1
	h := (*q)[last]
	*q = (*q)[:last]
	return h
}

func compare(a, b Host) int {
	return cmp.Or(
		cmp.Compare(a.AppInstances, b.AppInstances),
		cmp.Compare(busy(a), busy(b)),
		cmp.Compare(fullness(b), fullness(a)),
		cmp.Compare(a.ID, b.ID),
	)
}

// busy is 1 for a host whose CPUs are promised more often than cpuFactor times.
func busy(h Host) int {
	if h.CPUBooked >= h.CPUMilli*cpuFactor {
		return 1
	}
	return 0
}

// fullness is the larger of the shares of memory and disk that are booked, in 1/256. Whole steps keep
// small differences from overruling the order of the ids.
func fullness(h Host) int64 {
	return max(share(h.MemoryBooked, h.MemoryBytes), share(h.DiskBooked, h.DiskBytes))
}

func share(booked, have int64) int64 {
	if have < 256 {
		return 256
	}
	return min(booked/(have/256), 256)
}
