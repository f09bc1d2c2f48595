package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/local"
	"github.com/pinnacehq/pinnace/internal/registry"
)

// localEnvironment is the environment of everything that runs locally. Each name has its own network all the same.
const localEnvironment = "local"

// runLocal runs what spec says until it has ended.
func (c *cli) runLocal(ctx context.Context, f *localFlags, spec *localSpec) (err error) {
	stop := listenForStops(ctx)
	defer stop.end()
	ctx = stop.ctx // done with the first signal

	view := c.newLocalView(f.times)
	if err := c.resolveLocal(ctx, view, f.image, spec); err != nil {
		return err
	}
	place, err := takeLocal(ctx, f.dirs, spec.name, f.role.firstUID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, place.release()) }()
	for _, note := range ignoredLocally(spec.manifest, f.before) {
		view.note("%s", note)
	}
	store, err := openSharedStore(f.dirs.data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	host := newLocalHost(view, &f.role, place, store)
	if err := host.start(ctx, stop); err != nil {
		return err
	}
	runErr := host.server.Listen(execSocket(place.dirs.run))
	if runErr == nil {
		runErr = host.runAll(ctx, c, f, spec)
	}
	if endErr := host.end(); endErr != nil {
		return errors.Join(runErr, endErr)
	}
	return errors.Join(runErr, place.clear())
}

// resolveLocal finds the image, and what of it runs here.
func (c *cli) resolveLocal(ctx context.Context, view *localView, reference string, spec *localSpec) error {
	began := time.Now()
	resolved, err := c.resolve(ctx, reference)
	if err != nil {
		return err
	}
	spec.image = resolved
	arch := spec.manifest.Arch
	if len(arch) > 0 && !slices.Contains(arch, runtime.GOARCH) {
		return fail(exitInvalid, "add it to arch in the manifest", "this machine is %s, and the manifest is for %s", runtime.GOARCH, strings.Join(arch, ", "))
	}
	at := slices.IndexFunc(resolved.Platforms, func(p registry.Platform) bool { return p.Architecture == runtime.GOARCH })
	if at < 0 {
		var have []string
		for _, p := range resolved.Platforms {
			have = append(have, p.Architecture)
		}
		return fail(exitInvalid, "build it for "+runtime.GOARCH+", too", "%s has nothing for %s, which this machine is; it has %s", reference, runtime.GOARCH, orNone(have))
	}
	spec.platform = resolved.Platforms[at]
	id := spec.releaseID()
	if c.json {
		view.event(localEvent{
			Event: "resolved", Repository: resolved.Repository, Image: resolved.Digest, Manifest: string(spec.manifest.Hash()), Release: string(id),
		})
		return nil
	}
	c.say("resolved %s to %s@%s in %s", reference, resolved.Repository, shortDigest(resolved.Digest), since(began))
	c.say("running %s (image %s, manifest %s)", id.Short(), shortDigest(resolved.Digest), shortDigest(string(spec.manifest.Hash())))
	return nil
}

// openSharedStore opens the image store of the machine's agent, which there need not be.
func openSharedStore(dataDir string) (*image.Store, error) {
	dir := filepath.Join(dataDir, "agent", "images")
	if err := durable.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, storeFailure(err)
	}
	store, err := image.Open(dir)
	return store, storeFailure(err)
}

// localHost is an agent with a server that is only for it.
type localHost struct {
	role   *agentRole
	server *local.Server
	stop   *stops
	endAll context.CancelFunc
	done   chan struct{} // closed when the agent has ended; then err is set
	err    error

	mu      sync.Mutex
	view    *localView                  // guarded by mu
	changed chan struct{}               // guarded by mu; closed and replaced with each report
	acted   uint64                      // guarded by mu
	runs    []*pinnacev1.InstanceReport // guarded by mu
}

func newLocalHost(view *localView, role *agentRole, place *localPlace, store *image.Store) *localHost {
	h := &localHost{view: view, role: role, done: make(chan struct{}), changed: make(chan struct{})}
	h.server = local.New(local.Options{
		Report:   h.report,
		Lines:    h.lines,
		Answered: func(request string) { h.shown().answered(request) },
	})
	if role.kernels == "" {
		role.kernels = filepath.Join(filepath.Dir(filepath.Dir(place.dirs.data)), "kernels")
	}
	place.learn()
	role.dirs, role.firstUID, role.prefix = place.dirs, place.uids, place.prefix()
	role.hostID, role.publicAddress, role.stopVMs = "local", loopback.String(), true
	role.client, role.store, role.sharing, role.volumes = h.server.Client(), store, "local-"+place.name, place.volumes()
	return h
}

