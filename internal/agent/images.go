package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
)

// The kinds of the agent's leases in the image store.
const (
	leaseOwner      = "agent"      // unless the agent has a name of its own
	leaseInstance   = "instance"   // an instance that has not ended for good
	leaseDeployment = "deployment" // what ran here, to go back to
)

// What a host keeps of an app's images beside those of its instances: the last ones that became ready, and all
// that ran within a time. An app that has not run here for long is not coming back.
const (
	keepGood  = 3
	keepFor   = 7 * 24 * time.Hour
	forgotten = 30 * 24 * time.Hour
	keepMost  = 50 // images of one app
	recently  = 30 * time.Minute
)

// keeper holds images in the store: by a lease for each instance, and by leases for what ran here, so that going
// back asks no registry. The record of what ran is the agent's own.
type keeper struct {
	images *image.Store
	owner  string // of its leases
	path   string
	now    func() time.Time

	mu  sync.Mutex
	ran []ranImage // guarded by mu; the newest first
}

// A ranImage is an image that an app ran in an environment on this host.
type ranImage struct {
	Environment string    `json:"environment"`
	App         string    `json:"app"`
	Image       string    `json:"image"` // manifest digest
	Sources     []string  `json:"sources"`
	Good        time.Time `json:"good_at,omitzero"` // when it last became ready
	Used        time.Time `json:"used_at"`          // when it last was known to run
}

func openKeeper(images *image.Store, owner, path string, now func() time.Time) (*keeper, error) {
	if owner == "" {
		owner = leaseOwner
	}
	k := &keeper{images: images, owner: owner, path: path, now: now}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &k.ran); err != nil {
		return nil, fmt.Errorf("read %s, the record of images that ran here: %w", path, err)
	}
	return k, nil
}

// hold keeps the image of an instance from now on.
func (k *keeper) hold(ctx context.Context, i *instance) error {
	p := i.workload.release.Platform
	spec := image.LeaseSpec{Owner: k.owner, Kind: leaseInstance, Name: i.id}
	_, err := k.images.Lease(ctx, spec, p.ManifestDigest, p.ImageManifest, p.ImageConfig)
	return err
}

// ready remembers that the image of an instance is good.
func (k *keeper) ready(ctx context.Context, i *instance) error { return k.used(ctx, i, true) }

