package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// The media types of an exported Release, an OCI artifact whose subject is the image. Its config is the
// descriptor, so the digest of that blob is the release id; the digest of the canonical manifest is the
// manifest hash.
const (
	MediaType         = "application/vnd.pinnace.release.v1+json" // of the descriptor, and of the artifact
	MediaTypeManifest = "application/vnd.pinnace.manifest.v1+json"
	MediaTypeSource   = "application/vnd.pinnace.manifest.v1+toml"
)

// Documents are everything that the identity of a Release stands for, as somebody keeps it. Nothing of it is
// believed before Verify.
type Documents struct {
	ID        string
	App       string
	Image     string
	Manifest  string // hash
	Canonical []byte
	Source    []byte // nil when it is not kept
	Platforms []Platform
}

// Release is what the documents claim to be.
func (d Documents) Release() Release {
	return Release{App: d.App, Image: ImageDigest(d.Image), Manifest: manifest.Hash(d.Manifest)}
}

// Platform is what a Release has of its image for one architecture.
type Platform struct {
	Architecture   string
	ManifestDigest string
	Manifest       []byte
	Config         []byte
}

// Finding is one thing that was verified.
type Finding struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

// Verify recomputes every identity from the bytes that it stands for. It says of each how it came out.
func (d Documents) Verify() []Finding {
	v := verifier{}
	rel := d.Release()
	if err := rel.Validate(); err != nil {
		v.add("release id", false, "%v", err)
	} else {
		v.equal("release id", "sha256 of the descriptor", string(rel.ID()), d.ID)
	}
	v.equal("manifest hash", "sha256 of the canonical manifest", string(manifest.HashOf(d.Canonical)), d.Manifest)
	m, err := manifest.ParseCanonical(d.Canonical)
	switch {
	case err != nil:
		v.add("canonical manifest", false, "%v", err)
	case m.Name != d.App:
		v.add("canonical manifest", false, "it is of the app %q, the Release says %q", m.Name, d.App)
	default:
		v.add("canonical manifest", true, "%d bytes, encoded again to the same", len(d.Canonical))
	}
	if d.Source != nil {
		v.source(d.Source, d.Canonical)
	}
	if len(d.Platforms) == 0 {
		v.add("image", false, "the Release has no image manifest for any architecture")
	}
	for _, p := range d.Platforms {
		v.platform(p, d.Image, len(d.Platforms) == 1)
	}
	return v.findings
}

type verifier struct{ findings []Finding }

func (v *verifier) add(what string, ok bool, format string, args ...any) {
	v.findings = append(v.findings, Finding{What: what, OK: ok, Detail: fmt.Sprintf(format, args...)})
}

func (v *verifier) equal(what, how, got, claimed string) bool {
	if got != claimed {
		v.add(what, false, "the %s is %s, the Release says %q", how, got, claimed)
		return false
	}
	v.add(what, true, "%s is the %s", got, how)
	return true
}

func (v *verifier) source(source, canonical []byte) {
	m, problems := manifest.Parse(source)
	switch {
	case m == nil:
		v.add("source text", false, "it is not a manifest: %v", problems.Err())
	case !bytes.Equal(m.Canonical(), canonical):
		v.add("source text", false, "it is another manifest, %s", m.Hash())
	default:
		v.add("source text", true, "it means the same")
	}
}

// platform checks manifest and config of an architecture. That an index names the manifest is for whoever
// has the index to check.
func (v *verifier) platform(p Platform, image string, only bool) {
	if !v.equal("image manifest "+p.Architecture, "sha256 of the image manifest", digest(p.Manifest), p.ManifestDigest) {
		return
	}
	if !only && p.ManifestDigest == image {
		v.add("image manifest "+p.Architecture, false, "it is the whole image, and the Release has other architectures")
	}
	var m struct {
		Config struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"config"`
	}
	var c struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	what := "image config " + p.Architecture
	if err := json.Unmarshal(p.Manifest, &m); err != nil {
		v.add(what, false, "the image manifest is not readable: %v", err)
		return
	}
	if got := digest(p.Config); got != m.Config.Digest || int64(len(p.Config)) != m.Config.Size {
		v.add(what, false, "its %d bytes have the sha256 %s, the image manifest names %q with %d bytes", len(p.Config), got, m.Config.Digest, m.Config.Size)
		return
	}
	err := json.Unmarshal(p.Config, &c)
	switch {
	case err != nil:
		v.add(what, false, "it is not readable: %v", err)
	case c.OS != "linux" || c.Architecture != p.Architecture:
		v.add(what, false, "it is for %q on %q", c.Architecture, c.OS)
	default:
		v.add(what, true, "%s is what the image manifest names", m.Config.Digest)
	}
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}