// start starts the agent and returns when it is ready to run something. What an earlier run has left it takes over.
func (h *localHost) start(ctx context.Context, stop *stops) error {
	h.stop = stop
	// The agent ends in order, after what it runs.
	agentCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h.endAll = cancel
	up := make(chan *machines, 1)
	go func() {
		defer close(h.done)
		h.err = h.role.run(agentCtx, func(with *machines) { up <- with })
	}()
	select {
	case with := <-up:
		if can := with.can; can.Accelerator != "kvm" {
			h.shown().note("microVMs are emulated in software (%s): slow, and no security boundary. No KVM: %s", can.Accelerator, can.Reason)
		}
		return nil
	case <-h.done:
		return errors.Join(h.end(), ctx.Err())
	case <-ctx.Done():
		return errors.Join(ctx.Err(), h.end())
	}
}

// end ends the agent and the server, and says what went wrong with either.
func (h *localHost) end() error {
	h.endAll()
	<-h.done
	return errors.Join(h.err, h.server.Close())
}

func (h *localHost) report(revision uint64, runs []*pinnacev1.InstanceReport) {
	h.mu.Lock()
	view := h.view
	h.acted, h.runs = revision, runs
	close(h.changed)
	h.changed = make(chan struct{})
	h.mu.Unlock()
	for _, r := range runs {
		view.report(r)
	}
}

// shown is what shows what runs now.
func (h *localHost) shown() *localView {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.view
}

func (h *localHost) lines(lines []*pinnacev1.StreamLogsResponse) error {
	err := h.shown().lines(lines)
	if err != nil {
		h.stop.first() // nobody reads it any more
	}
	return err
}

// reported is the last report on everything that runs, and what is closed when there is another.
func (h *localHost) reported() (acted uint64, runs []*pinnacev1.InstanceReport, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.acted, h.runs, h.changed
}

// clearUp ends what an earlier run that was killed has left, and returns when nothing of it is there any more.
func (h *localHost) clearUp() error {
	told, killed := false, false
	for wanted := uint64(1); ; {
		acted, runs, changed := h.reported()
		if acted >= wanted && len(runs) == 0 {
			return nil
		}
		kill := h.stop.killc
		if len(runs) > 0 && !told {
			told = true
			h.shown().note("ending %s, which an earlier run that was killed has left", runs[0].Instance)
		}
		if killed {
			kill = nil
			if acted >= wanted && !slices.ContainsFunc(runs, func(r *pinnacev1.InstanceReport) bool { return !r.Final }) {
				wanted = h.server.Run(&pinnacev1.WatchAssignmentsResponse{})
			}
		}
		select {
		case <-changed:
		case <-kill:
			killed = true
			var set pinnacev1.WatchAssignmentsResponse
			for _, r := range runs {
				set.Assignments = append(set.Assignments, &pinnacev1.Assignment{Instance: r.Instance, Environment: localEnvironment, StopNow: true})
			}
			wanted = h.server.Run(&set)
		case <-h.done:
			return errors.New("the agent has ended")
		}
	}
}

// runAll runs what the spec says, one after the other.
func (h *localHost) runAll(ctx context.Context, c *cli, f *localFlags, spec *localSpec) error {
	if err := h.clearUp(); err != nil {
		return err
	}
	if f.fresh {
		if err := removeVolumes(h.role.volumes); err != nil {
			return err
		}
	}
	view := h.shown()
	if err := c.pullLocal(ctx, view, h.role.store, spec); err != nil {
		return err
	}
	if before := spec.manifest.Rollout.Before; f.before && before != nil {
		view.note("running rollout.before, for %s at most", before.Timeout)
		limited, cancel := context.WithTimeout(ctx, before.Timeout)
		err := h.run(limited, spec.task(before.Command), nil, true, "rollout.before")
		late := limited.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case late:
			return fail(exitNotRestored, "rollout.before.timeout is how long it may take", "rollout.before was not done within %s", before.Timeout)
		case err != nil:
			return err
		case ctx.Err() != nil:
			return nil // it was stopped
		}
		view = c.newLocalView(f.times)
		h.mu.Lock()
		h.view = view
		h.mu.Unlock()
	}
	ports, err := choosePorts(spec.manifest, spec.publish)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return h.run(ctx, spec.assignment(ports), ports, f.once, spec.name)
}