// used remembers that the image of an instance runs here.
func (k *keeper) used(ctx context.Context, i *instance, good bool) error {
	now := k.now().UTC()
	r := ranImage{
		Environment: i.assignment.Environment, App: i.assignment.App, Image: i.workload.release.Platform.ManifestDigest,
		Sources: i.workload.release.Sources, Used: now,
	}
	if good {
		r.Good = now
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	at := slices.IndexFunc(k.ran, r.same)
	if at >= 0 {
		old := k.ran[at]
		if k.fresh(at, now, good) {
			return nil
		}
		if !good {
			r.Good = old.Good
		}
		k.ran = slices.Delete(k.ran, at, at+1)
	}
	k.ran = slices.Insert(k.ran, 0, r)
	return k.keep(ctx)
}

// fresh tells that the record says it all already, but for a while that does not count: an instance that restarts
// does not wait for the disk. The caller has mu.
func (k *keeper) fresh(at int, now time.Time, good bool) bool {
	r := k.ran[at]
	return slices.IndexFunc(k.ran, r.sameApp) == at && now.Sub(r.Used).Abs() < recently && (!good || now.Sub(r.Good).Abs() < recently)
}

func (r ranImage) same(o ranImage) bool { return r.sameApp(o) && r.Image == o.Image }

func (r ranImage) sameApp(o ranImage) bool { return r.Environment == o.Environment && r.App == o.App }

// keep writes the record, and makes the leases for deployments follow from it. The caller has mu.
func (k *keeper) keep(ctx context.Context) error {
	want := map[string]image.LeaseSpec{}
	var kept []ranImage
	for _, r := range k.ran {
		spec, ok := k.retain(r, kept)
		if !ok {
			continue
		}
		kept = append(kept, r)
		want[spec.Name+" "+r.Image] = spec
	}
	k.ran = kept
	b, err := json.Marshal(k.ran)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(k.path, append(b, '\n'), 0o600); err != nil {
		return err
	}
	leases, err := k.images.Leases()
	if err != nil {
		return err
	}
	for _, l := range leases {
		if l.Owner != k.owner || l.Kind != leaseDeployment {
			continue
		}
		spec, ok := want[l.Name+" "+l.Image]
		if !ok {
			err = errors.Join(err, k.images.Release(l.ID))
		} else if spec.Expires.Sub(l.Expires).Abs() < time.Hour {
			delete(want, l.Name+" "+l.Image) // it is as it should be
		}
	}
	for _, r := range k.ran {
		if spec, ok := want[r.name()+" "+r.Image]; ok {
			// An image that was never complete is nothing to go back to.
			if _, leaseErr := k.images.Lease(ctx, spec, r.Image, nil, nil); !errors.Is(leaseErr, image.ErrNotFound) {
				err = errors.Join(err, leaseErr)
			}
		}
	}
	return err
}

func (r ranImage) name() string { return r.Environment + "/" + r.App }

// retain says how long an image is kept, given the newer ones that are; ok is false for not at all.
func (k *keeper) retain(r ranImage, newer []ranImage) (spec image.LeaseSpec, ok bool) {
	spec = image.LeaseSpec{Owner: k.owner, Kind: leaseDeployment, Name: r.name()}
	good, all, last := 0, 0, r.Used
	for _, n := range newer {
		if n.sameApp(r) {
			all++
			if !n.Good.IsZero() {
				good++
			}
			if n.Used.After(last) {
				last = n.Used
			}
		}
	}
	expires := r.Used.Add(keepFor)
	if !r.Good.IsZero() && good < keepGood && last.Add(forgotten).After(expires) {
		expires = last.Add(forgotten)
	}
	spec.Expires = expires
	return spec, all < keepMost && expires.After(k.now())
}

// release ends the lease of an instance that is gone, and counts from now on what its image is kept for.
func (k *keeper) release(ctx context.Context, i *instance) error {
	err := k.releaseIf(func(name string) bool { return name == i.id })
	if i.workload == nil {
		return err
	}
	return errors.Join(err, k.used(ctx, i, false))
}

// releaseIf ends the leases of those instances.
func (k *keeper) releaseIf(gone func(instance string) bool) error {
	leases, err := k.images.Leases()
	if err != nil {
		return err
	}
	for _, l := range leases {
		if l.Owner == k.owner && l.Kind == leaseInstance && gone(l.Name) {
			err = errors.Join(err, k.images.Release(l.ID))
		}
	}
	return err
}

// sources are the repositories that have had an image.
func (k *keeper) sources(manifestDigest string) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []string
	for _, r := range k.ran {
		if r.Image == manifestDigest {
			all = append(all, r.Sources...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// imagesLoop keeps the store within its bounds, and scrubs it, until ctx is done.
func (a *Agent) imagesLoop(ctx context.Context) {
	var scrub sync.WaitGroup
	defer scrub.Wait()
	if a.ScrubRate > 0 {
		scrub.Go(func() { a.scrub(ctx) })
	}
	for {
		a.collect(ctx)
		if !sleep(ctx, a.timing.collect) {
			return
		}
	}
}

// collect removes images that nobody needs: those that have not been used for a while, and more when the store
// is over its quota.
func (a *Agent) collect(ctx context.Context) {
	for _, i := range a.all() {
		if i.workload == nil || i.gone() {
			continue
		}
		if err := a.keeper.used(ctx, i, false); err != nil {
			a.Log.Warn("remember which images run here", "err", err)
			break
		}
	}
	running := map[string]bool{}
	for _, i := range a.all() {
		running[i.assignment.Environment] = true
	}
	if err := a.access.forget(func(env string) bool { return running[env] || a.keeper.knows(env) }); err != nil {
		a.Log.Warn("forget which layers an environment may have", "err", err)
	}
	options := []image.GCOptions{{MinAge: a.timing.unused}}
	over, err := a.Images.Over()
	if err != nil {
		a.Log.Warn("measure the image store", "err", err)
	}
	if over > 0 {
		options = append(options, image.GCOptions{Need: over})
	}
	for _, o := range options {
		report, err := a.Images.GC(ctx, o)
		if err != nil {
			if ctx.Err() == nil {
				a.Log.Error("remove images that nobody needs", "err", err)
			}
			return
		}
		if len(report.Removed) > 0 {
			a.Log.Info("removed images that nobody needs", "count", len(report.Removed), "freed_bytes", report.Freed)
		}
	}
	if over, err := a.Images.Over(); err == nil && over > 0 {
		a.Log.Warn("the image store is over its quota, and all that is left is in use or retained; pulls are refused", "bytes", over)
	}
}

// scrub reads the store again and again, and gets what has rotted.
func (a *Agent) scrub(ctx context.Context) {
	for {
		err := a.Images.Scrub(ctx, image.ScrubOptions{
			Rate: a.ScrubRate, Period: a.timing.scrub,
			Found: a.mend,
			Ended: func(s image.ScrubState) {
				a.Log.Info("scrubbed the image store", "files", s.Files, "bytes", s.Bytes, "damaged", s.Damaged, "took", s.Ended.Sub(s.Began).Round(time.Second))
			},
		})
		if ctx.Err() != nil {
			return
		}
		a.Log.Error("scrub the image store; trying again later", "err", err)
		if !sleep(ctx, a.timing.collect) {
			return
		}
	}
}

// mend pulls again the images that a damaged file belongs to, if somebody holds them. Machines that run from the
// file go on with what they have open: only a new start gets the good copy, and when that is, is not for the
// agent to decide.
func (a *Agent) mend(ctx context.Context, d image.Damage) {
	var users []string
	held := map[string]bool{}
	for _, l := range d.Leases {
		held[l.Image] = true
		if l.Kind == leaseInstance {
			users = append(users, l.Name)
		}
	}
	a.Log.Error("a file of the image store is damaged and was put aside; instances that run from it should be restarted",
		"file", d.Name, "problem", d.Problem, "quarantine", d.Quarantined, "instances", users)
	for manifestDigest := range held {
		if err := a.pullAgain(ctx, manifestDigest); err != nil {
			a.Log.Error("pull an image again that was damaged; the next start tries again", "image", manifestDigest, "err", err)
			continue
		}
		a.Log.Info("pulled an image again that was damaged", "image", manifestDigest)
	}
}

// pullAgain takes the documents from an instance that runs, or else from the store's record.
func (a *Agent) pullAgain(ctx context.Context, manifestDigest string) error {
	var manifest, config []byte
	sources := a.keeper.sources(manifestDigest)
	for _, i := range a.all() {
		if i.workload != nil && i.workload.release.Platform.ManifestDigest == manifestDigest {
			p := i.workload.release.Platform
			manifest, config, sources = p.ImageManifest, p.ImageConfig, i.workload.release.Sources
		}
	}
	_, err := a.Images.Pull(ctx, a.source(sources, a.allLogins(), nil), manifestDigest, manifest, config, nil)
	return err
}

// all are the instances of this host.
func (a *Agent) all() []*instance {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*instance, 0, len(a.instances))
	for _, i := range a.instances {
		all = append(all, i)
	}
	return all
}

// accessPath is the record of which environment may have which layers.
func (o *Options) accessPath() string { return filepath.Join(o.Dir, "images-proved.json") }

// imagesPath is the record of images that ran here.
func (o *Options) imagesPath() string { return filepath.Join(o.Dir, "images-ran.json") }
