package server

import (
	"errors"
	"slices"
	"time"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/rollout"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

// view is what package rollout needs to know of an active deployment; nil when it is not active.
func (s *Server) view(id string, now time.Time) *rollout.View {
	var v *rollout.View
	s.ledger.read(func(st *fleet.State) {
		d := st.Deployment(id)
		if d == nil || !d.Active() {
			return
		}
		settings := st.Release(d.Release).Manifest.Rollout
		v = &rollout.View{
			Count: d.Count, MaxParallel: settings.MaxParallel, BootTimeout: settings.BootTimeout, Hold: settings.Hold,
			Deadline: settings.Deadline, Pause: settings.OnFailure == manifest.OnFailurePause, Switched: d.Switched, Paused: !d.PausedAt.IsZero(),
			Since: s.watchedSince(d, d.StartedAt, now), Away: s.loop.attended.IsZero(), Blocked: s.loop.blocked[d.ID],
		}
		takeOver(v, st.Release(d.Release).Manifest, d.Kind)
		if d.BeforeDone {
			v.Before = nil
		}
		if previous := st.Deployment(d.Previous); previous != nil {
			v.HasPrevious, v.PreviousCount = true, previous.Count
		}
		if d.State == fleet.RollingBack {
			v.Back = &rollout.Back{Reason: d.Reason, Since: s.watchedSince(d, d.TurnedAt, now)}
		}
		for _, i := range slices.Concat(st.Instances(d.Environment, d.App), st.EndedInstances(d.Environment, d.App)) {
			if !i.Final || i.Deployment == d.ID || (i.Deployment == d.Previous && !i.Task) {
				v.Instances = append(v.Instances, s.viewInstance(st, d, i, now))
			}
		}
	})
	return v
}

// takeOver has the new side of a deployment take over as its manifest says.
func takeOver(v *rollout.View, m *manifest.Manifest, kind fleet.Kind) {
	v.StopFirst = len(m.Volumes) > 0
	if kind.InPlace() {
		return // nothing takes over
	}
	switch m.Rollout.Strategy {
	case manifest.StrategyCanary:
		// What served before needs no trying out.
		if v.Canary = m.Rollout.Canary; kind == fleet.KindDeploy || kind == fleet.KindSettings {
			v.Strategy = rollout.Canary
		}
	case manifest.StrategyBlueGreen:
		v.Strategy = rollout.BlueGreen
	case manifest.StrategyRecreate:
		v.Strategy = rollout.Recreate
	}
	if m.Rollout.Before != nil && kind == fleet.KindDeploy { // others bring no new release
		v.Before = &rollout.Before{Timeout: m.Rollout.Before.Timeout}
	}
}

// watchedSince is t, or when this server began to watch with a host to carry decisions out, or when somebody resumed the
// deployment, whatever is latest. Times of the log were read off a clock that may have been years ahead: one that is yet
// to come says nothing, or nothing would ever be due.
func (s *Server) watchedSince(d *fleet.Deployment, t, now time.Time) time.Time {
	if t.After(now) {
		t = time.Time{}
	}
	for _, later := range []time.Time{s.loop.attended, d.ResumedAt} {
		if later.After(t) && !later.After(now) {
			t = later
		}
	}
	if t.IsZero() {
		return now
	}
	return t
}

func (s *Server) viewInstance(st *fleet.State, d *fleet.Deployment, i *fleet.Instance, now time.Time) rollout.Instance {
	side := rollout.Other
	switch {
	case i.Task && i.Deployment == d.ID:
		side = rollout.Task
	case i.Deployment == d.ID, d.Kind.InPlace() && d.State == fleet.Running && i.Deployment == d.Previous && !i.Task:
		side = rollout.New
	case i.Deployment == d.Previous:
		side = rollout.Previous
	}
	seen := s.observed.instance(i.ID)
	on, _ := s.observed.connected(i.Host, now)
	v := rollout.Instance{
		ID: i.ID, Ordinal: i.Ordinal, Side: side, Restored: side == rollout.Previous && i.Planner == d.ID,
		Adopted:  side == rollout.New && i.Deployment != d.ID,
		Stopping: i.Stop, Ended: i.Final, Completed: i.Completed(), Reachable: on && seen.report != nil,
		EverReady: i.ReadyAttempt > 0, Ends: int(i.Crashes),
	}
	if host := st.Host(i.Host); host != nil {
		v.Leaving = !host.DrainingAt.IsZero() || !st.Suits(host, i.Environment, i.App)
		v.AwaySince = s.awaySince(i.Host, now)
	}
	if !i.FirstStartedAt.IsZero() {
		v.StartedAt = s.watchedSince(d, i.FirstStartedAt, now)
	}
	if v.Reachable && !i.Final && seen.report.GetState() == stateReady {
		v.Ready, v.ReadySince = true, seen.readySince
		// Nobody saw it unready since the log says that it became ready.
		if seen.fromStart && i.ReadyAttempt == seen.report.GetAttempt() && !i.ReadyAt.IsZero() && i.ReadyAt.Before(v.ReadySince) {
			v.ReadySince = i.ReadyAt
		}
	}
	if i.LastEnd != nil {
		v.StartFailed = i.LastEnd.Cause.Kind == "start_failed" && !i.LastEnd.Planned
		v.LastEnd = describe(i.LastEnd.Cause)
	}
	return v
}

// carryOut turns actions into events. What has no place comes back as blocked.
func (s *Server) carryOut(deployment string, actions []rollout.Action, now time.Time) (events []fleet.Payload, blocked *rollout.Blocked, err error) {
	plan := &fleet.InstancesPlanned{Deployment: deployment}
	var binds []fleet.Payload
	var starts []rollout.Action
	for _, a := range actions {
		switch a.Kind {
		case rollout.Start:
			starts = append(starts, a)
		case rollout.Stop:
			plan.Stop = append(plan.Stop, a.Instance)
		case rollout.TurnBack:
			return []fleet.Payload{&fleet.DeploymentTurnedBack{Deployment: deployment, Reason: a.Reason}}, nil, nil
		case rollout.Switch:
			return []fleet.Payload{&fleet.DeploymentSwitched{Deployment: deployment}}, nil, nil
		case rollout.Finish:
			return []fleet.Payload{&fleet.DeploymentFinished{
				Deployment: deployment, Outcome: fleet.DeploymentState(a.Outcome), Reason: a.Reason,
			}}, nil, nil
		}
	}
	if len(starts) > 0 {
		if plan.Start, binds, err = s.place(deployment, starts, now); err != nil {
			refusal, volumes := (*scheduler.Refusal)(nil), (*volumeError)(nil)
			if !errors.As(err, &refusal) && !errors.As(err, &volumes) {
				return nil, nil, err
			}
			blocked = &rollout.Blocked{Reason: err.Error(), Since: now}
		}
	}
	if len(plan.Start)+len(plan.Stop) > 0 {
		events = append(binds, plan)
	}
	return events, blocked, nil
}

// place finds hosts for starts, which are all of one side, and the events that bind their volumes there. When there is
// room for some of them only, it returns those together with the refusal of the rest.
func (s *Server) place(deployment string, starts []rollout.Action, now time.Time) (planned []fleet.PlannedStart, binds []fleet.Payload, refusal error) {
	var (
		owner  *fleet.Deployment
		places []scheduler.Placement
		err    error
	)
	task := starts[0].Side == rollout.Task
	ordinals := make([]int, 0, len(starts))
	for _, a := range starts {
		ordinals = append(ordinals, a.Ordinal)
	}
	s.ledger.read(func(st *fleet.State) {
		owner = st.Deployment(deployment)
		if starts[0].Side == rollout.Previous {
			owner = st.Deployment(owner.Previous)
		}
		r := st.Release(owner.Release)
		if task {
			places, refusal = s.scheduleTask(st, owner.Environment, r, ordinals, now)
			return
		}
		if places, refusal = s.schedule(st, owner.Environment, r, ordinals, now); len(places) > 0 {
			binds, err = s.bindVolumes(st, owner, places)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	for _, p := range places {
		id, err := s.newID(owner.App)
		if err != nil {
			return nil, nil, err
		}
		planned = append(planned, fleet.PlannedStart{
			Instance: id, Ordinal: p.Ordinal, Host: p.Host, Deployment: owner.ID, Release: string(owner.Release),
			Task: task,
		})
	}
	return planned, binds, refusal
}

// scheduleTask asks for places for one-offs of a release, which have no volumes.
func (s *Server) scheduleTask(st *fleet.State, environment string, r *fleet.Release, ordinals []int, now time.Time) ([]scheduler.Placement, error) {
	m := *r.Manifest
	m.Volumes = nil
	return s.placesFor(st, environment, &m, architectures(r), ordinals, now)
}

// schedule asks the scheduler for places for instances of a release.
func (s *Server) schedule(st *fleet.State, environment string, r *fleet.Release, ordinals []int, now time.Time) ([]scheduler.Placement, error) {
	return s.placesFor(st, environment, r.Manifest, architectures(r), ordinals, now)
}

// zoneLabel is the label of a host that says what fails together with it.
const zoneLabel = "zone"

// placesFor asks the scheduler for places for instances of a manifest, on hosts of the architectures.
func (s *Server) placesFor(st *fleet.State, environment string, m *manifest.Manifest, architectures []string, ordinals []int, now time.Time) ([]scheduler.Placement, error) {
	return s.placesBy(st, environment, m, architectures, st.Environment(environment).Placement[m.Name], ordinals, now)
}

// placesBy is placesFor on hosts with the labels.
func (s *Server) placesBy(st *fleet.State, environment string, m *manifest.Manifest, architectures []string, labels map[string]string, ordinals []int, now time.Time) ([]scheduler.Placement, error) {
	bound, err := boundHosts(st, environment, m, ordinals)
	if err != nil {
		return nil, err
	}
	each, grown := volumeNeeds(st, environment, m, ordinals)
	running := map[string]int{}
	for _, i := range st.Instances(environment, m.Name) {
		if !i.Task {
			running[i.Host]++
		}
	}
	res := m.Resources
	return scheduler.Place(scheduler.Request{
		Ordinals: ordinals, MemoryBytes: res.MemoryBytes, DiskBytes: res.DiskBytes, VolumesBytes: each, CPUMilli: res.CPUMilli,
		Architectures: architectures, Running: running, Labels: labels, Bound: bound, Grown: grown, Quota: quotaOf(st, environment),
	}, s.hostsFor(st, now))
}

// hostsFor are the hosts as the scheduler knows them.
func (s *Server) hostsFor(st *fleet.State, now time.Time) []scheduler.Host {
	var hosts []scheduler.Host
	for _, h := range st.Hosts() {
		b := st.Booking(h.ID)
		on, _ := s.observed.connected(h.ID, now)
		hosts = append(hosts, scheduler.Host{
			ID: h.ID, Architecture: h.Architecture, Zone: h.Labels[zoneLabel], Labels: h.Labels, Connected: on,
			Draining:    !h.DrainingAt.IsZero(),
			MemoryBytes: h.MemoryBytes, MemoryBooked: scheduler.Footprints(len(b.Instances), b.MemoryBytes),
			DiskBytes: h.DiskBytes, DiskBooked: b.DiskBytes, VolumesBooked: volumesBooked(st, h.ID),
			CPUMilli: h.CPUMilli, CPUBooked: b.CPUMilli,
		})
	}
	return hosts
}

// firstOrdinals are those of n instances.
func firstOrdinals(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// architectures that the release has an image for and its manifest allows.
func architectures(r *fleet.Release) []string {
	var all []string
	for _, p := range r.Platforms {
		if len(r.Manifest.Arch) == 0 || slices.Contains(r.Manifest.Arch, p.Architecture) {
			all = append(all, p.Architecture)
		}
	}
	return all
}
