package fleet

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

const (
	// MaxCount is the largest number of instances of a deployment.
	MaxCount = 1000
	// defaultCount is what an app has until somebody scales it.
	defaultCount = 1
	// keptEnded is how many ended instances of an app are kept to be shown.
	keptEnded = 32
)

var nameShape = regexp.MustCompile(`^[a-z][a-z0-9-]{0,39}$`)

// ValidName reports whether name may name an environment or an app.
func ValidName(name string) bool { return nameShape.MatchString(name) }

func appKey(environment, app string) string { return environment + "/" + app }

func (p *EnvironmentCreated) fold(s *State, e Event) error {
	if !ValidName(p.Name) {
		return fmt.Errorf("environment name %q: want %s", p.Name, nameShape)
	}
	if s.environments.get(p.Name) != nil {
		return fmt.Errorf("environment %s: %w", p.Name, ErrExists)
	}
	s.environments.put(p.Name, &Environment{Name: p.Name, CreatedAt: e.At})
	return nil
}

// Bounds of the variables of an environment: how many, and how many bytes names and values have in all.
const (
	MaxVars      = 256
	MaxVarsBytes = 128 << 10
)

var varShape = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

func checkVar(name, value string) error {
	switch {
	case !varShape.MatchString(name):
		return fmt.Errorf("variable name %q: want %s", name, varShape)
	case strings.HasPrefix(name, "PINNACE_"):
		return fmt.Errorf("variable %s: the prefix PINNACE_ is the platform's", name)
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		return fmt.Errorf("variable %s: its value is not text", name)
	}
	return nil
}

// CheckVars says why variables cannot be those of an environment.
func CheckVars(vars map[string]string) error {
	size := 0
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if err := checkVar(name, vars[name]); err != nil {
			return err
		}
		size += len(name) + len(vars[name])
	}
	if len(vars) > MaxVars || size > MaxVarsBytes {
		return fmt.Errorf("%d variables with %d bytes: the most is %d with %d bytes", len(vars), size, MaxVars, MaxVarsBytes)
	}
	return nil
}

func (p *VarsChanged) fold(s *State, _ Event) error {
	env := s.environments.get(p.Environment)
	if env == nil {
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	}
	if len(p.Set)+len(p.Unset) == 0 {
		return fmt.Errorf("variables of %s: nothing changes", p.Environment)
	}
	vars := maps.Clone(env.Vars)
	if vars == nil {
		vars = map[string]string{}
	}
	for _, name := range p.Unset {
		if _, ok := vars[name]; !ok {
			return fmt.Errorf("variable %s of %s: %w", name, p.Environment, ErrNotFound)
		}
		delete(vars, name)
	}
	maps.Copy(vars, p.Set)
	if err := CheckVars(vars); err != nil {
		return fmt.Errorf("variables of %s: %w", p.Environment, err)
	}
	s.environments.change(p.Environment, func(env *Environment) { env.Vars = vars })
	return nil
}

// maxPlaced bounds the apps of an environment that are placed, and the labels of one.
const (
	maxPlaced      = 1024
	maxPlaceLabels = 16
)

func (p *AppPlaced) fold(s *State, _ Event) error {
	env := s.environments.get(p.Environment)
	switch {
	case env == nil:
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	case !ValidName(p.App):
		return fmt.Errorf("app name %q: want %s", p.App, nameShape)
	case len(p.Labels) > maxPlaceLabels:
		return fmt.Errorf("app %s: placed by %d labels, the most is %d", p.App, len(p.Labels), maxPlaceLabels)
	}
	placement := maps.Clone(env.Placement)
	if placement == nil {
		placement = map[string]map[string]string{}
	}
	delete(placement, p.App)
	if len(p.Labels) > 0 {
		placement[p.App] = maps.Clone(p.Labels)
	}
	if len(placement) > maxPlaced {
		return fmt.Errorf("environment %s: %d apps are placed, the most is %d", p.Environment, len(placement), maxPlaced)
	}
	s.environments.change(p.Environment, func(env *Environment) { env.Placement = placement })
	return nil
}

// Suits reports whether a host has the labels that an app is placed by.
func (s *State) Suits(h *Host, environment, app string) bool {
	return HasLabels(h, s.environments.get(environment).Placement[app])
}

