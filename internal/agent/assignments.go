package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// errQuiet ends a stream of assignments that has been silent for too long: its other end may be gone without
// this end being told.
var errQuiet = errors.New("the server has said nothing for too long")

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
			a.Log.Warn("the server is away; what runs goes on, and the agent keeps trying", "err", err)
		}
		away = true
		sleep(ctx, jittered(a.timing.reconnect))
	}
}

// jittered is d, give or take half of it: when a server has gone, all agents have noticed at the same time.
func jittered(d time.Duration) time.Duration {
	return d/2 + rand.N(d+1) //nolint:gosec // nobody gains by guessing it
}

// followAssignments joins the server and acts on one stream until it breaks, and returns why. joined is called
// once it has.
func (a *Agent) followAssignments(ctx, instancesCtx context.Context, joined func()) error {
	if err := a.join(ctx); err != nil {
		return err
	}
	streamCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(a.timing.silence, func() { cancel(errQuiet) })
	defer quiet.Stop()
	stream, err := a.Server.WatchAssignments(streamCtx, connect.NewRequest(&pinnacev1.WatchAssignmentsRequest{Host: a.Host.Id, Follows: true}))
	if err != nil {
		return fmt.Errorf("watch assignments: %w", err)
	}
	// A server that was restored from a backup counts its revisions from an earlier one.
	a.revision = 0
	a.follows = following{}
	joined()
	for stream.Receive() {
		quiet.Reset(a.timing.silence)
		if err := a.receive(instancesCtx, stream.Msg()); err != nil {
			cancel(err) // before the stream is closed, which reads it to its end
			return errors.Join(err, stream.Close())
		}
	}
	err = errors.Join(stream.Err(), stream.Close())
	switch {
	case errors.Is(context.Cause(streamCtx), errQuiet):
		return errQuiet
	case err == nil:
		return errors.New("the server ended the stream of assignments")
	}
	return fmt.Errorf("watch assignments: %w", err)
}

func (a *Agent) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.timing.call)
	defer cancel()
	seen := a.heads.seq()
	res, err := a.Server.Join(ctx, connect.NewRequest(&pinnacev1.JoinRequest{Host: a.Host, SeenSeq: seen}))
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := a.heads.joined(seen, res.Msg); err != nil {
		return fmt.Errorf("join: %w", err)
	}
	return nil
}

// receive acts on one message of the stream. After an error the stream is of no use any more.
func (a *Agent) receive(ctx context.Context, msg *pinnacev1.WatchAssignmentsResponse) error {
	if err := a.follows.take(msg); err != nil || msg.More {
		return err
	}
	old := msg.Complete && msg.Revision < a.revision
	if !old {
		if f, ok := a.follows.fleet(a.Host.Id, msg); ok {
			a.routes.setFleet(f)
		}
	}
	if msg.Complete && !old {
		first := a.revision == 0
		a.revision = msg.Revision
		a.act(ctx, msg, first)
	}
	// After the assignments: somebody may want something of an instance that comes with this message.
	for _, req := range msg.LogRequests {
		a.running.Go(func() { a.answerLogRequest(ctx, req) })
	}
	for _, task := range msg.ExecTasks {
		a.running.Go(func() { a.serveExec(ctx, task) })
	}
	for _, task := range msg.HostTasks {
		a.running.Go(func() { a.serveTask(ctx, task) })
	}
	return nil
}

