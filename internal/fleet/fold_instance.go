package fleet

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pinnacehq/pinnace/internal/release"
)

// BurstWindow is how long an instance must have been without an end for the next one not to belong to the
// same burst. It is the time after which the back-off of restarts begins anew.
const BurstWindow = 10 * time.Minute

func (p *InstancesPlanned) fold(s *State, e Event) error {
	d := s.deployments.get(p.Deployment)
	if d == nil {
		return fmt.Errorf("deployment %q: %w", p.Deployment, ErrNotFound)
	}
	if len(p.Start)+len(p.Stop) == 0 {
		return fmt.Errorf("plan of deployment %s: it is empty", d.ID)
	}
	for _, id := range p.Stop {
		i := s.instances.get(id)
		if i == nil || i.Environment != d.Environment || i.App != d.App || i.Run != nil || !i.Serves() {
			return fmt.Errorf("plan of deployment %s: it stops %q, which is not an instance of %s in %s that runs", d.ID, id, d.App, d.Environment)
		}
		s.instances.change(id, func(i *Instance) { i.Stop, i.StopAt = true, e.At })
	}
	for _, start := range p.Start {
		if err := s.place(d, start, e); err != nil {
			return fmt.Errorf("plan of deployment %s: start %s: %w", d.ID, start.Instance, err)
		}
	}
	return nil
}

func (s *State) place(planner *Deployment, p PlannedStart, e Event) error {
	d := s.deployments.get(p.Deployment)
	r := s.releases.get(p.Release)
	switch {
	case p.Instance == "" || s.instances.get(p.Instance) != nil:
		return ErrExists
	case d == nil || d.Environment != planner.Environment || d.App != planner.App:
		return fmt.Errorf("deployment %q is not of %s in %s", p.Deployment, planner.App, planner.Environment)
	case r == nil || d.Release != r.ID:
		return fmt.Errorf("release %q is not that of deployment %s", p.Release, d.ID)
	case p.Ordinal < 0:
		return fmt.Errorf("ordinal %d", p.Ordinal)
	case p.Task && (d != planner || r.Manifest.Rollout.Before == nil):
		return errors.New("the release has nothing that runs before its rollout")
	case s.hosts.get(p.Host) == nil:
		return fmt.Errorf("host %q: %w", p.Host, ErrNotFound)
	case s.beingDestroyed(d.Environment, d.App):
		return &DestroyedError{Environment: d.Environment, App: d.App}
	}
	if err := s.takeVolumes(d, r, p); err != nil {
		return err
	}
	s.instances.put(p.Instance, &Instance{
		ID: p.Instance, Environment: d.Environment, App: d.App, Ordinal: p.Ordinal, Host: p.Host, Release: release.ID(p.Release),
		Deployment: d.ID, Planner: planner.ID, PlacedAt: e.At, Task: p.Task,
	})
	s.apps.change(appKey(d.Environment, d.App), func(a *App) { a.Instances = with(a.Instances, p.Instance) })
	s.bookings.change(p.Host, func(b *Booking) {
		b.MemoryBytes += r.Manifest.Resources.MemoryBytes
		b.CPUMilli += r.Manifest.Resources.CPUMilli
		b.DiskBytes += r.Manifest.Resources.DiskBytes
		b.Instances = with(b.Instances, p.Instance)
	})
	return nil
}

// running finds an instance that may still start, become ready or end.
func (s *State) running(id string) (*Instance, error) {
	i := s.instances.get(id)
	switch {
	case i == nil:
		return nil, fmt.Errorf("instance %q: %w", id, ErrNotFound)
	case i.Final:
		return nil, fmt.Errorf("instance %s has ended for good", id)
	}
	return i, nil
}