// HasLabels reports whether a host has labels with these values.
func HasLabels(h *Host, labels map[string]string) bool {
	for name, value := range labels {
		if got, ok := h.Labels[name]; !ok || got != value {
			return false
		}
	}
	return true
}

func (p *HostJoined) fold(s *State, e Event) error {
	if p.Host == "" || p.Architecture == "" || p.MemoryBytes <= 0 || p.CPUMilli <= 0 || p.DiskBytes <= 0 {
		return fmt.Errorf("host %q: id, architecture, memory, CPU and disk are needed", p.Host)
	}
	h := &Host{
		ID: p.Host, Name: p.Name, Architecture: p.Architecture, MemoryBytes: p.MemoryBytes, CPUMilli: p.CPUMilli, DiskBytes: p.DiskBytes,
		Labels: maps.Clone(p.Labels), Version: p.Version, Driver: p.Driver, Accelerator: p.Accelerator, JoinedAt: e.At,
	}
	if known := s.hosts.get(p.Host); known != nil {
		h.DrainingAt = known.DrainingAt // only a person ends a drain
	}
	s.hosts.put(p.Host, h)
	if s.bookings.get(p.Host) == nil {
		s.bookings.put(p.Host, &Booking{})
	}
	return nil
}

func (p *HostDrainStarted) fold(s *State, e Event) error {
	h := s.hosts.get(p.Host)
	switch {
	case h == nil:
		return fmt.Errorf("host %q: %w", p.Host, ErrNotFound)
	case !h.DrainingAt.IsZero():
		return fmt.Errorf("host %s drains already: %w", p.Host, ErrExists)
	}
	s.hosts.change(p.Host, func(h *Host) { h.DrainingAt = e.At })
	return nil
}

func (p *HostDrainEnded) fold(s *State, _ Event) error {
	h := s.hosts.get(p.Host)
	if h == nil || h.DrainingAt.IsZero() {
		return fmt.Errorf("host %q that drains: %w", p.Host, ErrNotFound)
	}
	s.hosts.change(p.Host, func(h *Host) { h.DrainingAt = time.Time{} })
	return nil
}

// lostCause is how the instances of a host end that is removed.
const lostCause = "lost"

func (p *HostRemoved) fold(s *State, e Event) error {
	if s.hosts.get(p.Host) == nil {
		return fmt.Errorf("host %q: %w", p.Host, ErrNotFound)
	}
	for _, i := range s.InstancesOn(p.Host) {
		if i.Serves() && !slices.Contains(p.Lost, i.ID) {
			return fmt.Errorf("host %s has instance %s, which nothing has succeeded", p.Host, i.ID)
		}
		planned := i.Stop
		gone := s.instances.change(i.ID, func(i *Instance) {
			i.Final = true
			i.LastEnd = &End{Attempt: i.StartedAttempt, Cause: Cause{Kind: lostCause, Detail: "its host was removed"}, Planned: planned, At: e.At}
		})
		s.release(gone, e)
	}
	for _, v := range s.VolumesOn(p.Host) {
		s.dropVolume(v)
	}
	s.hosts.put(p.Host, nil)
	s.bookings.put(p.Host, nil)
	s.admissions.put(p.Host, nil)
	return nil
}

func (p *ReleaseCreated) fold(s *State, e Event) error {
	m, err := manifest.ParseCanonical([]byte(p.ManifestCanonical))
	if err != nil {
		return fmt.Errorf("manifest of release %s: %w", p.Release, err)
	}
	image, err := release.ParseImageDigest(p.Image)
	if err != nil {
		return fmt.Errorf("release %s: %w", p.Release, err)
	}
	r := release.Release{App: m.Name, Image: image, Manifest: manifest.HashOf([]byte(p.ManifestCanonical))}
	switch {
	case p.ManifestHash != string(r.Manifest):
		return fmt.Errorf("release %s: its manifest has the hash %s, not %s", p.Release, r.Manifest, p.ManifestHash)
	case p.App != m.Name:
		return fmt.Errorf("release %s: its manifest is of app %s, not %s", p.Release, m.Name, p.App)
	case p.Release != string(r.ID()):
		return fmt.Errorf("release %s: its image and manifest make %s", p.Release, r.ID())
	case len(p.Platforms) == 0:
		return fmt.Errorf("release %s: no platform", p.Release)
	case s.releases.get(p.Release) != nil:
		return fmt.Errorf("release %s: %w", p.Release, ErrExists)
	}
	s.releases.put(p.Release, &Release{
		ID: r.ID(), App: p.App, Image: image, Hash: r.Manifest, Source: p.ManifestSource, Canonical: p.ManifestCanonical, Manifest: m,
		Sources: slices.Clone(p.Sources), Platforms: slices.Clone(p.Platforms), Seq: e.Seq, CreatedAt: e.At, CreatedBy: e.Actor,
	})
	return nil
}