// act makes the set of instances that run follow the assignments. first tells that it is the first set of a
// stream, so that others may have been missed.
func (a *Agent) act(ctx context.Context, msg *pinnacev1.WatchAssignmentsResponse, first bool) {
	releases := map[string]*pinnacev1.AssignedRelease{}
	for _, r := range msg.Releases {
		releases[r.Id] = r
	}
	logins := map[string][]Login{}
	for i, asg := range msg.Assignments {
		msg.Assignments[i], logins[asg.Instance] = splitLogins(asg)
	}
	a.mu.Lock()
	a.logins = logins
	a.mu.Unlock()
	wanted := map[string]bool{}
	for _, asg := range msg.Assignments {
		wanted[asg.Instance] = true
		a.mu.Lock()
		inst := a.instances[asg.Instance]
		a.mu.Unlock()
		open, secrets, err := splitSecrets(asg)
		switch {
		case inst == nil:
			inst = a.startInstance(ctx, open, releases[asg.Release], secrets, err)
		case err != nil:
			inst.log.Error("the server sent secrets that cannot be; going on with those that are here", "err", err)
		default:
			inst.deliver(secrets)
			inst.assign(open)
		}
		inst.hurried.Store(asg.Undrained)
		switch {
		case asg.StopNow:
			inst.requestKill()
		case asg.Stop:
			inst.requestStop()
		}
	}
	a.dropOthers(wanted)
	if first {
		a.forgetOthers(wanted)
	}
	a.shelf.want(msg.RemovedVolumes)
	a.mu.Lock()
	a.acted = msg.Revision
	a.mu.Unlock()
	a.changed()
}

// dropOthers stops the instances that are not in wanted: the server has heard of their end, or never wants to
// hear of them again.
func (a *Agent) dropOthers(wanted map[string]bool) {
	a.mu.Lock()
	all := slices.Collect(maps.Values(a.instances))
	for _, inst := range all {
		inst.unwanted = !wanted[inst.id]
		if inst.unwanted {
			inst.requestStop()
		}
	}
	a.mu.Unlock()
	for _, inst := range all {
		a.reap(inst)
	}
}

// reap forgets an instance that nobody wants and of which nothing runs.
func (a *Agent) reap(inst *instance) {
	a.mu.Lock()
	over := inst.unwanted && inst.gone() && a.instances[inst.id] == inst
	if over {
		delete(a.instances, inst.id)
	}
	a.mu.Unlock()
	if over {
		a.forget(inst)
	}
}

// startInstance makes the instance of an assignment and runs it. What cannot be run becomes an instance
// that has ended, so that the server learns why.
func (a *Agent) startInstance(ctx context.Context, asg *pinnacev1.Assignment, rel *pinnacev1.AssignedRelease, secrets bundles, err error) *instance {
	w, wrong := newWorkload(asg, rel)
	err = errors.Join(wrong, err)
	inst := newInstance(a, asg, w)
	if err == nil && secrets != nil {
		inst.deliver(secrets)
	}
	a.mu.Lock()
	a.instances[asg.Instance] = inst
	a.mu.Unlock()
	if err == nil {
		a.logs.begin(asg.Instance)
	}
	a.runInstance(ctx, inst, err)
	return inst
}

// runInstance runs an instance until its end, or refuses to.
func (a *Agent) runInstance(ctx context.Context, inst *instance, refused error) {
	a.running.Go(func() {
		defer a.reap(inst)
		defer close(inst.done)
		defer a.logs.end(inst.id)
		if refused != nil {
			inst.refuse(1, refused)
			return
		}
		inst.run(ctx)
	})
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
	if !instanceName.MatchString(asg.Instance) {
		return nil, fmt.Errorf("%q cannot be the name of an instance", asg.Instance)
	}
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
	switch {
	case len(asg.Task) > 0:
		m = taskOf(m, asg.Task)
	case asg.Once:
		return nil, errors.New("the server sent no command of the one-off")
	}
	if err := checkVolumes(m, asg); err != nil {
		return nil, err
	}
	return &workload{manifest: m, release: rel, vars: asg.Vars}, nil
}

// taskOf is the manifest of a one-off: that of the release, with another command, which runs once and serves nobody.
func taskOf(m *manifest.Manifest, command []string) *manifest.Manifest {
	task := *m
	task.Entrypoint, task.Command = command, nil
	task.Restart = manifest.RestartNever
	task.Ports, task.Volumes, task.Health = nil, nil, manifest.Health{}
	return &task
}