func (p *InstanceStarted) fold(s *State, e Event) error {
	i, err := s.running(p.Instance)
	if err != nil {
		return err
	}
	if p.Attempt <= i.StartedAttempt {
		return fmt.Errorf("instance %s: start of attempt %d after attempt %d", i.ID, p.Attempt, i.StartedAttempt)
	}
	booted := p.Booted
	s.instances.change(i.ID, func(i *Instance) {
		i.StartedAttempt, i.StartedAt, i.Booted = p.Attempt, e.At, &booted
		if i.FirstStartedAt.IsZero() {
			i.FirstStartedAt = e.At
		}
	})
	s.madeVolumes(i)
	return nil
}

func (p *InstanceReady) fold(s *State, e Event) error {
	i, err := s.running(p.Instance)
	if err != nil {
		return err
	}
	if p.Attempt <= i.ReadyAttempt {
		return fmt.Errorf("instance %s: attempt %d ready after attempt %d", i.ID, p.Attempt, i.ReadyAttempt)
	}
	s.instances.change(i.ID, func(i *Instance) { i.ReadyAttempt, i.ReadyAt = p.Attempt, e.At })
	return nil
}

func (p *InstanceEnded) fold(s *State, e Event) error {
	i, err := s.running(p.Instance)
	if err != nil {
		return err
	}
	// Between two attempts, or before the first one, an instance can end for good without another end.
	given := p.Count == 0 && p.Final && p.Attempt == i.EndedAttempt
	if !given && (p.Attempt <= i.EndedAttempt || p.Count == 0 || p.Count > p.Attempt-i.EndedAttempt) {
		return fmt.Errorf("instance %s: %d ends up to attempt %d after attempt %d", i.ID, p.Count, p.Attempt, i.EndedAttempt)
	}
	burst := uint32(1)
	if i.LastEnd != nil && e.At.Sub(i.LastEnd.At) < BurstWindow {
		burst = i.Burst + 1
	}
	i = s.instances.change(p.Instance, func(i *Instance) {
		i.EndedAttempt, i.Burst, i.Final = p.Attempt, burst, p.Final
		i.LastEnd = &End{Attempt: p.Attempt, Cause: p.Cause, Planned: p.Planned, At: e.At}
		if !p.Planned {
			i.Crashes += p.Count
		}
	})
	if i.Task && i.Run == nil && i.Completed() {
		d := *s.deployments.get(i.Deployment)
		d.BeforeDone = true
		s.putDeployment(&d)
	}
	if i.Final {
		s.release(i, e)
	}
	return nil
}

// release gives back what an instance held that will not run again.
func (s *State) release(i *Instance, e Event) {
	res := s.releases.get(string(i.Release)).Manifest.Resources
	s.bookings.change(i.Host, func(b *Booking) {
		b.MemoryBytes -= res.MemoryBytes
		b.CPUMilli -= res.CPUMilli
		b.DiskBytes -= res.DiskBytes
		b.Instances = without(b.Instances, i.ID)
	})
	if i.Run != nil {
		s.dropApp(s.endRun(i), e)
		return
	}
	app := s.apps.change(appKey(i.Environment, i.App), func(a *App) {
		a.Instances = without(a.Instances, i.ID)
		a.Ended = append(slices.Clone(a.Ended), i.ID)
	})
	if len(app.Ended) > keptEnded {
		s.forgetOldest(app)
	}
	s.dropApp(s.App(i.Environment, i.App), e)
}

// forgetOldest drops the oldest ended instance that no rollout needs to know of anymore.
func (s *State) forgetOldest(app *App) {
	for _, id := range app.Ended {
		i := s.instances.get(id)
		if !i.Stop && (i.Deployment == app.Live || i.Deployment == app.Active) {
			continue
		}
		s.instances.put(id, nil)
		s.apps.change(appKey(app.Environment, app.Name), func(a *App) { a.Ended = without(a.Ended, id) })
		return
	}
}

func (p *ExecRequested) fold(s *State, _ Event) error {
	i := s.instances.get(p.Instance)
	if i == nil || i.Final {
		return fmt.Errorf("instance %q that runs: %w", p.Instance, ErrNotFound)
	}
	if p.Program == "" || p.Arguments < 0 {
		return fmt.Errorf("run a command in %s: there is none", p.Instance)
	}
	return nil
}