func (p *ReleaseSourced) fold(s *State, _ Event) error {
	if s.releases.get(p.Release) == nil {
		return fmt.Errorf("release %s: %w", p.Release, ErrNotFound)
	}
	s.releases.change(p.Release, func(r *Release) { r.Sources = slices.Clone(p.Sources) })
	return nil
}

func (p *DeploymentStarted) fold(s *State, e Event) error {
	if err := p.check(s); err != nil {
		return err
	}
	key := appKey(p.Environment, p.App)
	if s.apps.get(key) == nil {
		index := s.environments.get(p.Environment).Apps
		s.environments.change(p.Environment, func(env *Environment) { env.Apps++ })
		s.apps.put(key, &App{Environment: p.Environment, Name: p.App, Index: index, Count: defaultCount})
	}
	d := &Deployment{
		ID: p.Deployment, Environment: p.Environment, App: p.App, Kind: p.Kind, Release: release.ID(p.Release), Count: p.Count,
		Vars: maps.Clone(p.Vars), Secrets: maps.Clone(p.Secrets), Previous: p.Previous, Before: s.apps.get(key).Latest, Target: p.Target,
		State: Running, Actor: e.Actor, Seq: e.Seq, StartedAt: e.At,
	}
	s.putDeployment(d)
	s.apps.change(key, func(a *App) { a.Active, a.Latest = d.ID, d.ID })
	return nil
}

func (p *DeploymentStarted) check(s *State) error {
	if s.environments.get(p.Environment) == nil {
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	}
	r := s.releases.get(p.Release)
	if r == nil || r.App != p.App {
		return fmt.Errorf("release %s of app %s: %w", p.Release, p.App, ErrNotFound)
	}
	if p.Deployment == "" || s.deployments.get(p.Deployment) != nil {
		return fmt.Errorf("deployment %q: %w", p.Deployment, ErrExists)
	}
	live := ""
	app := s.App(p.Environment, p.App)
	if app != nil {
		live = app.Live
		if app.Active != "" {
			return &BusyError{Active: s.Deployment(app.Active)}
		}
		if !app.DestroyedAt.IsZero() {
			return &DestroyedError{Environment: p.Environment, App: p.App}
		}
	} else if env := s.environments.get(p.Environment); !env.DestroyedAt.IsZero() {
		return &DestroyedError{Environment: p.Environment}
	} else if env.Apps >= MaxApps {
		return fmt.Errorf("environment %s: it has given out all of its %d virtual addresses", p.Environment, MaxApps)
	}
	if p.Previous != live {
		return &StaleError{Want: p.Previous, Have: live}
	}
	if err := s.checkSecrets(p.Environment, p.Secrets); err != nil {
		return err
	}
	switch p.Kind {
	case KindStop:
		if p.Count != 0 || app == nil {
			return fmt.Errorf("a stop is of an app that was deployed, to a count of 0, not %d", p.Count)
		}
		return nil
	case KindScale:
		live := s.Deployment(live)
		if live == nil || live.Count == 0 || p.Release != string(live.Release) || !maps.Equal(p.Vars, live.Vars) {
			return fmt.Errorf("a scale is of what is live, with another count")
		}
		if !maps.Equal(p.Secrets, live.Secrets) {
			return fmt.Errorf("a scale does not change secrets")
		}
		fallthrough
	case KindSecrets, KindDeploy, KindRollback, KindSettings, KindRestart:
		if p.Count < 1 || p.Count > MaxCount {
			return fmt.Errorf("count %d is not within 1 and %d", p.Count, MaxCount)
		}
		if p.Kind == KindSecrets && !p.inPlace(s.Deployment(live)) {
			return fmt.Errorf("new secrets are for what is live as it is")
		}
		if !slices.Equal(slices.Sorted(maps.Keys(p.Secrets)), slices.Sorted(maps.Keys(r.Manifest.Secrets))) {
			return fmt.Errorf("release %s of %s names other secret bundles than the deployment has versions of", p.Release, p.App)
		}
		return s.PortConflict(p.Environment, r)
	default:
		return fmt.Errorf("unknown kind of deployment %q", p.Kind)
	}
}

