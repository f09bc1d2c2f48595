package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

// Bounds of an image. The log bounds the sum of the documents further.
const (
	maxPlatforms = 16
	maxLayers    = 128
)

// checkPlatforms accepts the documents of an image when they are what their digests say, belong to each other
// and cover what the manifest asks for. Whether an index names them cannot be checked here: only the CLI
// has seen the index.
func checkPlatforms(image string, m *manifest.Manifest, given []*pb.ReleasePlatform) ([]fleet.Platform, error) {
	if len(given) == 0 || len(given) > maxPlatforms {
		return nil, fmt.Errorf("%d platforms of the image, want 1 to %d", len(given), maxPlatforms)
	}
	var platforms []fleet.Platform
	have := map[string]bool{}
	for _, p := range given {
		arch := p.GetArchitecture()
		if have[arch] {
			return nil, fmt.Errorf("the architecture %q comes twice", arch)
		}
		have[arch] = true
		if err := checkPlatform(p); err != nil {
			return nil, fmt.Errorf("image for %s: %w", arch, err)
		}
		platforms = append(platforms, fleet.Platform{
			Architecture: arch, ManifestDigest: p.GetManifestDigest(), ImageManifest: p.GetImageManifest(), ImageConfig: p.GetImageConfig(),
		})
	}
	if len(given) > 1 && slices.ContainsFunc(given, func(p *pb.ReleasePlatform) bool { return p.GetManifestDigest() == image }) {
		return nil, fmt.Errorf("the image %s is the manifest of one architecture, and others are given with it", image)
	}
	for _, arch := range m.Arch {
		if !have[arch] {
			return nil, fmt.Errorf("the manifest asks for arch %q, but the image has %s: build it for %s, or take it out of arch", arch, orNothing(have), arch)
		}
	}
	slices.SortFunc(platforms, func(a, b fleet.Platform) int { return strings.Compare(a.Architecture, b.Architecture) })
	return platforms, nil
}

// imageManifest and imageConfig are the parts that are checked; the agent reads the rest.
type imageManifest struct {
	Config descriptor   `json:"config"`
	Layers []descriptor `json:"layers"`
}

type descriptor struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

type imageConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

func checkPlatform(p *pb.ReleasePlatform) error {
	if got := digestOf(p.GetImageManifest()); got != p.GetManifestDigest() {
		return fmt.Errorf("the image manifest's bytes have the digest %s, not %q", got, p.GetManifestDigest())
	}
	var m imageManifest
	if err := json.Unmarshal(p.GetImageManifest(), &m); err != nil {
		return fmt.Errorf("read the image manifest: %w", err)
	}
	config := p.GetImageConfig()
	if got := digestOf(config); got != m.Config.Digest || int64(len(config)) != m.Config.Size {
		return fmt.Errorf("the image config's %d bytes have the digest %s; the image manifest names %q with %d bytes", len(config), got, m.Config.Digest, m.Config.Size)
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%d layers, the most is %d", len(m.Layers), maxLayers)
	}
	for n, l := range m.Layers {
		if _, err := release.ParseImageDigest(l.Digest); err != nil || l.Size < 0 {
			return fmt.Errorf("layer %d: digest %q and size %d are not those of a layer", n+1, l.Digest, l.Size)
		}
	}
	var c imageConfig
	if err := json.Unmarshal(config, &c); err != nil {
		return fmt.Errorf("read the image config: %w", err)
	}
	switch {
	case c.OS != "linux":
		return fmt.Errorf("it is for the operating system %q, not linux", c.OS)
	case c.Architecture != p.GetArchitecture():
		return fmt.Errorf("its config says that it is for %q", c.Architecture)
	case len(c.RootFS.DiffIDs) != len(m.Layers):
		return fmt.Errorf("its config lists %d layers, its manifest %d", len(c.RootFS.DiffIDs), len(m.Layers))
	}
	return nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func orNothing(have map[string]bool) string {
	var names []string
	for n := range have {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
