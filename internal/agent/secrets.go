package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

// bundles are the secrets of an instance by the names of their bundles. They are apart from the assignment, which is
// kept on disk, compared and shown: nothing but the guest and the vault is ever given one of these.
type bundles map[string]*pinnacev1.AssignedSecret

// maxSecretBytes bounds the secrets of one instance.
const maxSecretBytes = 1 << 20

// splitSecrets returns an assignment without the values of its secrets, and these.
func splitSecrets(asg *pinnacev1.Assignment) (*pinnacev1.Assignment, bundles, error) {
	if len(asg.Secrets) == 0 {
		return asg, nil, nil
	}
	open := proto.CloneOf(asg)
	all, bytes := bundles{}, 0
	var err error
	for i, s := range asg.Secrets {
		values := guest.SecretValues(s.Values)
		for key, value := range values {
			bytes += len(key) + len(value)
		}
		if all[s.Bundle] != nil {
			err = errors.Join(err, fmt.Errorf("bundle %s was sent twice", s.Bundle))
		}
		if checkErr := guest.CheckSecrets(values); checkErr != nil {
			err = errors.Join(err, fmt.Errorf("bundle %s: %w", s.Bundle, checkErr))
		}
		all[s.Bundle] = s
		open.Secrets[i].Values = nil
	}
	if bytes > maxSecretBytes {
		err = errors.Join(err, fmt.Errorf("%d bytes of secrets, at most %d are allowed", bytes, maxSecretBytes))
	}
	return open, all, err
}

// deliver gives the instance its secrets as they are now. What it lacks still, it waits for.
func (i *instance) deliver(all bundles) {
	i.mu.Lock()
	changed := !maps.EqualFunc(i.bundles, all, func(x, y *pinnacev1.AssignedSecret) bool { return proto.Equal(x, y) })
	i.bundles = all
	i.mu.Unlock()
	if !changed {
		return
	}
	i.agent.noCore.Do(func() { i.agent.forbidCore() })
	if err := i.agent.vault.put(i.id, slices.Collect(maps.Values(all))); err != nil {
		i.log.Warn("should the agent be restarted while the server is away, this instance cannot be started again", "err", err)
	}
	select {
	case i.updated <- struct{}{}:
	default:
	}
}

// forbidCore keeps a crash of the agent from writing its memory to a disk, now that there are secrets in it.
func (a *Agent) forbidCore() {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	if err == nil {
		limit.Cur = 0
		err = unix.Setrlimit(unix.RLIMIT_CORE, &limit)
	}
	if err != nil {
		a.Log.Warn("a core dump of the agent would have secrets in it", "err", err)
	}
}