// inPlace reports whether nothing but the secrets is other than it is in the live deployment.
func (p *DeploymentStarted) inPlace(live *Deployment) bool {
	return live != nil && live.Count == p.Count && p.Release == string(live.Release) && maps.Equal(p.Vars, live.Vars)
}

func (p *DeploymentPaused) fold(s *State, e Event) error {
	d := s.active.get(p.Deployment)
	if d == nil || !d.PausedAt.IsZero() {
		return fmt.Errorf("deployment %q is not one that can be paused", p.Deployment)
	}
	changed := *d
	changed.PausedAt = e.At
	s.putDeployment(&changed)
	return nil
}

func (p *DeploymentResumed) fold(s *State, e Event) error {
	d := s.active.get(p.Deployment)
	if d == nil || d.PausedAt.IsZero() {
		return fmt.Errorf("deployment %q is not paused", p.Deployment)
	}
	changed := *d
	changed.PausedAt, changed.ResumedAt = time.Time{}, e.At
	s.putDeployment(&changed)
	return nil
}

func (p *DeploymentTurnedBack) fold(s *State, e Event) error {
	d := s.deployments.get(p.Deployment)
	if d == nil || d.State != Running || d.Kind == KindStop {
		return fmt.Errorf("deployment %q is not one that can be turned back", p.Deployment)
	}
	changed := *d
	changed.State, changed.Reason, changed.TurnedAt, changed.PausedAt = RollingBack, p.Reason, e.At, time.Time{}
	s.putDeployment(&changed)
	return nil
}

func (p *DeploymentSwitched) fold(s *State, _ Event) error {
	d := s.deployments.get(p.Deployment)
	if d == nil || d.State != Running || d.Switched || s.releases.get(string(d.Release)).Manifest.Rollout.Strategy != manifest.StrategyBlueGreen {
		return fmt.Errorf("deployment %q is not one that can be switched", p.Deployment)
	}
	changed := *d
	changed.Switched = true
	s.putDeployment(&changed)
	return nil
}

func (p *DeploymentFinished) fold(s *State, e Event) error {
	d := s.active.get(p.Deployment)
	if d == nil {
		return fmt.Errorf("deployment %q is not active", p.Deployment)
	}
	switch p.Outcome {
	case Succeeded, RolledBack, Failed, Mixed:
	case Running, RollingBack:
		return fmt.Errorf("deployment %s: %q is not an outcome", d.ID, p.Outcome)
	default:
		return fmt.Errorf("deployment %s: unknown outcome %q", d.ID, p.Outcome)
	}
	changed := *d
	changed.State, changed.Reason, changed.EndedAt = p.Outcome, p.Reason, e.At
	s.putDeployment(&changed)
	s.apps.change(appKey(d.Environment, d.App), func(a *App) {
		a.Active = ""
		if p.Outcome == Succeeded {
			a.Live = d.ID
		}
		if p.Outcome == Succeeded && d.Kind == KindScale {
			a.Count = d.Count
		}
	})
	if p.Outcome == Succeeded && d.Kind.InPlace() {
		s.adopt(d)
	}
	return nil
}

// adopt gives a deployment that replaced nothing the instances that it found.
func (s *State) adopt(d *Deployment) {
	for _, i := range s.Instances(d.Environment, d.App) {
		if i.Deployment == d.Previous {
			s.instances.change(i.ID, func(i *Instance) { i.Deployment = d.ID })
		}
	}
}

func (s *State) putDeployment(d *Deployment) {
	s.deployments.put(d.ID, d)
	if d.Active() {
		s.active.put(d.ID, d)
	} else {
		s.active.put(d.ID, nil)
	}
}
