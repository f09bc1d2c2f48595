package fleet

import (
	"fmt"
	"maps"
	"slices"
)

// DestroyedError means that an app, or its whole environment, is being destroyed.
type DestroyedError struct{ Environment, App string }

func (e *DestroyedError) Error() string {
	if e.App == "" {
		return fmt.Sprintf("environment %s is being destroyed", e.Environment)
	}
	return fmt.Sprintf("%s in %s is being destroyed: what is left of it has not ended yet", e.App, e.Environment)
}

// Quota is what the instances of an environment may have together; 0 is no bound.
type Quota struct {
	Instances   int   `json:"instances,omitempty"`
	MemoryBytes int64 `json:"memory_bytes,omitempty"` // caps, without overhead
	CPUMilli    int64 `json:"cpu_milli,omitempty"`
}

// Booked is what the instances of an environment have together, those that are stopping included.
func (s *State) Booked(environment string) Quota {
	var sum Quota
	add := func(i *Instance) {
		res := s.releases.get(string(i.Release)).Manifest.Resources
		sum.Instances++
		sum.MemoryBytes += res.MemoryBytes
		sum.CPUMilli += res.CPUMilli
	}
	for _, app := range s.apps.rows {
		if app.Environment != environment {
			continue
		}
		for _, id := range app.Instances {
			add(s.instances.get(id))
		}
	}
	for _, i := range s.Runs(environment, "") {
		add(i)
	}
	return sum
}

func (p *QuotaSet) fold(s *State, _ Event) error {
	q := p.Quota
	switch {
	case s.environments.get(p.Environment) == nil:
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	case q.Instances < 0 || q.MemoryBytes < 0 || q.CPUMilli < 0:
		return fmt.Errorf("quota of %s: an amount is negative", p.Environment)
	}
	s.environments.change(p.Environment, func(env *Environment) { env.Quota = q })
	return nil
}

// beingDestroyed reports whether what is left of an app is on its way out.
func (s *State) beingDestroyed(environment, app string) bool {
	a := s.App(environment, app)
	return a != nil && !a.DestroyedAt.IsZero()
}

func (p *AppDestroyed) fold(s *State, e Event) error {
	app := s.App(p.Environment, p.App)
	switch {
	case app == nil:
		return fmt.Errorf("app %s in %s: %w", p.App, p.Environment, ErrNotFound)
	case !app.DestroyedAt.IsZero():
		return &DestroyedError{Environment: p.Environment, App: p.App}
	}
	return s.destroy(app, e)
}

func (p *EnvironmentDestroyed) fold(s *State, e Event) error {
	env := s.environments.get(p.Environment)
	switch {
	case env == nil:
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	case !env.DestroyedAt.IsZero():
		return &DestroyedError{Environment: p.Environment}
	}
	s.environments.change(p.Environment, func(env *Environment) { env.DestroyedAt = e.At })
	for _, app := range s.Apps(p.Environment) {
		if app.DestroyedAt.IsZero() {
			if err := s.destroy(app, e); err != nil {
				return err
			}
		}
	}
	s.dropEnvironment(p.Environment, e)
	return nil
}

// destroy has the instances of an app stop, and the app go when the last of them has ended.
func (s *State) destroy(app *App, e Event) error {
	if app.Active != "" {
		return &BusyError{Active: s.Deployment(app.Active)}
	}
	for _, i := range s.Instances(app.Environment, app.Name) {
		if !i.Stop {
			s.instances.change(i.ID, func(i *Instance) { i.Stop, i.StopAt = true, e.At })
		}
	}
	for _, i := range s.Runs(app.Environment, app.Name) {
		if !i.Stop {
			s.stopRun(i, &RunStopped{Instance: i.ID, Reason: "its app is being destroyed"}, e)
		}
	}
	app = s.apps.change(appKey(app.Environment, app.Name), func(a *App) { a.DestroyedAt = e.At })
	s.dropApp(app, e)
	return nil
}

// dropApp forgets an app that was destroyed once nothing of it runs. Its volumes are to be removed; the records of its
// deployments and its releases stay.
func (s *State) dropApp(app *App, e Event) {
	if app.DestroyedAt.IsZero() || len(app.Instances)+len(s.Runs(app.Environment, app.Name)) > 0 {
		return
	}
	for _, id := range slices.Concat(app.Ended, app.EndedRuns) {
		s.instances.put(id, nil)
	}
	s.apps.put(appKey(app.Environment, app.Name), nil)
	for _, v := range s.Volumes(app.Environment) {
		if v.App == app.Name {
			s.discard(v, e)
		}
	}
	if env := s.environments.get(app.Environment); env.Placement[app.Name] != nil || env.Routes[app.Name] != nil {
		s.environments.change(app.Environment, func(env *Environment) {
			env.Placement, env.Routes = maps.Clone(env.Placement), maps.Clone(env.Routes)
			delete(env.Placement, app.Name)
			delete(env.Routes, app.Name)
		})
	}
	s.dropEnvironment(app.Environment, e)
}

// discard has a volume removed, whatever it was for.
func (s *State) discard(v *Volume, e Event) {
	s.changeVolume(v.ID, func(v *Volume) {
		if v.DetachedAt.IsZero() {
			v.DetachedAt = e.At
		}
		if v.DeletedAt.IsZero() {
			v.DeletedAt = e.At
		}
	})
}

// dropEnvironment forgets an environment that was destroyed once it has no app any more.
func (s *State) dropEnvironment(name string, e Event) {
	if env := s.environments.get(name); env == nil || env.DestroyedAt.IsZero() || len(s.Apps(name)) > 0 {
		return
	}
	for _, v := range s.Volumes(name) { // of apps that were never deployed
		s.discard(v, e)
	}
	s.dropBundles(name)
	for _, l := range s.Logins(name) {
		s.logins.put(appKey(name, l.Registry), nil)
	}
	s.endTokensOf(name, e.At)
	s.environments.put(name, nil)
}
