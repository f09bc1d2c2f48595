package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// assignmentLoop keeps a stream of assignments from the server and acts on what comes, until ctx is done.
// Instances run under instancesCtx. When the server is away, nothing that runs is touched.
func (a *Agent) assignmentLoop(ctx, instancesCtx context.Context) {
	away := false
	for ctx.Err() == nil {
		err := a.followAssignments(ctx, instancesCtx, func() {
			a.Log.Info("joined the server", "after_an_absence", away)
			away = false
		})
		if ctx.Err() != nil {
			return
		}
		if !away {
			a.Log.Warn("lost the server; what runs goes on, and the agent keeps trying", "err", err)
		}
		away = true
		select {
		case <-ctx.Done():
		case <-time.After(reconnectAfter):
		}
	}
}

// followAssignments joins the server and acts on one stream until it breaks. joined is called once it has.
func (a *Agent) followAssignments(ctx, instancesCtx context.Context, joined func()) error {
	if _, err := a.Server.Join(ctx, connect.NewRequest(&pinnacev1.JoinRequest{Host: a.Host})); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	stream, err := a.Server.WatchAssignments(ctx, connect.NewRequest(&pinnacev1.WatchAssignmentsRequest{Host: a.Host.Id}))
	if err != nil {
		return fmt.Errorf("watch assignments: %w", err)
	}
	// A server that was restored or restarted counts its revisions anew.
	a.revision = 0
	joined()
	for stream.Receive() {
		msg := stream.Msg()
		if msg.Complete && msg.Revision >= a.revision {
			a.revision = msg.Revision
			a.act(instancesCtx, msg)
		}
		// After the assignments: somebody may want the logs of an instance that comes with this message.
		for _, req := range msg.LogRequests {
			a.running.Go(func() { a.sendLogs(instancesCtx, req) })
		}
	}
	return errors.Join(stream.Err(), stream.Close())
}

// act makes the set of instances that run follow the assignments.
func (a *Agent) act(ctx context.Context, msg *pinnacev1.WatchAssignmentsResponse) {
	releases := map[string]*pinnacev1.AssignedRelease{}
	for _, r := range msg.Releases {
		releases[r.Id] = r
	}
	a.routes.setEnvironments(msg.Environments)

	wanted := map[string]bool{}
	for _, asg := range msg.Assignments {
		wanted[asg.Instance] = true
		a.mu.Lock()
		inst := a.instances[asg.Instance]
		a.mu.Unlock()
		if inst == nil {
			inst = a.startInstance(ctx, asg, releases[asg.Release])
		}
		if asg.Stop {
			inst.requestStop()
		}
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	for id, inst := range a.instances {
		if wanted[id] {
			continue
		}
		// The server has heard of the end, or never wants to hear of this instance again.
		inst.requestStop()
		if inst.gone() {
			delete(a.instances, id)
			a.forget(inst)
		}
	}
	a.acted = msg.Revision
	a.changed()
}

// startInstance makes the instance of an assignment and runs it. What cannot be run becomes an instance
// that has ended, so that the server learns why.
func (a *Agent) startInstance(ctx context.Context, asg *pinnacev1.Assignment, rel *pinnacev1.AssignedRelease) *instance {
	w, err := newWorkload(asg, rel)
	inst := newInstance(a, asg, w)
	a.mu.Lock()
	a.instances[asg.Instance] = inst
	a.mu.Unlock()
	a.running.Go(func() {
		defer close(inst.done)
		if err != nil {
			inst.refuse(err)
			return
		}
		inst.run(ctx)
	})
	return inst
}

// workload is the checked content of an assignment.
type workload struct {
	manifest *manifest.Manifest
	release  *pinnacev1.AssignedRelease
	vars     map[string]string
}

// newWorkload reads the Release of an assignment with the code that the server used, and refuses bytes that
// are not what their hash says.
func newWorkload(asg *pinnacev1.Assignment, rel *pinnacev1.AssignedRelease) (*workload, error) {
	if rel == nil {
		return nil, fmt.Errorf("the server sent no release %s", asg.Release)
	}
	if rel.Platform == nil {
		return nil, fmt.Errorf("release %s has no image for the architecture of this host", asg.Release)
	}
	if got := manifest.HashOf(rel.ManifestCanonical); string(got) != rel.ManifestHash {
		return nil, fmt.Errorf("the manifest of release %s hashes to %s, not to %s", asg.Release, got, rel.ManifestHash)
	}
	m, err := manifest.ParseCanonical(rel.ManifestCanonical)
	if err != nil {
		return nil, fmt.Errorf("read the manifest of release %s: %w", asg.Release, err)
	}
	return &workload{manifest: m, release: rel, vars: asg.Vars}, nil
}
