package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Refusal says why a request has no place. It is an error whose text counts the reasons, one per host:
// "3 of 5 hosts lack memory".
type Refusal struct {
	// Wanted and Placed count instances: how many were asked for, and for how many there was room.
	Wanted, Placed int
	Hosts          int
	// Each host is counted once, for the first of these that holds, in this order. All are 0 when hosts are not
	// what the instances lack.
	NotConnected, Draining, OtherArchitecture, OtherLabels, LackMemory, LackDisk int
	// Bound are the instances that can't run where their volumes are.
	Bound []BoundRefusal
	// OverQuota counts the instances for which the environment has no quota left.
	OverQuota int

	architectures       []string
	labels              []string
	memoryNeed, memFree int64
	diskNeed, diskFree  int64
	quota               Quota
	one                 Request
}

// BoundRefusal is an instance that can only run on one host, and can't.
type BoundRefusal struct {
	Ordinal int
	Host    string

	unknown bool
	why     lack
}

// refuse counts the reasons as the hosts are with the placed instances on them. full tells that hosts are lacking.
func (c *Cluster) refuse(req *Request, placed int, stuck []BoundRefusal, full bool) *Refusal {
	r := &Refusal{
		Wanted: len(req.Ordinals), Placed: placed, Hosts: len(c.hosts), Bound: stuck,
		architectures: slices.Sorted(slices.Values(req.Architectures)),
		memoryNeed:    Footprint(req.MemoryBytes), diskNeed: req.DiskBytes + req.VolumesBytes, one: *req,
	}
	for _, name := range slices.Sorted(maps.Keys(req.Labels)) {
		r.labels = append(r.labels, name+"="+req.Labels[name])
	}
	if room := req.Quota.room(*req, r.Wanted); room < r.Wanted {
		r.OverQuota, r.quota = r.Wanted-room, *req.Quota
	}
	if !full {
		return r
	}
	for i := range c.hosts {
		h := &c.hosts[i]
		switch lacks(req, h) {
		case lacksConnection:
			r.NotConnected++
		case isDraining:
			r.Draining++
		case lacksArchitecture:
			r.OtherArchitecture++
		case lacksLabel:
			r.OtherLabels++
		case lacksMemory:
			r.LackMemory++
			r.memFree = max(r.memFree, h.MemoryBytes-h.MemoryBooked)
		case lacksDisk:
			r.LackDisk++
			r.diskFree = max(r.diskFree, h.DiskBytes-h.DiskBooked-h.VolumesBooked)
		case fits:
		}
	}
	return r
}

// Error names how many instances have no place and says what is lacking.
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
	if counts := r.counts(); counts != "" {
		why = append(why, counts)
	}
	for _, s := range r.Bound {
		why = append(why, s.text(r))
	}
	if r.OverQuota > 0 {
		why = append(why, r.quotaText())
	}
	b.WriteString(strings.Join(why, "; "))
	return b.String()
}

// counts says what the hosts lack.
func (r *Refusal) counts() string {
	var why []string
	add := func(n int, format string, args ...any) {
		if n > 0 {
			why = append(why, fmt.Sprintf("%d of %s ", n, plural(r.Hosts, "host"))+fmt.Sprintf(format, args...))
		}
	}
	add(r.NotConnected, "%s not connected", verb(r.NotConnected, "is", "are"))
	add(r.Draining, "%s draining", verb(r.Draining, "is", "are"))
	add(r.OtherArchitecture, "%s of another architecture (the release runs on %s)", verb(r.OtherArchitecture, "is", "are"), orNone(r.architectures))
	add(r.OtherLabels, "%s not the labels that the app is placed by (%s)", verb(r.OtherLabels, "has", "have"), strings.Join(r.labels, ", "))
	add(r.LackMemory, "%s memory (%s needed with overhead, at most %s free)", verb(r.LackMemory, "lacks", "lack"), size(r.memoryNeed), size(r.memFree))
	add(r.LackDisk, "%s disk (%s needed%s, at most %s free)", verb(r.LackDisk, "lacks", "lack"), size(r.diskNeed), r.volumesText(), size(r.diskFree))
	return strings.Join(why, ", ")
}

// volumesText says that a need has volumes in it, which are larger than what people think of as the disk of an instance.
func (r *Refusal) volumesText() string {
	if r.one.VolumesBytes > 0 {
		return " with its volumes"
	}
	return ""
}

func (s BoundRefusal) text(r *Refusal) string {
	what := fmt.Sprintf("instance %d can only run on host %s, where its volumes are, which ", s.Ordinal, s.Host)
	if s.unknown {
		return what + "is not one of the hosts any more"
	}
	switch s.why {
	case lacksConnection:
		return what + "is not connected"
	case isDraining:
		return what + "is draining"
	case lacksArchitecture:
		return what + "is of another architecture (the release runs on " + orNone(r.architectures) + ")"
	case lacksLabel:
		return what + "has not the labels that the app is placed by (" + strings.Join(r.labels, ", ") + ")"
	case lacksMemory:
		return what + "lacks memory (" + size(r.memoryNeed) + " needed with overhead)"
	case lacksDisk:
		return what + "lacks disk (" + size(r.one.DiskBytes+r.one.Grown[s.Ordinal]) + " needed)"
	default:
		return what + "cannot take it"
	}
}

// quotaText says what the environment may still book of what an instance needs.
func (r *Refusal) quotaText() string {
	one := Request{Ordinals: []int{0}, MemoryBytes: r.one.MemoryBytes, CPUMilli: r.one.CPUMilli}
	room := func(q Quota) int { return q.room(one, r.Wanted) }
	const much = 1 << 62
	var why []string
	if room(Quota{Instances: r.quota.Instances, MemoryBytes: much, CPUMilli: much}) < r.Wanted {
		why = append(why, plural(max(r.quota.Instances, 0), "instance"))
	}
	if room(Quota{Instances: r.Wanted, MemoryBytes: r.quota.MemoryBytes, CPUMilli: much}) < r.Wanted {
		why = append(why, fmt.Sprintf("%s of memory (each needs %s)", size(r.quota.MemoryBytes), size(r.one.MemoryBytes)))
	}
	if room(Quota{Instances: r.Wanted, MemoryBytes: much, CPUMilli: r.quota.CPUMilli}) < r.Wanted {
		why = append(why, fmt.Sprintf("%s of CPU (each needs %s)", cpus(r.quota.CPUMilli), cpus(r.one.CPUMilli)))
	}
	return "the environment's quota leaves " + strings.Join(why, " and ")
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

func cpus(milli int64) string {
	return fmt.Sprintf("%d.%03d", max(milli, 0)/1000, max(milli, 0)%1000)
}