// run runs the instance of a set until it has ended for good. It is asked to stop when ctx is done.
func (h *localHost) run(ctx context.Context, set *pinnacev1.WatchAssignmentsResponse, ports []localPort, once bool, name string) error {
	asg, view := set.Assignments[0], h.shown()
	view.follow(asg.Instance, ports, once)
	h.server.Run(set)

	set.LogRequests = nil
	hopeless, stopped, killed := view.hopeless, ctx.Done(), h.stop.killc
	for {
		select {
		case <-view.over:
			h.awaitOutput(view)
			return view.outcome(name)
		case <-hopeless:
			hopeless = nil
			asg.Stop = true
		case <-stopped:
			stopped = nil
			asg.Stop, asg.Undrained = true, true
			view.note("stopping; press Ctrl-C again to kill it")
		case <-killed:
			killed = nil
			asg.StopNow = true
			view.note("killing it")
		case <-h.done:
			return errors.New("the agent has ended")
		}
		h.server.Run(set)
	}
}

// awaitOutput waits for the last lines of an instance that has ended, unless nobody takes them.
func (h *localHost) awaitOutput(view *localView) {
	late := time.NewTimer(10 * time.Second)
	defer late.Stop()
	select {
	case <-view.written:
	case <-late.C:
	case <-h.stop.killc:
	}
}

// pullLocal gets the image, and shows how that goes.
func (c *cli) pullLocal(ctx context.Context, view *localView, store *image.Store, spec *localSpec) error {
	p := spec.platform
	if _, err := store.Lease(ctx, inUse, p.ManifestDigest, p.Manifest, p.Config); err != nil {
		return storeFailure(err)
	}
	client, err := c.registryClient()
	if err != nil {
		return err
	}
	defer client.Close()
	bars := c.newPullView()
	pull := func() (*image.Image, error) {
		return store.Pull(ctx, repositorySource{client, spec.image.Repository}, p.ManifestDigest, p.Manifest, p.Config, bars.update)
	}
	_, err = pull()
	if errors.Is(err, registry.ErrMirror) {
		_, err = pull() // without the mirror, whose content was wrong
	}
	bars.end()
	if err == nil && c.json {
		view.event(localEvent{Event: "pulled", FetchedBytes: bars.fetched()})
	}
	return storeFailure(err)
}

// assignment is what a server would have a host run.
func (s *localSpec) assignment(ports []localPort) *pinnacev1.WatchAssignmentsResponse {
	m := s.manifest
	suffix := make([]byte, 4)
	_, _ = rand.Read(suffix) // it never fails
	id := string(s.releaseID())
	asg := &pinnacev1.Assignment{
		Instance: m.Name + "-" + hex.EncodeToString(suffix), Environment: localEnvironment, App: m.Name,
		Release: id, Deployment: "local", Vars: s.vars,
	}
	for _, bundle := range sortedKeys(s.secrets) {
		asg.Secrets = append(asg.Secrets, &pinnacev1.AssignedSecret{Bundle: bundle, Version: 1, Values: s.secrets[bundle]})
	}
	for _, name := range sortedKeys(m.Volumes) {
		asg.Volumes = append(asg.Volumes, &pinnacev1.AssignedVolume{Name: name, Id: name})
	}
	return &pinnacev1.WatchAssignmentsResponse{
		Assignments: []*pinnacev1.Assignment{asg},
		Releases: []*pinnacev1.AssignedRelease{{
			Id: id, Image: s.image.Digest, ManifestHash: string(m.Hash()), ManifestCanonical: m.Canonical(),
			Sources: []string{s.image.Repository}, Platform: releasePlatform(s.platform),
		}},
		Environments: []*pinnacev1.AssignedEnvironment{{Name: localEnvironment, Apps: []*pinnacev1.AssignedApp{{
			App: m.Name, VirtualAddress: "10.101.0.1", VirtualAddressV6: "fd00:7069:6e6e:101::1", Routes: routesTo(ports),
		}}}},
		LogRequests: []*pinnacev1.LogRequest{{Id: asg.Instance, Instance: asg.Instance, Follow: true}},
	}
}

// task is the assignment of a one-off.
func (s *localSpec) task(command []string) *pinnacev1.WatchAssignmentsResponse {
	set := s.assignment(nil)
	set.Assignments[0].Task, set.Assignments[0].Volumes = command, nil
	return set
}

// releasePlatform is what a Release has of an image for one architecture.
func releasePlatform(p registry.Platform) *pinnacev1.ReleasePlatform {
	return &pinnacev1.ReleasePlatform{
		Architecture: p.Architecture, ManifestDigest: p.ManifestDigest, ImageManifest: p.Manifest, ImageConfig: p.Config,
	}
}
