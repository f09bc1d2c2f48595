package server

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/rollout"
)

// awaySince is since when a host has been away, zero when it is connected. Time in which nobody could have heard of it,
// because this server or all hosts were away, does not count.
func (s *Server) awaySince(host string, now time.Time) time.Time {
	on, at := s.observed.connected(host, now)
	if on || s.loop.attended.IsZero() {
		return time.Time{}
	}
	if s.loop.attended.After(at) {
		at = s.loop.attended
	}
	since := at.Add(s.opts.HostTimeout)
	if since.After(now) {
		return time.Time{} // it may be on its way back, as all are after a restart of the server
	}
	return since
}

// troubled are the live deployments that have instances on hosts which are away, drain, or have not the labels that the
// app is placed by, with no deployment of the same app under way. Everything else needs no look.
func (s *Server) troubled(now time.Time) []string {
	found := map[string]bool{}
	s.ledger.read(func(st *fleet.State) {
		for _, h := range st.Hosts() {
			if on, _ := s.observed.connected(h.ID, now); on && h.DrainingAt.IsZero() {
				continue
			}
			for _, i := range st.InstancesOn(h.ID) {
				if app := st.App(i.Environment, i.App); i.Serves() && !i.Task && app.Active == "" && i.Deployment == app.Live {
					found[app.Live] = true
				}
			}
		}
		for _, env := range st.Environments() {
			for name := range env.Placement {
				if app := st.App(env.Name, name); app != nil && app.Active == "" && app.Live != "" && misplaced(st, app) {
					found[app.Live] = true
				}
			}
		}
		// A successor that has come too late: both serve until one is stopped.
		for _, id := range s.loop.kept {
			if d := st.Deployment(id); d != nil {
				if app := st.App(d.Environment, d.App); app.Active == "" && app.Live == id {
					found[id] = true
				}
			}
		}
	})
	var ids []string
	for id := range found {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	s.loop.kept = ids
	return ids
}

// misplaced reports whether an instance runs on a host that has not the labels that its app is placed by.
func misplaced(st *fleet.State, app *fleet.App) bool {
	return slices.ContainsFunc(st.Instances(app.Environment, app.Name), func(i *fleet.Instance) bool {
		h := st.Host(i.Host)
		return i.Serves() && h != nil && !st.Suits(h, app.Environment, app.Name)
	})
}

// keep has what a live deployment is to run run, wherever its hosts have gone, and returns when to look at it again.
func (s *Server) keep(ctx context.Context, deployment string) (time.Time, error) {
	for range maxSteps {
		now := s.now()
		view := s.liveView(deployment, now)
		if view == nil {
			return time.Time{}, nil
		}
		actions, wake, waits := rollout.Keep(*view, s.opts.LostAfter, now)
		events, blocked, err := s.carryOut(deployment, actions, now)
		if err != nil {
			return time.Time{}, err
		}
		if blocked != nil {
			waits = append(waits, blocked.Reason)
		}
		s.sayWaits(ctx, deployment, waits, now)
		if len(events) == 0 {
			if len(actions) == 0 && len(waits) == 0 && settled(view) {
				s.loop.kept = slices.DeleteFunc(s.loop.kept, func(id string) bool { return id == deployment })
			}
			// Hosts that have not been heard of since the server is there begin to count as away.
			if t := s.loop.attended.Add(s.opts.HostTimeout); t.After(now) && (wake.IsZero() || t.Before(wake)) {
				wake = t
			}
			return wake, nil
		}
		if err := s.ledger.append(ctx, actorServer, "", events...); err != nil {
			return time.Time{}, err
		}
	}
	return s.now(), nil
}

// sayWaits tells once what a live deployment waits for.
func (s *Server) sayWaits(ctx context.Context, deployment string, waits []string, now time.Time) {
	reason := strings.Join(waits, "; ")
	known := s.loop.blocked[deployment]
	switch {
	case reason == "":
		delete(s.loop.blocked, deployment)
	case known == nil || known.Reason != reason:
		s.log.WarnContext(ctx, "an instance cannot be kept up", "deployment", deployment, "reason", reason)
		s.loop.blocked[deployment] = &rollout.Blocked{Reason: reason, Since: now}
	}
}

// settled reports whether each ordinal is served by one instance at most, on a host that is there and stays.
func settled(v *rollout.View) bool {
	seen := map[int]bool{}
	for _, i := range v.Instances {
		if i.Ended || i.Stopping {
			continue
		}
		if seen[i.Ordinal] || i.Leaving || !i.Reachable {
			return false
		}
		seen[i.Ordinal] = true
	}
	return true
}

// liveView is what rollout.Keep needs to know of a live deployment; nil when it is not one, or nobody is there who could
// carry anything out.
func (s *Server) liveView(id string, now time.Time) *rollout.View {
	if s.loop.attended.IsZero() {
		return nil
	}
	var v *rollout.View
	s.ledger.read(func(st *fleet.State) {
		d := st.Deployment(id)
		if d == nil {
			return
		}
		if app := st.App(d.Environment, d.App); app.Active != "" || app.Live != id {
			return
		}
		m := st.Release(d.Release).Manifest
		v = &rollout.View{Count: d.Count, MaxParallel: m.Rollout.MaxParallel, Hold: m.Rollout.Hold, StopFirst: len(m.Volumes) > 0}
		for _, i := range slices.Concat(st.Instances(d.Environment, d.App), st.EndedInstances(d.Environment, d.App)) {
			if i.Deployment == id && !i.Task {
				v.Instances = append(v.Instances, s.viewInstance(st, d, i, now))
			}
		}
	})
	return v
}
