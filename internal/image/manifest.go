package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// A descriptor names a blob. Its urls are not read: a layer comes from the image's own registry, by
// digest, or not at all.
type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// A spec is an image as its manifest and config describe it, checked.
type spec struct {
	digest           string
	manifest, config []byte
	blobs            []descriptor
	diffIDs          []string // sha256:<hex>, as many as blobs
	parsed           Config
}

// parseSpec checks manifest and config against each other and against the digest that pins them.
func parseSpec(digest string, manifest, config []byte, limits Limits) (*spec, error) {
	if _, err := digestHex(digest); err != nil {
		return nil, err
	}
	if len(manifest) > maxDocument || len(config) > maxDocument {
		return nil, refuse("manifest of %d bytes and config of %d bytes: each may have %d", len(manifest), len(config), maxDocument)
	}
	if got := digestOf(manifest); got != digest {
		return nil, corrupt("manifest is %s, want %s", got, digest)
	}
	blobs, configBlob, err := parseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if got := digestOf(config); got != configBlob.Digest || int64(len(config)) != configBlob.Size {
		return nil, corrupt("config is %s with %d bytes, the manifest names %s with %d",
			got, len(config), quote(configBlob.Digest), configBlob.Size)
	}
	parsed, diffIDs, err := parseConfig(config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(diffIDs) != len(blobs) {
		return nil, refuse("config names %d layers in rootfs.diff_ids, the manifest %d", len(diffIDs), len(blobs))
	}
	var total int64
	for i, blob := range blobs {
		if blob.Size > limits.BlobBytes-total {
			return nil, refuse("layers 1 to %d have more than %d bytes", i+1, limits.BlobBytes)
		}
		total += blob.Size
	}
	return &spec{digest: digest, manifest: manifest, config: config, blobs: blobs, diffIDs: diffIDs, parsed: parsed}, nil
}

func parseManifest(b []byte) (layers []descriptor, config descriptor, err error) {
	var m struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		ArtifactType  string          `json:"artifactType"`
		Config        descriptor      `json:"config"`
		Layers        []descriptor    `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, config, refuse("not valid JSON for a manifest: %w", err)
	}
	switch {
	case present(m.Manifests) && len(m.Layers) > 0:
		return nil, config, refuse("is both an image and an index of images")
	case present(m.Manifests):
		return nil, config, refuse("is an index of images: choose one of its platforms")
	case m.SchemaVersion == 1 || present(m.FSLayers):
		return nil, config, refuse("has Docker's schema 1, which names layers without diffIDs: push the image again with a current tool")
	case m.SchemaVersion != 2:
		return nil, config, refuse("schemaVersion is %d, want 2", m.SchemaVersion)
	}
	switch m.MediaType {
	case "", "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json":
	default:
		return nil, config, refuse("media type %s is not that of an image", quote(m.MediaType))
	}
	switch m.Config.MediaType {
	case "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json":
	default:
		return nil, config, refuse("is %s, not an image that can run", describeArtifact(m.Config.MediaType, m.ArtifactType))
	}
	if _, err := digestHex(m.Config.Digest); err != nil {
		return nil, config, fmt.Errorf("config: %w", err)
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return nil, config, refuse("has %d layers, want 1 to %d", len(m.Layers), maxLayers)
	}
	for i, layer := range m.Layers {
		if err := checkLayer(layer); err != nil {
			return nil, config, fmt.Errorf("layer %d: %w", i+1, err)
		}
	}
	return m.Layers, m.Config, nil
}

// checkLayer says whether a layer's type is one that holds a tar. How the tar is compressed is left to its
// first bytes, since the diffID decides what they must become anyway.
func checkLayer(d descriptor) error {
	if _, err := digestHex(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return refuse("size is %d", d.Size)
	}
	if strings.HasSuffix(d.MediaType, "+encrypted") {
		return refuse("is encrypted (%s): push the image unencrypted", quote(d.MediaType))
	}
	switch d.MediaType {
	case "application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.v1.tar+gzip",
		"application/vnd.oci.image.layer.v1.tar+zstd",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
		"application/vnd.docker.image.rootfs.diff.tar",
		"application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd",
		"application/vnd.docker.image.rootfs.foreign.diff.tar",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return nil
	default:
		return refuse("media type %s is not that of a layer", quote(d.MediaType))
	}
}

// foreign reports whether a layer is one that registries are allowed not to have.
func (d descriptor) foreign() bool {
	return strings.Contains(d.MediaType, ".nondistributable.") || strings.Contains(d.MediaType, ".foreign.")
}

func describeArtifact(configType, artifactType string) string {
	switch {
	case strings.HasPrefix(configType, "application/vnd.cncf.helm."):
		return "a Helm chart"
	case artifactType != "":
		return "an artifact of type " + quote(artifactType)
	case configType == "":
		return "something without a config"
	default:
		return "an artifact with a config of type " + quote(configType)
	}
}

func present(raw json.RawMessage) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}
