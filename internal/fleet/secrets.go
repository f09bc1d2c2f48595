package fleet

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"
)

// Bounds of the secret bundles of an environment.
const (
	MaxBundles     = 256
	MaxBundleKeys  = 256
	MaxVersions    = 256 // of one bundle that were not revoked
	maxKeyText     = 128
	maxRecipient   = 2048
	maxRevokedOnce = 1024
)

// SecretPut makes a new version of a secret bundle. Its values are not here but sealed, in a store of their own, under
// the digest of what was sealed: that is another one for each sealing, and tells nothing of the values.
type SecretPut struct {
	Environment string   `json:"environment"`
	Bundle      string   `json:"bundle"`
	Version     uint64   `json:"version"`
	Keys        []string `json:"keys"`
	Sealed      string   `json:"sealed"`    // sha256:…
	Recipient   string   `json:"recipient"` // the public half of the key that opens it
	// After is on the first version of a bundle where earlier environments of the name had bundles: the highest number that
	// a version had there. This one goes on behind it, so that a number stands for one content for all time.
	After uint64 `json:"after,omitempty"`
}

// SecretRevoked says that the values of versions of a bundle are gone for good.
type SecretRevoked struct {
	Environment string   `json:"environment"`
	Bundle      string   `json:"bundle"`
	Versions    []uint64 `json:"versions"`
}

// Bundle is what is known of a secret bundle: everything but its values.
type Bundle struct {
	Environment, Name string
	// Before is the number that the first version comes behind; 0 unless the environment was there before.
	Before uint64
	// Versions are all of them, oldest first; the number of one is Before and its place, from 1.
	Versions []BundleVersion
}

// Past is what is remembered of the environments of a name that were destroyed.
type Past struct {
	Environment string
	// SecretVersions is the highest number that a version of a secret bundle had there.
	SecretVersions uint64
}

// BundleVersion is one content of a bundle.
type BundleVersion struct {
	Version           uint64
	Keys              []string // sorted
	Sealed, Recipient string
	PutAt             time.Time
	PutBy             string
	// RevokedAt is since when the values are gone; zero while they are there.
	RevokedAt time.Time
	RevokedBy string
}

// EventType and EventVersion implement Payload.
func (*SecretPut) EventType() string        { return "secret.put" }
func (*SecretRevoked) EventType() string    { return "secret.revoked" }
func (*SecretPut) EventVersion() uint16     { return 1 }
func (*SecretRevoked) EventVersion() uint16 { return 1 }

var (
	sealedShape = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	keyShape    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
)

// CheckBundle says why a bundle cannot have such a name or such keys.
func CheckBundle(name string, keys []string) error {
	if !ValidName(name) {
		return fmt.Errorf("bundle name %q: want %s", name, nameShape)
	}
	if len(keys) == 0 || len(keys) > MaxBundleKeys {
		return fmt.Errorf("bundle %s: it has %d keys, and 1 to %d are possible", name, len(keys), MaxBundleKeys)
	}
	for i, key := range keys {
		switch {
		case len(key) > maxKeyText || !keyShape.MatchString(key):
			return fmt.Errorf("bundle %s: the key %.*q is not 1 to %d of letters, digits, _, . and -, the first a letter, a digit or _", name, maxKeyText, key, maxKeyText)
		case i > 0 && keys[i-1] >= key:
			return fmt.Errorf("bundle %s: its keys are not sorted, or one comes twice", name)
		}
	}
	return nil
}

// Bundle returns the secret bundle of an environment, or nil.
func (s *State) Bundle(environment, name string) *Bundle {
	return s.bundles.get(appKey(environment, name))
}

// Bundles returns the secret bundles of an environment by name; of all environments when it is empty.
func (s *State) Bundles(environment string) []*Bundle {
	return slices.DeleteFunc(s.bundles.sorted(), func(b *Bundle) bool { return environment != "" && b.Environment != environment })
}

// Newest is the version that deployments get: the last one that was not revoked, or nil.
func (b *Bundle) Newest() *BundleVersion {
	for i := range slices.Backward(b.Versions) {
		if b.Versions[i].RevokedAt.IsZero() {
			return &b.Versions[i]
		}
	}
	return nil
}

// Version is a version by its number, or nil.
func (b *Bundle) Version(number uint64) *BundleVersion {
	if number <= b.Before || number > b.last() {
		return nil
	}
	return &b.Versions[number-b.Before-1]
}

// last is the number of the last version.
func (b *Bundle) last() uint64 { return b.Before + uint64(len(b.Versions)) }

// NextSecret is the next version of a bundle as an event, with nothing in it yet.
func (s *State) NextSecret(environment, bundle string) *SecretPut {
	p := &SecretPut{Environment: environment, Bundle: bundle}
	if b := s.Bundle(environment, bundle); b != nil {
		p.Version = b.last() + 1
		return p
	}
	p.After = s.secretsBefore(environment)
	p.Version = p.After + 1
	return p
}

// secretsBefore is the highest number of a version in the earlier environments of a name.
func (s *State) secretsBefore(environment string) uint64 {
	if past := s.past.get(environment); past != nil {
		return past.SecretVersions
	}
	return 0
}

// dropBundles forgets the bundles of an environment that goes, but for how far their versions were counted.
func (s *State) dropBundles(environment string) {
	last := s.secretsBefore(environment)
	for _, b := range s.Bundles(environment) {
		last = max(last, b.last())
		s.bundles.put(appKey(environment, b.Name), nil)
	}
	if last > s.secretsBefore(environment) {
		s.past.put(environment, &Past{Environment: environment, SecretVersions: last})
	}
}

