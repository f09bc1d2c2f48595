package scheduler

import (
	"fmt"
	"slices"
	"strings"
)

// Refusal says why a request has no place. It is an error whose text counts the reasons, one per host:
// "3 of 5 hosts lack memory".
type Refusal struct {
	// Wanted and Placed count instances: how many were asked for, and for how many there was room.
	Wanted, Placed int
	Hosts          int
	// Each host is counted once, for the first of these that holds, in this order.
	NotConnected, OtherArchitecture, LackMemory, LackDisk int

	architectures       []string
	memoryNeed, memFree int64
	diskNeed, diskFree  int64
}

// refuse counts the reasons as the hosts are once the instances in placed are on them.
func refuse(req Request, hosts []Host, placed []string) *Refusal {
	r := &Refusal{
		Wanted: req.Instances, Placed: len(placed), Hosts: len(hosts), architectures: slices.Sorted(slices.Values(req.Architectures)),
		memoryNeed: Footprint(req.MemoryBytes), diskNeed: req.DiskBytes,
	}
	taken := make(map[string]int64, len(hosts))
	for _, id := range placed {
		taken[id]++
	}
	for _, h := range hosts {
		h.MemoryBooked += taken[h.ID] * Footprint(req.MemoryBytes)
		h.DiskBooked += taken[h.ID] * req.DiskBytes
		switch lacks(req, h) {
		case lacksConnection:
			r.NotConnected++
		case lacksArchitecture:
			r.OtherArchitecture++
		case lacksMemory:
			r.LackMemory++
			r.memFree = max(r.memFree, h.MemoryBytes-h.MemoryBooked)
		case lacksDisk:
			r.LackDisk++
			r.diskFree = max(r.diskFree, h.DiskBytes-h.DiskBooked)
		case fits:
		}
	}
	return r
}

// Error names how many instances have no place and counts what the hosts lack.
func (r *Refusal) Error() string {
	var b strings.Builder
	switch {
	case r.Wanted == 1:
		b.WriteString("no host can take the instance: ")
	case r.Placed == 0:
		fmt.Fprintf(&b, "no host can take any of the %d instances: ", r.Wanted)
	default:
		fmt.Fprintf(&b, "there is room for %d of %d instances only: ", r.Placed, r.Wanted)
	}
	if r.Hosts == 0 {
		b.WriteString("no host has joined; start `pinnace agent` on one")
		return b.String()
	}
	var why []string
	add := func(n int, format string, args ...any) {
		if n > 0 {
			why = append(why, fmt.Sprintf("%d of %s ", n, plural(r.Hosts, "host"))+fmt.Sprintf(format, args...))
		}
	}
	add(r.NotConnected, "%s not connected", verb(r.NotConnected, "is", "are"))
	add(r.OtherArchitecture, "%s of another architecture (the release runs on %s)", verb(r.OtherArchitecture, "is", "are"), orNone(r.architectures))
	add(r.LackMemory, "%s memory (%s needed with overhead, at most %s free)", verb(r.LackMemory, "lacks", "lack"), size(r.memoryNeed), size(r.memFree))
	add(r.LackDisk, "%s disk (%s needed, at most %s free)", verb(r.LackDisk, "lacks", "lack"), size(r.diskNeed), size(r.diskFree))
	b.WriteString(strings.Join(why, ", "))
	return b.String()
}

func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none that is known"
	}
	return strings.Join(names, ", ")
}

func size(bytes int64) string {
	return fmt.Sprintf("%d MiB", max(bytes, 0)/mib)
}
