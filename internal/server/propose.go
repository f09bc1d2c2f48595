package server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// proposal is a deployment that could be started now.
type proposal struct {
	environment string
	app         *fleet.App // nil before the first deployment
	release     *fleet.Release
	kind        fleet.Kind
	count       int
	vars        map[string]string
	secrets     map[string]uint64
	endpoints   []fleet.Endpoint
	older       []string          // what is said of secrets that go back
	live        *fleet.Deployment // nil when nothing is
	target      *fleet.Deployment // of a rollback
	// unchanged is true when what it would bring is there already.
	unchanged bool
	// hosts are where the first instances would go.
	hosts   []string
	running []*fleet.Instance
	// restored are the settings that go back with a rollback.
	restored []fleet.Payload
	ready    map[string]bool // of running
	// bound has the hosts of ordinals whose volumes are somewhere, volumes what each ordinal gets, and notes what to say of
	// volumes that are there.
	bound   map[int]string
	volumes []string
	notes   []string
	now     time.Time
	token   string
}

// propose checks everything that can be known before something is started. An error is fit for the wire, or
// becomes so in onWire. A rollback, which has a target, takes its secrets from there, or the newest ones.
func (s *Server) propose(st *fleet.State, environment string, r *fleet.Release, target *fleet.Deployment, now time.Time, newest bool) (*proposal, error) {
	p := &proposal{environment: environment, release: r, kind: fleet.KindDeploy, count: 1, target: target, app: st.App(environment, r.App), ready: map[string]bool{}, now: now}
	if problems := r.Manifest.Unsupported(); problems.HasErrors() {
		return nil, refuse(connect.CodeInvalidArgument, "release %s of %s is valid, but this version of Pinnace cannot run it:\n%s", r.ID.Short(), r.App, list(problems.Errors()))
	}
	var err error
	if target != nil {
		p.kind, p.vars = fleet.KindRollback, target.Vars
	} else if p.vars, err = varsFor(st.Environment(environment), r.Manifest); err != nil {
		return nil, err
	}
	if p.secrets, err = proposedSecrets(st, p, newest); err != nil {
		return nil, err
	}
	if p.app != nil {
		p.count, p.live = p.app.Count, st.Deployment(p.app.Live)
		for _, i := range st.Instances(environment, r.App) {
			if !i.Task {
				p.running = append(p.running, i)
				p.ready[i.ID] = s.stateOf(i, s.observed.instance(i.ID), now) == stateReady
			}
		}
		if active := st.Deployment(p.app.Active); active != nil {
			return nil, &fleet.BusyError{Active: active}
		}
	}
	for o := range p.count {
		p.volumes = append(p.volumes, volumeText(st, environment, r.Manifest, o))
	}
	p.endpoints = st.Endpoints(environment, r)
	p.token = p.fingerprint()
	if p.unchanged = p.isLive(st); p.unchanged {
		return p, nil
	}
	if err := st.PortConflict(environment, r); err != nil {
		return nil, err
	}
	if err := s.reachVolumes(st, environment, r.Manifest, p.count, now); err != nil {
		return nil, err
	}
	if err := s.roomForVolumes(st, environment, r, p.count, now); err != nil {
		return nil, err
	}
	if p.bound, err = boundHosts(st, environment, r.Manifest, firstOrdinals(p.count)); err != nil {
		return nil, err
	}
	p.notes = volumeWarnings(st, environment, r.Manifest, p.count)
	places, err := s.schedule(st, environment, r, p.firstStep(), now)
	if err != nil {
		return nil, err
	}
	for _, place := range places {
		p.hosts = append(p.hosts, place.Host)
	}
	return p, nil
}

// firstStep are the ordinals of instances that must have room beside what runs for the deployment to begin, or to go on
// at all.
func (p *proposal) firstStep() []int {
	serving, served := 0, map[int]bool{}
	for _, i := range p.running {
		if i.Serves() {
			serving++
			served[i.Ordinal] = true
		}
	}
	m := p.release.Manifest
	switch {
	case m.Rollout.Strategy == manifest.StrategyBlueGreen:
		return firstOrdinals(p.count)
	case m.Rollout.Strategy == manifest.StrategyRecreate, len(m.Volumes) > 0:
		// The others come in the place of those that go.
		missing := slices.DeleteFunc(firstOrdinals(p.count), func(o int) bool { return served[o] })
		return missing[:min(len(missing), max(p.count-serving, 0))]
	default:
		return firstOrdinals(max(min(p.count, m.Rollout.MaxParallel), p.count-serving))
	}
}

// isLive reports whether the release serves with the settings that a deployment would have.
func (p *proposal) isLive(st *fleet.State) bool {
	if p.live == nil || p.live.Release != p.release.ID || p.live.Count != p.count || !maps.Equal(p.live.Vars, p.vars) || !maps.Equal(p.live.Secrets, p.secrets) {
		return false
	}
	have := 0
	for _, i := range p.running {
		if !i.Serves() {
			continue
		}
		if i.Deployment != p.live.ID {
			return false // an earlier deployment ended mixed
		}
		have++
	}
	for _, i := range st.EndedInstances(p.environment, p.release.App) {
		if i.Deployment == p.live.ID && i.Completed() && !i.Task {
			have++
		}
	}
	return have >= p.count
}

// fingerprint changes whenever a plan that was made before is not to be carried out as it is.
func (p *proposal) fingerprint() string {
	h := sha256.New()
	for _, part := range []string{p.environment, string(p.release.ID), string(p.kind), fmt.Sprint(p.count)} {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	for _, name := range slices.Sorted(maps.Keys(p.vars)) {
		fmt.Fprintf(h, "%d:%s,%d:%s,", len(name), name, len(p.vars[name]), p.vars[name])
	}
	for _, text := range p.volumes {
		fmt.Fprintf(h, "%d:%s,", len(text), text)
	}
	for _, name := range slices.Sorted(maps.Keys(p.secrets)) {
		fmt.Fprintf(h, "%d:%s,%d,", len(name), name, p.secrets[name])
	}
	for _, e := range p.endpoints {
		fmt.Fprintf(h, "%s=%s,", e.Name, e)
	}
	if p.app != nil {
		fmt.Fprintf(h, "%s,%s,%s,", p.app.Live, p.app.Latest, strings.Join(p.app.Instances, ","))
	}
	return "plan-" + hex.EncodeToString(h.Sum(nil)[:8])
}

// started is the event that begins what was proposed.
func (p *proposal) started(id string) *fleet.DeploymentStarted {
	e := &fleet.DeploymentStarted{
		Deployment: id, Environment: p.environment, App: p.release.App, Kind: p.kind, Release: string(p.release.ID), Count: p.count, Vars: p.vars,
		Secrets: p.secrets,
	}
	if p.live != nil {
		e.Previous = p.live.ID
	}
	if p.target != nil {
		e.Target = p.target.ID
	}
	return e
}

// warnings are what the plan says beside its steps.
func (p *proposal) warnings() []string {
	out := p.older
	_, problems := manifest.Parse([]byte(p.release.Source))
	for _, w := range problems.Warnings() {
		out = append(out, fmt.Sprintf("%s %s: %s", w.Code, w.Key, w.Message))
	}
	return append(out, p.notes...)
}
