// Package release names the pair that Pinnace runs: an image, pinned by digest, and a manifest, by its hash.
//
// A Release is a value. Where the image can be found, which manifest digest each architecture has, and the
// texts themselves are metadata that others keep; they are no part of its identity, so a mirror or a second
// environment changes nothing about it.
package release

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

const (
	digestPrefix = "sha256:"
	shortPrefix  = "rel-"
	shortDigits  = 12
)

// ImageDigest is the digest that a user pinned: "sha256:" and 64 lower-case hex digits. It is that of the
// index when the image is an index.
type ImageDigest string

// ParseImageDigest accepts exactly one spelling of a sha256 digest. Other algorithms, upper case and
// surrounding white space are refused, so that equal digests are equal strings.
func ParseImageDigest(s string) (ImageDigest, error) {
	if err := checkDigest(s); err != nil {
		return "", fmt.Errorf("parse image digest: %w", err)
	}
	return ImageDigest(s), nil
}

// ID is the sha256 of a release's descriptor: "sha256:" and 64 lower-case hex digits.
type ID string

// ParseID accepts exactly the form that Release.ID gives.
func ParseID(s string) (ID, error) {
	if err := checkDigest(s); err != nil {
		return "", fmt.Errorf("parse release id: %w", err)
	}
	return ID(s), nil
}

// Short gives the form for people: "rel-" and the first 12 hex digits. It may be ambiguous and is never
// stored. The short form of something that is no ID is "rel-" and as much of it as there is.
func (id ID) Short() string {
	digits := strings.TrimPrefix(string(id), digestPrefix)
	return shortPrefix + digits[:min(len(digits), shortDigits)]
}

// Matches reports whether a person who wrote ref may have meant this release: the whole id, or "rel-" and at
// least the first 6 of its hex digits. Several releases may match; it is for the caller to tell.
func (id ID) Matches(ref string) bool {
	if ref == string(id) {
		return true
	}
	digits, ok := strings.CutPrefix(ref, shortPrefix)
	return ok && len(digits) >= 6 && strings.HasPrefix(strings.TrimPrefix(string(id), digestPrefix), digits)
}

// Release is an image and a manifest that belong together. The manifest holds the app's name; App repeats it
// for those who list releases and is no part of the identity by itself.
type Release struct {
	App      string
	Image    ImageDigest
	Manifest manifest.Hash
}

// New makes a release of an image and a manifest that were checked before.
func New(image ImageDigest, m *manifest.Manifest) Release {
	return Release{App: m.Name, Image: image, Manifest: m.Hash()}
}

// Validate reports whether the release can be named: whether both digests have their form. A Release that came
// over the wire is to be validated before its ID is used.
func (r Release) Validate() error {
	if r.App == "" {
		return errors.New("validate release: it has no app")
	}
	if _, err := ParseImageDigest(string(r.Image)); err != nil {
		return fmt.Errorf("validate release: %w", err)
	}
	if _, err := manifest.ParseHash(string(r.Manifest)); err != nil {
		return fmt.Errorf("validate release: %w", err)
	}
	return nil
}

// Descriptor gives the canonical bytes (RFC 8785) that identify the release:
//
//	{"image":"sha256:…","manifest":"sha256:…","schema":"release.v1"}
func (r Release) Descriptor() []byte {
	return fmt.Appendf(nil, `{"image":"%s","manifest":"%s","schema":"release.v1"}`, r.Image, r.Manifest)
}

// ID gives the release id, the sha256 of the descriptor. The same image and manifest always have the same id.
func (r Release) ID() ID {
	sum := sha256.Sum256(r.Descriptor())
	return ID(digestPrefix + hex.EncodeToString(sum[:]))
}

func checkDigest(s string) error {
	digits, ok := strings.CutPrefix(s, digestPrefix)
	if ok && len(digits) == 2*sha256.Size && strings.Trim(digits, "0123456789abcdef") == "" {
		return nil
	}
	if len(s) > 100 {
		s = s[:100] + "…"
	}
	return fmt.Errorf("%s is not a digest: sha256: and 64 lower-case hex digits", strconv.Quote(s))
}