// openVault takes what an earlier agent has sealed for this one.
func (i *instance) openVault() {
	kept, err := i.agent.vault.get(i.id)
	if err != nil {
		i.log.Warn("open the sealed secrets; the server has to send them before the instance can be started again", "err", err)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bundles = bundles{}
	for _, s := range kept {
		i.agent.noCore.Do(func() { i.agent.forbidCore() })
		i.bundles[s.Bundle] = s
	}
}

// bundle is the newest version of a bundle, or nil.
func (i *instance) bundle(name string) *pinnacev1.AssignedSecret {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bundles[name]
}

// missingSecrets names the bundles that the workload needs and the agent does not have.
func (i *instance) missingSecrets() []string {
	var missing []string
	for _, name := range slices.Sorted(maps.Keys(i.workload.manifest.Secrets)) {
		if i.bundle(name) == nil {
			missing = append(missing, name)
		}
	}
	return missing
}

// awaitSecrets waits until the agent has all secrets of the workload. It does not have them after it was restarted,
// unless they were sealed for it. It tells whether an attempt can be made.
func (i *instance) awaitSecrets(ctx context.Context) bool {
	for {
		missing := i.missingSecrets()
		if len(missing) == 0 {
			return true
		}
		i.setState(statePlaced, "waiting for the server to send the secrets: %s", strings.Join(missing, ", "))
		select {
		case <-i.updated:
		case <-i.stopc:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// addSecrets adds the secrets to a guest's configuration, and returns the bundles that go before it.
func (t *attempt) addSecrets(c *guest.Config) ([]guest.Bundle, error) {
	var all []guest.Bundle
	versions := map[string]uint64{}
	for _, name := range slices.Sorted(maps.Keys(t.workload.manifest.Secrets)) {
		s, b := t.workload.manifest.Secrets[name], t.bundle(name)
		if b == nil {
			return nil, fmt.Errorf("the server has not sent the secrets %s yet", name)
		}
		for _, key := range s.Require {
			if _, ok := b.Values[key]; !ok {
				return nil, fmt.Errorf("version %d of the secrets %s has no key %s, which the manifest requires", b.Version, name, key)
			}
		}
		c.Secrets = append(c.Secrets, guest.Secret{
			Bundle: name, Version: b.Version, Path: s.Path, Format: s.Format, Mode: s.Mode, Owner: s.Owner, Env: s.Env,
		})
		all = append(all, guest.Bundle{Name: name, Version: b.Version, Values: b.Values})
		versions[name] = b.Version
	}
	t.setVersions(versions)
	return all, nil
}

// setVersions notes which versions of its secrets the workload has, for the report and for an agent that takes over.
func (t *attempt) setVersions(versions map[string]uint64) {
	t.set(func(r *pinnacev1.InstanceReport) { r.SecretVersions = versions })
}

// versions are those that the workload has.
func (t *attempt) versions() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status.SecretVersions
}

// A rotation puts further versions of secrets in place while the workload runs, one at a time. supervise owns it.
type rotation struct {
	attempt *attempt
	running sync.WaitGroup
	busy    bool
	done    chan rotated      // has room for one
	refused map[string]uint64 // by bundle: the version that the guest can't put in place
	again   *time.Timer
}

// rotated is the outcome of one.
type rotated struct {
	bundle  string
	version uint64
	err     error
}

func (t *attempt) newRotation() *rotation {
	// The timer has it look for what changed while no agent was there.
	return &rotation{attempt: t, done: make(chan rotated, 1), refused: map[string]uint64{}, again: time.NewTimer(0)}
}

// end waits for what is under way, whose context has ended. The guest may have done it, which the next one who asks
// finds out.
func (r *rotation) end() {
	r.again.Stop()
	r.running.Wait()
}

// next begins with the next bundle that has changed, if there is one and nothing is under way.
func (r *rotation) next(ctx context.Context) {
	t := r.attempt
	if r.busy {
		return
	}
	versions := t.versions()
	for _, name := range slices.Sorted(maps.Keys(t.workload.manifest.Secrets)) {
		signal, wanted := strings.CutPrefix(t.workload.manifest.Secrets[name].OnChange, manifest.OnChangeSignal)
		b := t.bundle(name)
		if !wanted || b == nil || b.Version == versions[name] || b.Version == r.refused[name] {
			continue
		}
		r.busy = true
		r.running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, t.agent.timing.call)
			defer cancel()
			err := t.guest.Update(ctx, guest.Bundle{Name: name, Version: b.Version, Values: b.Values, Signal: signal})
			r.done <- rotated{name, b.Version, err}
		})
		return
	}
}

// finish notes an outcome, and goes on.
func (r *rotation) finish(ctx context.Context, d rotated) {
	t := r.attempt
	r.busy = false
	switch {
	case d.err == nil:
		versions := maps.Clone(t.versions())
		if versions == nil {
			versions = map[string]uint64{}
		}
		versions[d.bundle] = d.version
		t.setVersions(versions)
		t.keepOrSay()
		t.log.Info("the workload has new secrets", "bundle", d.bundle, "version", d.version)
	case errors.Is(d.err, guest.ErrBundleRefused):
		r.refused[d.bundle] = d.version
		t.log.Error("new secrets cannot be put in place; the workload goes on with those that it has", "err", d.err)
		t.set(func(rep *pinnacev1.InstanceReport) { rep.Message = d.err.Error() })
	default:
		t.log.Warn("give the workload its new secrets; trying until it works", "err", d.err)
		r.again.Reset(t.agent.timing.rotate)
		return
	}
	r.next(ctx)
}
