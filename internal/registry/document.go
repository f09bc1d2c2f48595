package registry

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Bounds on what a registry may make us read or fetch.
const (
	maxDocument = 4 << 20 // manifests, indexes and configurations
	maxEntries  = 256     // of an index, with those nested in it
	maxDepth    = 3       // of indexes in each other
	maxLayers   = 128
)

// Media types of indexes and manifests. The first two are OCI's, the others Docker's of the same meaning.
const (
	typeIndex          = "application/vnd.oci.image.index.v1+json"
	typeManifest       = "application/vnd.oci.image.manifest.v1+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

var acceptedTypes = strings.Join([]string{typeIndex, typeManifest, typeDockerList, typeDockerManifest}, ", ")

// configTypes are the configurations that make a manifest one of a container image.
var configTypes = map[string]bool{
	"application/vnd.oci.image.config.v1+json":       true,
	"application/vnd.docker.container.image.v1+json": true,
}

// layerTypes are what layers of container images may be.
var layerTypes = map[string]bool{
	"application/vnd.oci.image.layer.v1.tar":                       true,
	"application/vnd.oci.image.layer.v1.tar+gzip":                  true,
	"application/vnd.oci.image.layer.v1.tar+zstd":                  true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.diff.tar":                 true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.zstd":    true,
}

// artifacts names the common things in registries that are no images.
var artifacts = map[string]string{
	"application/vnd.cncf.helm.config.v1+json":            "a Helm chart",
	"application/vnd.docker.plugin.v1+json":               "a Docker plugin",
	"application/vnd.wasm.config.v0+json":                 "a WebAssembly module",
	"application/vnd.wasm.config.v1+json":                 "a WebAssembly module",
	"application/vnd.docker.compose.project":              "a compose project",
	"application/vnd.docker.compose.config.empty.v1+json": "a compose project",
	"application/vnd.in-toto+json":                        "an attestation",
	"application/vnd.dev.sigstore.bundle.v0.3+json":       "a signature",
}

// document is what we read of manifests and indexes alike. Fields "urls" and "data" are not read on
// purpose: blobs come from the registry, by digest, and from nowhere else.
type document struct {
	MediaType    string          `json:"mediaType"`
	ArtifactType string          `json:"artifactType"`
	Config       *descriptor     `json:"config"`
	Layers       []descriptor    `json:"layers"`
	Manifests    []descriptor    `json:"manifests"`
	FSLayers     json.RawMessage `json:"fsLayers"` // of Docker's first schema
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    *platform         `json:"platform"`
}

type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return printable(s)
}

// attestation says whether an index entry is metadata about another entry, as BuildKit adds it.
func (d descriptor) attestation() bool {
	_, refers := d.Annotations["vnd.docker.reference.type"]
	return refers || d.Platform != nil && d.Platform.OS == "unknown" && d.Platform.Architecture == "unknown"
}

func (d descriptor) check(most int64) error {
	if !digestForm.MatchString(d.Digest) {
		return wrongContent("it refers to something by %q, which is not a sha256 digest", printable(d.Digest))
	}
	if d.Size < 0 || d.Size > most {
		return wrongContent("it gives %s a size of %d bytes; at most %d can be right", d.Digest, d.Size, most)
	}
	return nil
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parseDocument reads the manifest of an image, or an index. The content type is what the registry called it
// in the header.
func parseDocument(b []byte, contentType string) (*document, error) {
	d, err := parseAny(b, contentType)
	if err != nil || d.isIndex() {
		return d, err
	}
	return d, d.checkManifest()
}

// parseAny reads an index or the manifest of anything.
func parseAny(b []byte, contentType string) (*document, error) {
	var d document
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, &Error{Kind: ErrWrongContent, Message: "its manifest is not readable", Err: err}
	}
	contentType, _, _ = strings.Cut(contentType, ";")
	contentType = strings.TrimSpace(contentType)
	switch {
	case d.FSLayers != nil:
		return nil, notAnImage("a Docker image of the old schema 1", "push it again with a client of this decade")
	case d.Manifests != nil && (d.Layers != nil || d.Config != nil):
		return nil, wrongContent("its manifest is an index at the same time")
	case d.MediaType == "":
		d.MediaType = guessType(&d, contentType)
	case contentType != d.MediaType && isDocumentType(contentType):
		return nil, wrongContent("the registry calls it %s, but it calls itself %s", printable(contentType), printable(d.MediaType))
	}
	if d.isIndex() {
		if d.Manifests == nil && d.Config != nil {
			return nil, wrongContent("it calls itself an index but is a manifest")
		}
	}
	return &d, nil
}

// guessType is for documents that leave out mediaType, as OCI allows.
func guessType(d *document, contentType string) string {
	switch {
	case isDocumentType(contentType):
		return contentType
	case d.Manifests != nil:
		return typeIndex
	}
	return typeManifest
}

func isDocumentType(t string) bool {
	return t == typeIndex || t == typeManifest || t == typeDockerList || t == typeDockerManifest
}

func (d *document) isIndex() bool { return d.MediaType == typeIndex || d.MediaType == typeDockerList }

// checkManifest says whether this is the manifest of a container image.
func (d *document) checkManifest() error {
	if d.MediaType != typeManifest && d.MediaType != typeDockerManifest {
		return notAnImage(artifact(d.MediaType), "")
	}
	if d.Config == nil || d.Manifests != nil {
		return wrongContent("its manifest has no configuration")
	}
	if !configTypes[d.Config.MediaType] {
		kind := d.Config.MediaType
		if d.ArtifactType != "" {
			kind = d.ArtifactType
		}
		return notAnImage(artifact(kind), "")
	}
	if err := d.Config.check(maxDocument); err != nil {
		return err
	}
	if len(d.Layers) > maxLayers {
		return wrongContent("it has %d layers; at most %d are allowed", len(d.Layers), maxLayers)
	}
	for _, l := range d.Layers {
		if !layerTypes[l.MediaType] {
			return notAnImage(artifact(l.MediaType), "")
		}
		if err := l.check(1 << 40); err != nil {
			return err
		}
	}
	return nil
}

// artifact names a thing that is not an image by its media type.
func artifact(mediaType string) string {
	if known, ok := artifacts[mediaType]; ok {
		return known
	}
	if strings.Contains(mediaType, "cosign") || strings.Contains(mediaType, "sigstore") {
		return "a signature"
	}
	return fmt.Sprintf("an artifact of type %q", printable(mediaType))
}

func notAnImage(what, hint string) error {
	if hint == "" {
		hint = "give the reference of a container image"
	}
	return &Error{Kind: ErrNotAnImage, Message: "it is " + what + ", not a container image", Hint: hint}
}

func wrongContent(format string, args ...any) error {
	return &Error{
		Kind: ErrWrongContent, Message: fmt.Sprintf(format, args...),
		Hint: "the registry, or something between it and here, gives out damaged or forged content; nothing of it was used",
	}
}
