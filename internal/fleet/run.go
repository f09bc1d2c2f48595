package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pinnacehq/pinnace/internal/release"
)

// Bounds of a one-off.
const (
	MinRunTimeout = time.Second
	MaxRunTimeout = 24 * time.Hour
	// keptRuns is how many ended one-offs of an app are kept to be shown.
	keptRuns = 32
	// maxRunText bounds a program's name and the reason of a stop in the log, in bytes.
	maxRunText = 4096
)

// Run is what an instance has that is a one-off of its own and not of a deployment.
type Run struct {
	Program   string
	Arguments int
	// Sealed is the name of the sealed command, which is destroyed when the one-off has ended; Recipient is whom it was
	// sealed for.
	Sealed, Recipient string
	Vars              map[string]string
	Secrets           map[string]uint64
	Actor             string
	// Deadline is when it is stopped, should it be there still.
	Deadline time.Time
	// Timeout is how long that is after its placement.
	Timeout time.Duration
	// StopReason is why it was asked to stop, if it was; TimedOut that its time was over.
	StopReason string
	TimedOut   bool
}

// Runs returns the one-offs that run or are to run, by id: of one app, of an environment when app is empty, or of all.
func (s *State) Runs(environment, app string) []*Instance {
	var found []*Instance
	for id := range s.runs.rows {
		i := s.instances.get(id) // the record as it is now
		if (environment == "" || i.Environment == environment) && (app == "" || i.App == app) {
			found = append(found, i)
		}
	}
	slices.SortFunc(found, func(a, b *Instance) int { return cmp.Compare(a.ID, b.ID) })
	return found
}

// EndedRuns returns the one-offs of an app that ended and are remembered, by id.
func (s *State) EndedRuns(environment, app string) []*Instance {
	if a := s.App(environment, app); a != nil {
		return s.resolve(a.EndedRuns)
	}
	return nil
}

// Settings are the variables and the versions of secrets that an instance runs with.
func (s *State) Settings(i *Instance) (vars map[string]string, secrets map[string]uint64) {
	if i.Run != nil {
		return i.Run.Vars, i.Run.Secrets
	}
	d := s.deployments.get(i.Deployment)
	return d.Vars, d.Secrets
}

func (p *RunStarted) fold(s *State, e Event) error {
	if err := p.check(s); err != nil {
		return fmt.Errorf("one-off %s: %w", p.Instance, err)
	}
	timeout := time.Duration(p.TimeoutMilli) * time.Millisecond
	i := &Instance{
		ID: p.Instance, Environment: p.Environment, App: p.App, Host: p.Host, Release: release.ID(p.Release), PlacedAt: e.At, Task: true,
		Run: &Run{
			Program: p.Program, Arguments: p.Arguments, Sealed: p.Sealed, Recipient: p.Recipient, Vars: maps.Clone(p.Vars), Secrets: maps.Clone(p.Secrets),
			Actor: e.Actor, Timeout: timeout, Deadline: e.At.Add(timeout),
		},
	}
	s.putRun(i)
	res := s.releases.get(p.Release).Manifest.Resources
	s.bookings.change(p.Host, func(b *Booking) {
		b.MemoryBytes += res.MemoryBytes
		b.CPUMilli += res.CPUMilli
		b.DiskBytes += res.DiskBytes
		b.Instances = with(b.Instances, p.Instance)
	})
	return nil
}

func (p *RunStarted) check(s *State) error {
	app, env, r := s.App(p.Environment, p.App), s.environments.get(p.Environment), s.releases.get(p.Release)
	switch {
	case env == nil:
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	case app == nil:
		return fmt.Errorf("app %s in %s: %w", p.App, p.Environment, ErrNotFound)
	case !app.DestroyedAt.IsZero():
		return &DestroyedError{Environment: p.Environment, App: p.App}
	case r == nil || r.App != p.App:
		return fmt.Errorf("release %q of app %s: %w", p.Release, p.App, ErrNotFound)
	case s.hosts.get(p.Host) == nil:
		return fmt.Errorf("host %q: %w", p.Host, ErrNotFound)
	case p.Instance == "" || s.instances.get(p.Instance) != nil:
		return ErrExists
	case p.Program == "" || len(p.Program) > maxRunText || p.Arguments < 0:
		return errors.New("there is no command")
	case p.TimeoutMilli < MinRunTimeout.Milliseconds() || p.TimeoutMilli > MaxRunTimeout.Milliseconds():
		return fmt.Errorf("a timeout of %d ms is not within %s and %s", p.TimeoutMilli, MinRunTimeout, MaxRunTimeout)
	case !sealedShape.MatchString(p.Sealed) || p.Recipient == "" || len(p.Recipient) > maxRecipient:
		return errors.New("it does not say where its command is sealed, or for whom")
	case !slices.Equal(slices.Sorted(maps.Keys(p.Secrets)), slices.Sorted(maps.Keys(r.Manifest.Secrets))):
		return fmt.Errorf("release %s of %s names other secret bundles than there are versions of", p.Release, p.App)
	}
	return s.checkSecrets(p.Environment, p.Secrets)
}

func (p *RunStopped) fold(s *State, e Event) error {
	i := s.instances.get(p.Instance)
	switch {
	case i == nil || i.Run == nil || i.Final:
		return fmt.Errorf("one-off %q that runs: %w", p.Instance, ErrNotFound)
	case i.Stop:
		return fmt.Errorf("one-off %s is stopping already: %w", i.ID, ErrConflict)
	case p.Reason == "" || len(p.Reason) > maxRunText:
		return fmt.Errorf("stop one-off %s: want a reason of 1 to %d bytes", i.ID, maxRunText)
	}
	s.stopRun(i, p, e)
	return nil
}

// stopRun has a one-off stop.
func (s *State) stopRun(i *Instance, p *RunStopped, e Event) {
	changed, run := *i, *i.Run
	run.StopReason, run.TimedOut = p.Reason, p.TimedOut
	changed.Run, changed.Stop, changed.StopAt = &run, true, e.At
	s.putRun(&changed)
}

// putRun stores a one-off as it is now, among those that run unless it has ended.
func (s *State) putRun(i *Instance) {
	s.instances.put(i.ID, i)
	if i.Final {
		s.runs.put(i.ID, nil)
		return
	}
	s.runs.put(i.ID, i)
}

// endRun keeps a one-off that has ended among those of its app, the newest of them.
func (s *State) endRun(i *Instance) *App {
	s.putRun(i)
	return s.apps.change(appKey(i.Environment, i.App), func(a *App) {
		a.EndedRuns = append(slices.Clone(a.EndedRuns), i.ID)
		if more := len(a.EndedRuns) - keptRuns; more > 0 {
			for _, id := range a.EndedRuns[:more] {
				s.instances.put(id, nil)
			}
			a.EndedRuns = a.EndedRuns[more:]
		}
	})
}
