package server

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/release"
)

// seesEvent reports whether an event is of an environment that the caller sees, or of a release that it sees. What is of
// neither, or of something that was forgotten, is for those who see everything.
func seesEvent(ctx context.Context, st *fleet.State, e *eventlog.Event) bool {
	t := callerOf(ctx)
	if t.All {
		return true
	}
	var about struct {
		Environment, Deployment, Instance, Volume, Release, Name string
	}
	if json.Unmarshal(e.Payload, &about) != nil {
		return false
	}
	switch e.Type {
	case "environment.created":
		about.Environment = about.Name
	case "release.created", "release.sourced":
		id, err := release.ParseID(about.Release)
		r := st.Release(id)
		return err == nil && r != nil && seesRelease(ctx, st, r)
	}
	env := st.Environment(environmentOf(st, about.Environment, about.Deployment, about.Instance, about.Volume))
	// An earlier environment of the name was another one.
	return env != nil && t.Sees(env.Name) && e.Time >= env.CreatedAt.UnixNano()
}

// environmentOf is the environment of the first of these that an event names; empty when it is not known.
func environmentOf(st *fleet.State, environment, deployment, instance, volume string) string {
	switch {
	case environment != "":
		return environment
	case deployment != "":
		if d := st.Deployment(deployment); d != nil {
			return d.Environment
		}
	case instance != "":
		if i := st.Instance(instance); i != nil {
			return i.Environment
		}
	case volume != "":
		if v := st.Volume(volume); v != nil {
			return v.Environment
		}
	}
	return ""
}

// seesEvents leaves out the events that the caller does not see.
func (c *control) seesEvents(ctx context.Context, events []eventlog.Event) []eventlog.Event {
	if callerOf(ctx).All {
		return events
	}
	var seen []eventlog.Event
	c.ledger.read(func(st *fleet.State) {
		seen = slices.DeleteFunc(slices.Clone(events), func(e eventlog.Event) bool { return !seesEvent(ctx, st, &e) })
	})
	return seen
}

// holderFor leaves out of a conflict whose it is when the caller does not see that environment.
func holderFor(ctx context.Context, e *fleet.PortConflictError) error {
	if callerOf(ctx).Sees(e.Environment) {
		return e
	}
	hidden := *e
	hidden.Environment, hidden.App = "", ""
	return &hidden
}
