package server

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// A deployment of the kind secrets brings a new version to what runs, where its manifest says signal: the files change, the
// process gets the signal, and it runs on. It is gated like any other: at most max_parallel instances have the version and
// have not held yet; one that takes it and is not ready then, or ends, turns the deployment back, and all have the version
// of before again. An instance that was not ready before is given the version at once, and decides nothing: it may be what
// mends it.
//
// Which instances have been given the version is not in the log: a server that has just started hears it from them.

// rotations are those that are under way, or were last, by app.
type rotations struct {
	mu    sync.Mutex
	under map[string]*rotation // guarded by mu
}

// rotation is what a deployment of the kind secrets has come to.
type rotation struct {
	deployment string
	given      map[string]*givenSecrets // by instance
}

type givenSecrets struct {
	at time.Time
	// attempt was running then, and decides whether the deployment goes on; 0 when it was not ready.
	attempt uint32
	// taken is since when it has been seen with the version, and ready.
	taken time.Time
}

// of is the rotation of a deployment, which takes the place of the one before.
func (r *rotations) of(d *fleet.Deployment) *rotation {
	key := d.Environment + "/" + d.App
	if r.under == nil {
		r.under = map[string]*rotation{}
	}
	if have := r.under[key]; have == nil || have.deployment != d.ID {
		r.under[key] = &rotation{deployment: d.ID, given: map[string]*givenSecrets{}}
	}
	return r.under[key]
}

// has tells whether an instance was given the secrets of a deployment.
func (r *rotations) has(d *fleet.Deployment, instance string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.of(d).given[instance] != nil
}

// secretsOf are the versions that an instance is to have. known is false when nobody knows yet, because the instance has
// not said which it has: then it keeps those.
func (s *Server) secretsOf(st *fleet.State, i *fleet.Instance) (versions map[string]uint64, known bool) {
	_, versions = st.Settings(i)
	if i.Task {
		return versions, true
	}
	active := st.Deployment(st.App(i.Environment, i.App).Active)
	if active == nil || active.Kind != fleet.KindSecrets || active.State != fleet.Running || i.Deployment != active.Previous {
		return versions, true
	}
	if s.rotations.has(active, i.ID) {
		return active.Secrets, true
	}
	return versions, s.observed.instance(i.ID).report != nil
}

// rotated are the bundles that a deployment brings with a signal.
func rotated(m *manifest.Manifest, d, before *fleet.Deployment) (bundles []string) {
	for name, use := range m.Secrets {
		if strings.HasPrefix(use.OnChange, manifest.OnChangeSignal) && d.Secrets[name] != before.Secrets[name] {
			bundles = append(bundles, name)
		}
	}
	return bundles
}

// rotating is an active deployment of the kind secrets, or nil.
func (s *Server) rotating(id string) (d *fleet.Deployment) {
	s.ledger.read(func(st *fleet.State) { d = st.Deployment(id) })
	if d == nil || !d.Active() || d.Kind != fleet.KindSecrets {
		return nil
	}
	return d
}

// rotate brings a deployment of the kind secrets as far as it goes now, and returns when to look at it again.
func (s *Server) rotate(ctx context.Context, d *fleet.Deployment, now time.Time) (time.Time, error) {
	var event fleet.Payload
	var wake time.Time
	s.ledger.read(func(st *fleet.State) { event, wake = s.nextRotation(st, d, now) })
	if event == nil {
		return wake, nil
	}
	if err := s.ledger.append(ctx, actorServer, "", event); err != nil {
		return time.Time{}, err
	}
	return now, nil
}

// nextRotation gives instances the version whose turn it is, and returns the event that is due, if one is.
func (s *Server) nextRotation(st *fleet.State, d *fleet.Deployment, now time.Time) (fleet.Payload, time.Time) {
	m := st.Release(d.Release).Manifest
	bundles := rotated(m, d, st.Deployment(d.Previous))
	switch {
	case d.State == fleet.RollingBack:
		return &fleet.DeploymentFinished{Deployment: d.ID, Outcome: fleet.RolledBack, Reason: d.Reason}, now
	case !d.PausedAt.IsZero() || s.loop.attended.IsZero():
		return nil, time.Time{}
	}
	back := func(format string, args ...any) (fleet.Payload, time.Time) {
		return &fleet.DeploymentTurnedBack{Deployment: d.ID, Reason: fmt.Sprintf(format, args...)}, now
	}
	deadline := s.watchedSince(d, d.StartedAt, now).Add(m.Rollout.Deadline)
	if !now.Before(deadline) {
		return back("it has not succeeded within its deadline of %s", m.Rollout.Deadline)
	}
	s.rotations.mu.Lock()
	defer s.rotations.mu.Unlock()
	r := s.rotations.of(d)
	var turn []*fleet.Instance
	wake, news, pending := deadline, false, 0
	give := func(i *fleet.Instance, attempt uint32) {
		r.given[i.ID], news = &givenSecrets{at: now, attempt: attempt}, true
		s.feeds.wake([]string{i.Host}) // its assignments are others now
		s.journals.add(d.ID, 0, &pb.WatchDeploymentResponse{
			At: timestamppb.New(now), Text: fmt.Sprintf("instance %s gets the new secrets", i.ID), Instance: i.ID, Level: levelInfo,
		})
	}
	for _, i := range st.Instances(d.Environment, d.App) {
		if i.Task || i.Deployment != d.Previous || i.Stop || i.Final {
			continue
		}
		seen := s.observed.instance(i.ID)
		on, _ := s.observed.connected(i.Host, now)
		ready, taken := on && seen.report.GetState() == stateReady, true
		for _, name := range bundles {
			taken = taken && seen.report.GetSecretVersions()[name] == d.Secrets[name]
		}
		g := r.given[i.ID]
		switch {
		case g == nil && taken && seen.report != nil:
			give(i, seen.report.GetAttempt()) // by a server that has ended
			pending++
		case g == nil && ready:
			turn = append(turn, i)
		case g == nil:
			give(i, 0)
		case g.attempt == 0 || !on: // it decides nothing, or nobody knows how it is
			pending += min(int(g.attempt), 1)
		case seen.report.GetAttempt() != g.attempt || !ready:
			return back("instance %s was ready, and is not with the new secrets: %s", i.ID, because(seen.report))
		case !taken && !now.Before(g.at.Add(m.Rollout.BootTimeout)):
			return back("instance %s has not taken the new secrets within %s: %s", i.ID, m.Rollout.BootTimeout, because(seen.report))
		case !taken:
			wake = sooner(wake, g.at.Add(m.Rollout.BootTimeout))
			pending++
		default:
			if g.taken.IsZero() {
				g.taken = now
			}
			if held := g.taken.Add(m.Rollout.Hold); now.Before(held) {
				wake = sooner(wake, held)
				pending++
			}
		}
	}
	for _, i := range turn {
		if pending < m.Rollout.MaxParallel {
			give(i, s.observed.instance(i.ID).report.GetAttempt())
		}
		pending++
	}
	if news {
		s.changed.fire() // assignments are others now
	}
	if pending == 0 {
		return &fleet.DeploymentFinished{Deployment: d.ID, Outcome: fleet.Succeeded}, now
	}
	return nil, wake
}

func sooner(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// because is what an instance says of itself.
func because(r *pb.InstanceReport) string {
	switch {
	case r.GetMessage() != "":
		return r.GetState() + ", " + r.GetMessage()
	case r.GetState() != "":
		return r.GetState()
	}
	return "it has ended"
}
