package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
)

// access remembers which layers each environment has had the right to fetch. The host's store is one for all of them, so
// that a layer being there says nothing of who may run it: another environment's login may have brought it.
//
// A layer that an environment has fetched itself is proved. For another one its login has to be good where the layer came
// from: the registry that had the bytes is believed when it says who may read them. A registry that has never given them
// here could say so of any layer; there all bytes are fetched again.
type access struct {
	path string

	mu sync.Mutex
	// Proved are diffIDs by environment, the oldest first.
	Proved map[string][]string `json:"proved"` // guarded by mu
	// From are the registries that have given a layer, by diffID and digest of the blob.
	From map[string][]string `json:"from"` // guarded by mu
}

// Bounds of what is remembered. What is forgotten is proved again.
const (
	maxProved = 8192 // layers of one environment
	maxFrom   = 65536
)

// openAccess reads what is remembered. first says of a host that remembers nothing yet what ran there in each environment:
// that was let in by the rules of then.
func openAccess(path string, first func() map[string][]string) (*access, error) {
	a := &access{path: path, Proved: map[string][]string{}, From: map[string][]string{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		a.Proved = first()
		return a, a.save()
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, a); err != nil || a.Proved == nil || a.From == nil {
		return nil, fmt.Errorf("read %s, the record of which environment may have which layers (without it they prove it again): %w", path, err)
	}
	return a, nil
}

// save writes what is remembered. The caller has mu, or is alone.
func (a *access) save() error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return durable.WriteFile(a.path, append(b, '\n'), 0o600)
}

// unproved are those of an image's layers that an environment has not proved.
func (a *access) unproved(environment string, layers []image.LayerBlob) []image.LayerBlob {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(layers), func(l image.LayerBlob) bool {
		return slices.Contains(a.Proved[environment], l.DiffID)
	})
}

// gave tells whether a registry has given a layer before.
func (a *access) gave(registry string, l image.LayerBlob) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Contains(a.From[fromKey(l)], registry)
}

func fromKey(l image.LayerBlob) string { return l.DiffID + " " + l.Digest }

// remember takes down that an environment has proved layers, and which repositories have given some of them, by digest.
func (a *access) remember(environment string, layers []image.LayerBlob, given map[string]string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for _, l := range layers {
		if !slices.Contains(a.Proved[environment], l.DiffID) {
			a.Proved[environment], changed = append(a.Proved[environment], l.DiffID), true
		}
		repository, ok := given[l.Digest]
		if registry := registryOf(repository); ok && !slices.Contains(a.From[fromKey(l)], registry) {
			a.From[fromKey(l)], changed = append(a.From[fromKey(l)], registry), true
		}
	}
	if !changed {
		return nil
	}
	if n := len(a.Proved[environment]); n > maxProved {
		a.Proved[environment] = slices.Delete(a.Proved[environment], 0, n-maxProved)
	}
	for key := range a.From {
		if len(a.From) <= maxFrom {
			break
		}
		delete(a.From, key)
	}
	return a.save()
}

// forget drops the environments that nothing has run in for long.
func (a *access) forget(known func(environment string) bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	dropped := false
	for environment := range a.Proved {
		if !known(environment) {
			delete(a.Proved, environment)
			dropped = true
		}
	}
	if !dropped {
		return nil
	}
	return a.save()
}

func registryOf(repository string) string {
	registry, _, _ := strings.Cut(repository, "/")
	return strings.ToLower(registry)
}

// givenBlobs are the blobs that came from a source to their ends, with the repositories that gave them.
type givenBlobs struct {
	mu   sync.Mutex
	from map[string]string // guarded by mu; by digest
}

// taken are all of them.
func (g *givenBlobs) taken() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.from
}

func (g *givenBlobs) came(digest, repository string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.from == nil {
		g.from = map[string]string{}
	}
	g.from[digest] = repository
}

// givenReader tells of a blob when all of it was read.
type givenReader struct {
	io.ReadCloser
	left int64
	came func()
}

func (r *givenReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.left -= int64(n); r.left == 0 && errors.Is(err, io.EOF) {
		r.came()
	}
	return n, err
}

// prove has the environment of an instance prove that it may have the layers of its image which it did not fetch itself.
// Layers that it has proved before ask nobody.
func (t *attempt) prove(ctx context.Context, try int, given map[string]string) error {
	p, environment := t.workload.release.Platform, t.instance.assignment.Environment
	layers, err := t.agent.Images.LayerBlobs(p.ManifestDigest, p.ImageManifest, p.ImageConfig)
	if err != nil {
		return err
	}
	open := t.agent.access.unproved(environment, layers)
	var fetched []image.LayerBlob
	for _, l := range open {
		if _, ok := given[l.Digest]; !ok {
			if err := t.proveLayer(ctx, try, l); err != nil {
				return fmt.Errorf("layer %s is on this host for another environment, and %s has to show that it may have it: %w", l.DiffID, environment, err)
			}
		}
		fetched = append(fetched, l)
	}
	if err := t.agent.access.remember(environment, fetched, given); err != nil {
		t.log.Warn("remember which layers an environment may have; it is asked again", "err", err)
	}
	return nil
}

// proveLayer asks the repositories of the release, as its environment does, for a layer.
func (t *attempt) proveLayer(ctx context.Context, try int, l image.LayerBlob) error {
	var errs []error
	for _, repository := range beginningAt(t.workload.release.Sources, try) {
		source := t.agent.source([]string{repository}, t.agent.loginsOf(t.instance.id), nil)
		if !t.agent.access.gave(registryOf(repository), l) {
			err := t.agent.Images.Prove(ctx, source, l)
			if err == nil {
				return nil
			}
			errs = append(errs, err)
			continue
		}
		blob, err := source.Blob(ctx, l.Digest, l.Size)
		if err == nil {
			_ = blob.Close() // that it opens is the answer
			return nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return errors.New("the release names no repository that has its image")
	}
	return inOneLine(errs)
}

// ranBefore are the layers that ran on this host in each environment, by the record of an agent that did not ask yet.
func (k *keeper) ranBefore() map[string][]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	proved := map[string][]string{}
	for _, r := range k.ran {
		img, ok, err := k.images.Lookup(r.Image)
		if err != nil || !ok {
			continue
		}
		for _, id := range img.DiffIDs {
			if !slices.Contains(proved[r.Environment], id) {
				proved[r.Environment] = append(proved[r.Environment], id)
			}
		}
	}
	return proved
}

// knows tells whether something has run in an environment that is remembered.
func (k *keeper) knows(environment string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.ContainsFunc(k.ran, func(r ranImage) bool { return r.Environment == environment })
}