// Has tells whether the version has a key.
func (v *BundleVersion) Has(key string) bool {
	_, found := slices.BinarySearch(v.Keys, key)
	return found
}

func (p *SecretPut) fold(s *State, e Event) error {
	if s.environments.get(p.Environment) == nil {
		return fmt.Errorf("environment %s: %w", p.Environment, ErrNotFound)
	}
	if err := CheckBundle(p.Bundle, p.Keys); err != nil {
		return err
	}
	if !sealedShape.MatchString(p.Sealed) || p.Recipient == "" || len(p.Recipient) > maxRecipient {
		return fmt.Errorf("bundle %s: version %d does not say where it is sealed, or for whom", p.Bundle, p.Version)
	}
	b := &Bundle{Environment: p.Environment, Name: p.Bundle, Before: p.After}
	known := s.Bundle(p.Environment, p.Bundle)
	switch n := len(s.Bundles(p.Environment)); {
	case known != nil && p.After != 0:
		return fmt.Errorf("bundle %s: version %d is not its first, and is to begin behind %d", p.Bundle, p.Version, p.After)
	case known != nil:
		*b = *known
	case n >= MaxBundles:
		return fmt.Errorf("environment %s has %d secret bundles, and %w", p.Environment, n, ErrFull)
	case p.After != 0 && p.After != s.secretsBefore(p.Environment):
		// Servers once began at 1 again; what such a log says stays as it was.
		return fmt.Errorf("bundle %s: it is to begin behind version %d, and the last one was %d: %w", p.Bundle, p.After, s.secretsBefore(p.Environment), ErrConflict)
	}
	if next := b.last() + 1; p.Version != next {
		return fmt.Errorf("bundle %s: version %d was made, and the next one is %d: %w", p.Bundle, p.Version, next, ErrConflict)
	}
	kept := 0
	for _, v := range b.Versions {
		if v.RevokedAt.IsZero() {
			kept++
		}
	}
	if kept >= MaxVersions {
		return fmt.Errorf("bundle %s has %d versions, and %w: revoke those that no rollback needs (pinnace secrets revoke)", p.Bundle, kept, ErrFull)
	}
	b.Versions = append(slices.Clone(b.Versions), BundleVersion{
		Version: p.Version, Keys: slices.Clone(p.Keys), Sealed: p.Sealed, Recipient: p.Recipient, PutAt: e.At, PutBy: e.Actor,
	})
	s.bundles.put(appKey(p.Environment, p.Bundle), b)
	return nil
}

func (p *SecretRevoked) fold(s *State, e Event) error {
	known := s.Bundle(p.Environment, p.Bundle)
	if known == nil {
		return fmt.Errorf("secret bundle %s of %s: %w", p.Bundle, p.Environment, ErrNotFound)
	}
	if len(p.Versions) == 0 || len(p.Versions) > maxRevokedOnce {
		return fmt.Errorf("bundle %s: %d versions are revoked, and 1 to %d can be at once", p.Bundle, len(p.Versions), maxRevokedOnce)
	}
	b := *known
	b.Versions = slices.Clone(known.Versions)
	for _, number := range p.Versions {
		v := b.Version(number)
		if v == nil || !v.RevokedAt.IsZero() {
			return fmt.Errorf("version %d of bundle %s that was not revoked: %w", number, p.Bundle, ErrNotFound)
		}
		if d := s.holder(p.Environment, p.Bundle, number); d != nil {
			return &SecretInUseError{Bundle: p.Bundle, Version: number, App: d.App, Deployment: d.ID}
		}
		for _, i := range s.Runs(p.Environment, "") {
			if i.Run.Secrets[p.Bundle] == number {
				return fmt.Errorf("version %d of bundle %s: the one-off %s runs with it: %w", number, p.Bundle, i.ID, ErrConflict)
			}
		}
		v.RevokedAt, v.RevokedBy = e.At, e.Actor
	}
	s.bundles.put(appKey(p.Environment, p.Bundle), &b)
	return nil
}

// holder is a deployment that is live, under way, or has instances, and has the version of a bundle; nil when none has.
func (s *State) holder(environment, bundle string, version uint64) *Deployment {
	for _, app := range s.Apps(environment) {
		ids := []string{app.Live, app.Active}
		if active := s.Deployment(app.Active); active != nil {
			ids = append(ids, active.Previous)
		}
		for _, i := range s.resolve(app.Instances) {
			ids = append(ids, i.Deployment)
		}
		for _, id := range ids {
			if d := s.Deployment(id); d != nil && d.Count > 0 && d.Secrets[bundle] == version {
				return d
			}
		}
	}
	return nil
}

// checkSecrets says why a deployment cannot have these versions of its bundles.
func (s *State) checkSecrets(environment string, versions map[string]uint64) error {
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		b := s.Bundle(environment, name)
		if b == nil || b.Version(versions[name]) == nil {
			return fmt.Errorf("version %d of secret bundle %s of %s: %w", versions[name], name, environment, ErrNotFound)
		}
		if v := b.Version(versions[name]); !v.RevokedAt.IsZero() {
			return &SecretRevokedError{Environment: environment, Bundle: name, Version: v.Version, By: v.RevokedBy, At: v.RevokedAt}
		}
	}
	return nil
}
