package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// Resolve looks up what ref stands for now and returns it pinned by digest, with the manifest and the
// configuration for every supported architecture that it has. Its errors are of the kinds above.
func (c *Client) Resolve(ctx context.Context, ref string) (*Image, error) {
	parsed, err := c.parse(ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.bounded(ctx, 0)
	defer cancel()
	image, err := c.resolve(ctx, parsed)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", printable(ref), err)
	}
	return image, nil
}

func (c *Client) resolve(ctx context.Context, ref name.Reference) (*Image, error) {
	repo := ref.Context()
	var raw []byte
	var contentType, digest string
	var err error
	if pinned, ok := ref.(name.Digest); ok {
		digest = pinned.DigestStr()
		raw, contentType, err = c.manifest(ctx, repo, descriptor{Digest: digest, Size: unknownSize})
	} else {
		// The only request that names a tag. What the header says of the digest is not asked.
		raw, contentType, err = c.document(ctx, repo, ref.Identifier(), "tag "+ref.Identifier()+" of "+repo.RepositoryStr(), maxAttempts)
		digest = digestOf(raw)
	}
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(raw, contentType)
	if err != nil {
		return nil, err
	}
	image := &Image{Repository: repo.Name(), Digest: digest}
	found := search{client: c, repo: repo, best: map[string]candidate{}, entries: maxEntries, seen: map[string]bool{digest: true}}
	if doc.isIndex() {
		err = found.index(ctx, doc, 1)
	} else {
		err = found.manifest(ctx, digest, raw, doc)
	}
	if err != nil {
		return nil, err
	}
	var absent error
	for _, arch := range slices.Sorted(maps.Keys(found.best)) {
		p, err := found.fetch(ctx, arch)
		if sparse, ok := errors.AsType[notPresent](err); ok {
			image.Missing = append(image.Missing, arch)
			absent = sparse.error
			continue
		}
		if err != nil {
			return nil, err
		}
		image.Platforms = append(image.Platforms, p)
	}
	if len(image.Platforms) == 0 {
		return nil, cmp.Or(absent, found.nothing())
	}
	return image, nil
}

// search collects what an image has for each architecture.
type search struct {
	client  *Client
	repo    name.Repository
	best    map[string]candidate // by architecture
	entries int                  // that may still come
	seen    map[string]bool      // digests of indexes
	others  []string             // platforms that we don't run
}

// candidate is a manifest for an architecture. Its bytes and configuration are fetched only when it is the
// one that is taken, unless they were needed to learn its platform.
type candidate struct {
	descriptor
	variant  string
	manifest []byte
	config   []byte
}

func (s *search) index(ctx context.Context, doc *document, depth int) error {
	if depth > maxDepth {
		return wrongContent("its indexes are nested more than %d deep", maxDepth)
	}
	for _, d := range doc.Manifests {
		if s.entries--; s.entries < 0 {
			return wrongContent("its index has more than %d entries", maxEntries)
		}
		if d.attestation() {
			continue
		}
		if err := d.check(maxDocument); err != nil {
			return err
		}
		if err := s.entry(ctx, d, depth); err != nil {
			return err
		}
	}
	return nil
}

func (s *search) entry(ctx context.Context, d descriptor, depth int) error {
	switch d.MediaType {
	case typeIndex, typeDockerList:
		if s.seen[d.Digest] {
			return wrongContent("its index contains the index %s twice or in itself", d.Digest)
		}
		s.seen[d.Digest] = true
		raw, contentType, err := s.client.manifest(ctx, s.repo, d)
		if err != nil {
			return err
		}
		doc, err := parseDocument(raw, contentType)
		if err != nil {
			return err
		}
		if !doc.isIndex() {
			return wrongContent("its index calls %s an index, which it is not", d.Digest)
		}
		return s.index(ctx, doc, depth+1)
	case typeManifest, typeDockerManifest:
		if d.Platform != nil {
			s.offer(*d.Platform, candidate{descriptor: d})
			return nil
		}
		return s.unlabelled(ctx, d)
	}
	return nil // an artifact that was put beside the images
}

// unlabelled is an entry that doesn't say what platform it is for; its configuration does.
func (s *search) unlabelled(ctx context.Context, d descriptor) error {
	raw, contentType, err := s.client.manifest(ctx, s.repo, d)
	if err != nil {
		return err
	}
	doc, err := parseDocument(raw, contentType)
	if errors.Is(err, ErrNotAnImage) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.manifest(ctx, d.Digest, raw, doc)
}

// manifest takes a manifest that was fetched, for the platform that its configuration names.
func (s *search) manifest(ctx context.Context, digest string, raw []byte, doc *document) error {
	config, p, err := s.client.configuration(ctx, s.repo, digest, doc)
	if err != nil {
		return err
	}
	s.offer(p, candidate{descriptor: descriptor{Digest: digest}, manifest: raw, config: config})
	return nil
}

