package server

import (
	"slices"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
)

// execRefusal is what an agent says of a command that it cannot run, for the caller.
func execRefusal(r *pb.ExecRefusal) error {
	code := connect.CodeUnavailable
	switch r.GetReason() {
	case "not-running", "unable":
		code = connect.CodeFailedPrecondition
	case "busy":
		code = connect.CodeResourceExhausted
	}
	return refuse(code, "%s", r.GetMessage())
}

// execTarget finds the instance that a command is for, and says why it can't run there.
func (c *control) execTarget(start *pb.ExecStart) (i *fleet.Instance, err error) {
	now := c.now()
	c.ledger.read(func(st *fleet.State) {
		env, target := start.GetEnvironment(), start.GetTarget()
		if _, err = environmentIn(st, env); err != nil {
			return
		}
		if app := st.App(env, target); app != nil {
			i, err = c.firstRunning(st.Instances(env, target), target, env, now)
			return
		}
		if i, err = findInstance(st, env, target); err == nil {
			err = c.canExec(i, now)
		}
	})
	return i, err
}

// firstRunning is the instance with the lowest ordinal in which a command can run.
func (c *control) firstRunning(all []*fleet.Instance, app, env string, now time.Time) (*fleet.Instance, error) {
	if len(all) == 0 {
		return nil, refuse(connect.CodeFailedPrecondition, "no instance of %s runs in %s\nhint: pinnace status %s -e %s", app, env, app, env)
	}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *fleet.Instance) int {
		if a.Ordinal != b.Ordinal {
			return a.Ordinal - b.Ordinal
		}
		return a.PlacedAt.Compare(b.PlacedAt)
	})
	for _, i := range all {
		if c.canExec(i, now) == nil {
			return i, nil
		}
	}
	return nil, c.canExec(all[0], now)
}

// canExec says why no command can run in an instance.
func (c *control) canExec(i *fleet.Instance, now time.Time) error {
	switch state := c.stateOf(i, c.observed.instance(i.ID), now); state {
	case "started", stateReady, "unready", stateStopping:
		return nil
	case stateEnded:
		return refuse(connect.CodeFailedPrecondition, "instance %s has ended\nhint: pinnace why %s tells how", i.ID, i.ID)
	case stateUnknown:
		return refuse(connect.CodeUnavailable, "host %s of instance %s is away\nhint: is `pinnace agent` running there?", i.Host, i.ID)
	case "backoff":
		return refuse(connect.CodeFailedPrecondition, "instance %s does not run: it ended, and is about to start again\nhint: pinnace why %s tells how", i.ID, i.ID)
	default:
		return refuse(connect.CodeFailedPrecondition, "instance %s has not started yet: it is %s\nhint: pinnace why %s tells how far it is", i.ID, state, i.ID)
	}
}
