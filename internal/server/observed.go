package server

import (
	"slices"
	"sync"
	"time"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// maxQueued is how many reports of one host may wait for the loop. The newest says what is; older ones only
// hold ends that a newer one may have overtaken, and those are counted when they are missing.
const maxQueued = 64

// observed is what the agents said last. All of it is lost with the process and comes again.
type observed struct {
	timeout time.Duration

	mu        sync.Mutex
	hosts     map[string]*seenHost     // guarded by mu
	instances map[string]*seenInstance // guarded by mu
}

type seenHost struct {
	at       time.Time
	revision uint64
	// peerAddress is where other hosts' proxies reach its own; empty until it has joined this server.
	peerAddress string
	// queued are the reports that the loop has not looked at yet, oldest first.
	queued []*pb.ReportRequest
	// volumes are what it has, by id, as it said last.
	volumes map[string]*pb.VolumeReport
	// strays are those of them that are left of imports which failed.
	strays []string
}

type seenInstance struct {
	report *pb.InstanceReport
	host   string
	// readySince is when it was first reported ready without a report in between that said otherwise.
	readySince time.Time
	// fromStart is true while that was so since the first report that this server got of it: it may have been
	// ready for longer.
	fromStart bool
	// lastEnd is the last end that was reported, with its log lines, and lastEndAttempt its attempt.
	lastEnd        *pb.Cause
	lastEndAttempt uint32
}

func newObserved(timeout time.Duration) *observed {
	return &observed{timeout: timeout, hosts: map[string]*seenHost{}, instances: map[string]*seenInstance{}}
}

func (o *observed) host(id string) *seenHost {
	h := o.hosts[id]
	if h == nil {
		h = &seenHost{}
		o.hosts[id] = h
	}
	return h
}

// joined notes that a host is there.
func (o *observed) joined(host string, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.host(host).at = now
}

// reported takes a report in. It returns the instances of which something is not what was known of them, as they are now,
// and those of them whose state it is.
func (o *observed) reported(r *pb.ReportRequest, now time.Time) (changed, moved []*pb.InstanceReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.host(r.GetHost())
	h.at, h.revision = now, r.GetRevision()
	h.sawVolumes(r)
	for _, i := range r.GetInstances() {
		was := o.instances[i.GetInstance()]
		if o.sawInstance(r.GetHost(), i, now) {
			changed = append(changed, i)
		}
		if was == nil || was.report.GetState() != i.GetState() {
			moved = append(moved, i)
		}
	}
	return changed, moved
}

// queue has a report wait for the loop.
func (o *observed) queue(r *pb.ReportRequest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.host(r.GetHost())
	h.queued = append(h.queued, r)
	if len(h.queued) > maxQueued {
		h.queued = slices.Delete(h.queued, 0, len(h.queued)-maxQueued)
	}
}

func (o *observed) sawInstance(host string, r *pb.InstanceReport, now time.Time) (changed bool) {
	old := o.instances[r.GetInstance()]
	if old == nil {
		old = &seenInstance{}
	}
	seen := &seenInstance{
		report: r, host: host, readySince: old.readySince, fromStart: old.fromStart, lastEnd: old.lastEnd, lastEndAttempt: old.lastEndAttempt,
	}
	known := old.report
	same := known.GetState() == r.GetState() && known.GetAttempt() == r.GetAttempt()
	switch {
	case r.GetState() != stateReady:
		seen.readySince, seen.fromStart = time.Time{}, false
	case !same || seen.readySince.IsZero():
		seen.readySince, seen.fromStart = now, known == nil
	}
	if r.GetEnd() != nil {
		seen.lastEnd, seen.lastEndAttempt = r.GetEnd(), r.GetAttempt()
	}
	o.instances[r.GetInstance()] = seen
	return !same || known.GetMessage() != r.GetMessage() || known.GetAddress() != r.GetAddress()
}

// forgetHost drops what is known of a host.
func (o *observed) forgetHost(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.hosts, id)
}

// drain hands over what hosts reported since the last call, oldest first for each host.
func (o *observed) drain() []*pb.ReportRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []*pb.ReportRequest
	for _, h := range o.hosts {
		all = append(all, h.queued...)
		h.queued = nil
	}
	return all
}

// instance returns a copy of what is known of an instance; its report is nil when there is none.
func (o *observed) instance(id string) seenInstance {
	o.mu.Lock()
	defer o.mu.Unlock()
	if i := o.instances[id]; i != nil {
		return *i
	}
	return seenInstance{}
}

// forget drops what is known of instances that keep denies.
func (o *observed) forget(keep func(instance string) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id := range o.instances {
		if !keep(id) {
			delete(o.instances, id)
		}
	}
}

// connected reports whether the host has been heard of lately, and when last.
func (o *observed) connected(host string, now time.Time) (bool, time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h := o.hosts[host]
	if h == nil || h.at.IsZero() {
		return false, time.Time{}
	}
	return o.lately(h, now), h.at
}

// lately reports whether a host has been heard of lately.
func (o *observed) lately(h *seenHost, now time.Time) bool {
	age := now.Sub(h.at) // below zero when the clock was set back
	return !h.at.IsZero() && age < o.timeout && age > -o.timeout
}

// there are the hosts that have been heard of lately.
func (o *observed) there(now time.Time) map[string]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[string]bool, len(o.hosts))
	for id, h := range o.hosts {
		if o.lately(h, now) {
			all[id] = true
		}
	}
	return all
}

// nextSilence is when the first connected host would count as away; zero when none is connected.
func (o *observed) nextSilence(now time.Time) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	var first time.Time
	for _, h := range o.hosts {
		end := h.at.Add(o.timeout)
		if end.After(now) && (first.IsZero() || end.Before(first)) {
			first = end
		}
	}
	return first
}