// offer keeps the best candidate of an architecture: the one for every processor of it, then the first.
func (s *search) offer(p platform, c candidate) {
	if p.OS != "linux" || !s.client.arch[p.Architecture] {
		s.others = append(s.others, p.String())
		return
	}
	c.variant = p.Variant
	old, there := s.best[p.Architecture]
	if !there || !baseline(old.variant) && baseline(c.variant) {
		s.best[p.Architecture] = c
	}
}

func baseline(variant string) bool { return variant == "" || variant == "v1" || variant == "v8" }

// notPresent is a manifest that an index names and the registry does not have.
type notPresent struct{ error }

func (n notPresent) Unwrap() error { return n.error }

// fetch gets what is missing of the candidate for an architecture. The index has the last word on which
// architecture that is: there are images built on another machine whose configuration names that one.
func (s *search) fetch(ctx context.Context, arch string) (Platform, error) {
	best := s.best[arch]
	if best.manifest == nil {
		raw, contentType, err := s.client.manifest(ctx, s.repo, best.descriptor)
		if errors.Is(err, ErrNotFound) {
			return Platform{}, notPresent{err}
		}
		if err != nil {
			return Platform{}, err
		}
		doc, err := parseDocument(raw, contentType)
		if err != nil {
			return Platform{}, err
		}
		config, p, err := s.client.configuration(ctx, s.repo, best.Digest, doc)
		if err != nil {
			return Platform{}, err
		}
		if p.OS != "linux" {
			return Platform{}, wrongContent("its index says that %s is for linux, its configuration says %s", best.Digest, p)
		}
		best.manifest, best.config = raw, config
	}
	return Platform{Architecture: arch, ManifestDigest: best.Digest, Manifest: best.manifest, Config: best.config}, nil
}

// nothing says what the image has instead of what we can run.
func (s *search) nothing() error {
	wanted := make([]string, 0, len(s.client.arch))
	for _, arch := range slices.Sorted(maps.Keys(s.client.arch)) {
		wanted = append(wanted, "linux/"+arch)
	}
	has := "nothing that runs"
	if len(s.others) > 0 {
		slices.Sort(s.others)
		has = strings.Join(slices.Compact(s.others), ", ")
	}
	return &Error{
		Kind: ErrNoPlatform, Registry: s.repo.RegistryStr(),
		Message: fmt.Sprintf("%s has no image for %s; it has %s", s.repo.RepositoryStr(), strings.Join(wanted, " or "), has),
		Hint:    "build it for one of these platforms and push it again",
	}
}

// configuration fetches the configuration of a manifest and reads its platform.
func (c *Client) configuration(ctx context.Context, repo name.Repository, digest string, doc *document) ([]byte, platform, error) {
	if doc.isIndex() {
		return nil, platform{}, wrongContent("its index calls %s a manifest, but it is an index", digest)
	}
	config, err := c.content(ctx, repo, *doc.Config)
	if err != nil {
		return nil, platform{}, err
	}
	var p platform
	if err := json.Unmarshal(config, &p); err != nil {
		return nil, platform{}, &Error{Kind: ErrWrongContent, Message: "its configuration is not readable", Err: err}
	}
	return config, p, nil
}

// typed is a document as a registry sends it.
type typed struct {
	raw         []byte
	contentType string
}

// manifest fetches a manifest or an index by digest.
func (c *Client) manifest(ctx context.Context, repo name.Repository, d descriptor) (raw []byte, contentType string, err error) {
	doc, err := fromPlaces(ctx, c, repo, d.Digest, func(p place) (typed, error) {
		raw, contentType, err := c.document(ctx, p.repo, d.Digest, "manifest "+d.Digest+" of "+p.repo.RepositoryStr(), p.attempts())
		if err == nil {
			err = verify(raw, d, "manifest")
		}
		return typed{raw, contentType}, err
	})
	return doc.raw, doc.contentType, err
}

// content fetches a small blob by digest.
func (c *Client) content(ctx context.Context, repo name.Repository, d descriptor) ([]byte, error) {
	b, err := c.contentOnce(ctx, repo, d)
	if errors.Is(err, ErrMirror) {
		b, err = c.contentOnce(ctx, repo, d)
	}
	return b, err
}

func (c *Client) contentOnce(ctx context.Context, repo name.Repository, d descriptor) ([]byte, error) {
	blob, err := c.blob(ctx, repo, d.Digest, d.Size)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(blob) // at most d.Size bytes, which was checked
	if err := errors.Join(err, blob.Close()); err != nil {
		return nil, c.explain(ctx, err, repo, "blob "+d.Digest, "")
	}
	return b, verify(b, d, "configuration")
}

const unknownSize = -1

func verify(b []byte, d descriptor, what string) error {
	if got := digestOf(b); got != d.Digest {
		return wrongContent("the bytes it sent for the %s %s have the digest %s", what, d.Digest, got)
	}
	if d.Size != unknownSize && int64(len(b)) != d.Size {
		return wrongContent("the %s %s has %d bytes, but %d are declared", what, d.Digest, len(b), d.Size)
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
