package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// errLeft is the cause of a context that ends because the agent leaves what runs to the next one.
var errLeft = errors.New("the agent has ended and left the machine to the next one")

// leaving tells whether ctx has ended for that.
func leaving(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errLeft) }

// A hostError is why a machine could not be taken over that says nothing against the machine. No workload is ended for
// that: the agent fails, and the next one tries again.
type hostError struct{ err error }

func (e *hostError) Error() string { return e.err.Error() }
func (e *hostError) Unwrap() error { return e.err }

// takeOver takes over what an earlier run of the agent has left: each attempt that is on record, whose machine is
// proven to be its own, goes on as if nothing had been. Everything else is ended and removed. After an error, everything
// is as it was.
func (a *Agent) takeOver(ctx context.Context) error {
	kept, err := a.keptFleet()
	switch {
	case err == nil:
		a.routes.fleet = kept
	case !errors.Is(err, fs.ErrNotExist):
		a.Log.Warn("names of environments are not known until the server says them", "err", err)
	}
	dirs, err := os.ReadDir(a.machinesDir())
	if err != nil {
		return err
	}
	a.routes.hold()
	defer a.routes.release()
	// Each waits for the disk, the network and its machine.
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, entry := range dirs {
		group.Go(func() error { return a.takeOverOrEnd(ctx, entry.Name()) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return a.removeLeftOvers(ctx)
}

// atOnce is how many machines are taken over at a time.
const atOnce = 8

// takeOverOrEnd takes over the attempt in the directory of that name, or ends it when it is not proven to be ours.
func (a *Agent) takeOverOrEnd(ctx context.Context, name string) error {
	dir := filepath.Join(a.machinesDir(), name)
	err := a.takeOverOne(ctx, dir)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*hostError](err); ok {
		return fmt.Errorf("take over %s: %w", name, err)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		a.Log.Warn("an earlier run left what cannot be taken over; ending it", "what", name, "why", err)
	}
	if err := a.endLeft(ctx, dir); err != nil {
		return fmt.Errorf("end what an earlier run left in %s: %w", dir, err)
	}
	return nil
}

// takeOverOne takes over the attempt in dir. When it returns an error, nothing of it is held.
func (a *Agent) takeOverOne(ctx context.Context, dir string) error {
	t, err := a.readKept(dir)
	if err != nil {
		return err
	}
	own, last, err := t.loadRecord()
	switch {
	case err != nil:
		return err
	case own.Attempt != t.number:
		return fmt.Errorf("it is of attempt %d, and attempt %d was the last", t.number, own.Attempt)
	case a.has(t.id):
		return errors.New("there is another of the same instance")
	}
	t.last, t.born = last, !own.Unborn
	t.openVault()
	a.logs.begin(t.id)
	if err := t.rejoin(ctx); err != nil {
		if _, ok := errors.AsType[*hostError](err); ok {
			t.leave()
			return err
		}
		if t.machine == nil {
			// Its machine goes before what the machine uses.
			err = errors.Join(err, a.endRecorded(ctx, dir))
		}
		t.cleanUp(ctx)
		a.logs.end(t.id)
		return err
	}
	if err := t.bear(); err != nil {
		t.leave()
		return &hostError{err}
	}
	t.instance.adopted = t
	a.mu.Lock()
	a.instances[t.id] = t.instance
	a.mu.Unlock()
	if t.ending != nil && t.ending.Final {
		t.requestStop()
	}
	t.log.Info("took over a machine", "pid", t.machinePID(), "state", t.report().State)
	return nil
}

func (t *attempt) machinePID() int {
	if t.machine == nil {
		return 0
	}
	return t.machine.PID()
}

// rejoin takes everything into this process's hands that another had made for the attempt.
func (t *attempt) rejoin(ctx context.Context) error {
	t.onCleanUp(func(context.Context) error { return os.RemoveAll(t.dir) })
	t.onCleanUp(func(context.Context) error { return t.removeScratch() })
	rec, err := vm.ReadRecord(t.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && t.keptEnd != nil:
		return nil // there is nothing left of it but its end
	case errors.Is(err, fs.ErrNotExist) && t.startedAt.IsZero():
		return fmt.Errorf("%w: attempt %d of %s had not got as far as a machine", fs.ErrNotExist, t.number, t.id)
	case errors.Is(err, fs.ErrNotExist):
		t.keptEnd = &pinnacev1.Cause{
			Kind: causeLost, At: timestamppb.Now(), Detail: "it ended while the agent was ending too, and nobody knows how",
		}
		return nil
	case err != nil:
		return err
	}
	if t.protocol != 0 && t.protocol < guest.ResumeVersion {
		return fmt.Errorf("its init speaks version %d of the guest protocol, with which no agent can go on", t.protocol)
	}
	if err := t.agent.keeper.hold(ctx, t.instance); err != nil {
		t.log.Warn("hold the image of a machine that was taken over", "err", err)
	}
	// Without the image only what has not started yet is stuck, and says so.
	if img, cached, err := t.agent.Images.Lookup(t.workload.release.Platform.ManifestDigest); err == nil && cached {
		t.image = img
	} else if t.startedAt.IsZero() {
		return errors.Join(errors.New("its image is not in the store any more"), err)
	}
	if err := t.reattach(ctx); err != nil {
		return err
	}
	m, err := t.agent.Driver.Adopt(ctx, rec)
	switch {
	case errors.Is(err, vm.ErrNotOurs) && t.keptEnd != nil:
		return t.agent.endRecorded(ctx, t.dir) // there is nothing left of it but its end
	case errors.Is(err, vm.ErrNotOurs):
		return err
	case err != nil:
		return &hostError{err}
	}
	t.machine = m
	t.onCleanUp(t.endMachine)
	return t.resume(ctx)
}

// reattach is attach for what is there already. Nothing of it may change: connections go through it.
func (t *attempt) reattach(ctx context.Context) error {
	env, routes := t.assignment.Environment, t.agent.routes
	if err := routes.enter(ctx, env); err != nil {
		return &hostError{err}
	}
	t.onCleanUp(func(context.Context) error { routes.exit(env); return nil })
	if err := t.agent.claimUID(t.uid, t.id); err != nil {
		return err
	}
	t.onCleanUp(func(context.Context) error { t.agent.giveUID(t.uid); return nil })
	at, err := t.agent.Network.Attach(ctx, env, t.id, t.uid)
	if err != nil {
		return &hostError{err}
	}
	t.attachment = at
	t.onCleanUp(func(ctx context.Context) error { return t.agent.Network.Detach(ctx, env, t.id) })
	if err := t.agent.Network.SetEgress(ctx, env, t.id, egress(t.workload.manifest)); err != nil {
		return &hostError{err}
	}
	if was := t.status.Address; was != "" && was != at.IPv4.Addr().String() {
		return fmt.Errorf("its address was %s and is %s", was, at.IPv4.Addr())
	}
	if err := routes.join(t); err != nil {
		return err
	}
	t.onCleanUp(func(ctx context.Context) error { return routes.leave(ctx, t.id) })
	return nil
}

// resume goes on with the conversation with the guest. A machine that has ended has none.
func (t *attempt) resume(ctx context.Context) error {
	control, err := t.machine.Dial(ctx, vm.Control)
	if errors.Is(err, vm.ErrEnded) {
		return nil
	}
	if err != nil {
		return &hostError{err}
	}
	logs, err := t.machine.Dial(ctx, vm.Logs)
	if err != nil {
		err = errors.Join(err, control.Close())
		if errors.Is(err, vm.ErrEnded) {
			return nil
		}
		return &hostError{err}
	}
	after, err := t.agent.logs.lastSeq(t.id, t.number)
	if err != nil {
		return &hostError{errors.Join(fmt.Errorf("find the last line of its log: %w", err), control.Close(), logs.Close())}
	}
	t.converse(ctx, control, logs, guest.Options{Resume: true, Nonce: t.nonce, AfterLine: after})
	return nil
}

// goOn brings an attempt that was taken over to where its workload runs, and watches it from there.
func (t *attempt) goOn(ctx context.Context) *pinnacev1.Cause {
	if t.machine == nil {
		return t.keptEnd
	}
	if t.guest == nil {
		return t.endedMeanwhile(ctx)
	}
	t.applyEnding()
	switch {
	case t.bootedAt.IsZero():
		return t.startAndSupervise(ctx, []step{{"kernel", stateStarting, t.awaitHello}, {"init", stateStarting, t.configure}})
	case t.startedAt.IsZero():
		return t.startAndSupervise(ctx, []step{{"init", stateStarting, t.configure}})
	}
	hello, cancel := context.WithTimeout(ctx, t.agent.timing.hello)
	defer cancel()
	_, err := t.guest.Hello(hello)
	if err != nil && ctx.Err() != nil && !leaving(ctx) {
		// The agent ends already. It stops what it runs in order, and this guest is about to answer.
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.agent.timing.stopOnExit)
		defer cancel()
		_, err = t.guest.Hello(late)
	}
	if err != nil {
		if leaving(ctx) {
			return nil
		}
		t.log.Warn("the guest does not answer", "err", err)
		return t.sessionOver(ctx)
	}
	t.log.Debug("the guest of a machine that was taken over answers")
	return t.supervise(ctx)
}

// endedMeanwhile is the cause of an attempt whose machine ended while no agent was there to see it.
func (t *attempt) endedMeanwhile(ctx context.Context) *pinnacev1.Cause {
	t.applyEnding()
	if t.startedAt.IsZero() {
		cause := t.lostGuest(ctx)
		if cause.Kind == causeLost {
			cause.Kind = causeStartFailed
			cause.Stage = "init"
			if t.bootedAt.IsZero() {
				cause.Stage = "kernel"
			}
		}
		return cause
	}
	return t.lostGuest(ctx)
}

// endLeft ends and removes what an earlier run left in dir.
func (a *Agent) endLeft(ctx context.Context, dir string) error {
	if err := a.endRecorded(ctx, dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// endRecorded ends the machine that has a record in dir, if there is one.
func (a *Agent) endRecorded(ctx context.Context, dir string) error {
	rec, err := vm.ReadRecord(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		// One that can't be read names nothing; what runs is found by its cgroup.
		a.Log.Warn("look for a machine by its record", "err", err)
		return nil
	}
	_, err = rec.End(ctx)
	return err
}

// removeLeftOvers removes what belongs to no attempt that was taken over.
func (a *Agent) removeLeftOvers(ctx context.Context) error {
	if s, ok := a.Driver.(vm.Sweeper); ok {
		if _, err := s.Sweep(ctx, a.machinesDir()); err != nil {
			return fmt.Errorf("remove what the driver left: %w", err)
		}
	}
	if err := a.removeCgroups(ctx); err != nil {
		return fmt.Errorf("remove the cgroups of an earlier run: %w", err)
	}
	for _, env := range a.Network.Environments() {
		attached, err := a.Network.Attachments(env)
		if err != nil {
			return err
		}
		for _, at := range attached {
			if a.attached(at.Instance) {
				continue
			}
			if err := a.Network.Detach(ctx, env, at.Instance); err != nil {
				return fmt.Errorf("detach %s, which an earlier run left: %w", at.Instance, err)
			}
		}
	}
	if err := a.removeDisks(); err != nil {
		return fmt.Errorf("remove the disks of an earlier run: %w", err)
	}
	dirs, err := filepath.Glob(filepath.Join(a.machinesDir(), "*"))
	if err != nil {
		return err
	}
	for _, dir := range append(dirs, a.Dir, a.instancesDir(), a.RunDir) {
		if err := durable.RemoveTemps(dir); err != nil {
			return fmt.Errorf("remove files that an earlier run did not finish: %w", err)
		}
	}
	return nil
}

// removeDisks removes the scratch disks of machines that were not taken over. What else is there is none of ours.
func (a *Agent) removeDisks() error {
	paths, err := filepath.Glob(filepath.Join(a.disksDir(), "*"+scratchSuffix))
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, path := range paths {
		instance, number, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), scratchSuffix), ".")
		if inst := a.instances[instance]; inst != nil && fmt.Sprint(inst.adopted.number) == number {
			continue
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// attached tells whether an instance that was taken over is in a network.
func (a *Agent) attached(instance string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	inst := a.instances[instance]
	return inst != nil && inst.adopted.attachment != nil
}

// removeCgroups ends and removes what is in this agent's part of the cgroups but is no machine that was taken over.
func (a *Agent) removeCgroups(ctx context.Context) error {
	h, err := cgroup.Find()
	if errors.Is(err, cgroup.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	groups, err := h.Children(a.cgroupParent())
	if err != nil {
		return err
	}
	for _, group := range groups {
		instance, number, _ := strings.Cut(filepath.Base(group), ".")
		a.mu.Lock()
		inst := a.instances[instance]
		a.mu.Unlock()
		if inst != nil && fmt.Sprint(inst.adopted.number) == number {
			continue
		}
		kill, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := errors.Join(h.Kill(kill, group), h.Remove(group))
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// removeCgroupParent removes what was above the cgroups of this agent's machines, of which there is none any more.
func (a *Agent) removeCgroupParent() {
	h, err := cgroup.Find()
	if err == nil {
		err = h.Remove(a.cgroupParent())
	}
	if err != nil && !errors.Is(err, cgroup.ErrUnsupported) {
		a.Log.Warn("cgroup is left behind", "err", err)
	}
}
