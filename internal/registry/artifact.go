package registry

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
)

// Descriptor names content of a repository, as the image specification writes it.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"` // of what is listed by Referrers only
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// Content is one blob of an Artifact.
type Content struct {
	MediaType   string
	Bytes       []byte
	Annotations map[string]string
}

func (c Content) descriptor() Descriptor {
	return Descriptor{MediaType: c.MediaType, Digest: digestOf(c.Bytes), Size: int64(len(c.Bytes)), Annotations: c.Annotations}
}

// Artifact is a small thing that belongs to an image. Its blobs are held in memory.
type Artifact struct {
	Type        string // media type of the artifact as a whole
	Config      Content
	Layers      []Content
	Subject     Descriptor // the image, as Describe gives it
	Annotations map[string]string
}

// artifactManifest is the manifest of an artifact, as the image specification has it since 1.1.
type artifactManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Subject       *Descriptor       `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// manifest gives the bytes of the artifact's manifest. They depend on the artifact alone, so that pushing it
// again changes nothing.
func (a Artifact) manifest() ([]byte, error) {
	m := artifactManifest{
		SchemaVersion: 2, MediaType: typeManifest, ArtifactType: a.Type, Config: a.Config.descriptor(),
		Layers: []Descriptor{}, Subject: &a.Subject, Annotations: a.Annotations,
	}
	for _, l := range a.Layers {
		m.Layers = append(m.Layers, l.descriptor())
	}
	return json.Marshal(m)
}

// Describe gives the descriptor of a manifest or an index, and its bytes, which are those of the digest.
func (c *Client) Describe(ctx context.Context, repository, digest string) (Descriptor, []byte, error) {
	repo, err := c.repository(repository)
	if err != nil {
		return Descriptor{}, nil, err
	}
	ctx, cancel := c.bounded(ctx, 0)
	defer cancel()
	d := descriptor{Digest: digest, Size: unknownSize}
	if !digestForm.MatchString(digest) {
		return Descriptor{}, nil, &Error{Kind: ErrReference, Message: fmt.Sprintf("%q is not a sha256 digest", printable(digest))}
	}
	raw, contentType, err := c.manifest(ctx, repo, d)
	if err != nil {
		return Descriptor{}, nil, err
	}
	doc, err := parseAny(raw, contentType)
	if err != nil {
		return Descriptor{}, nil, err
	}
	return Descriptor{MediaType: doc.MediaType, Digest: digest, Size: int64(len(raw))}, raw, nil
}

// maxArtifactLayers bounds what Artifact fetches: it is for small things.
const maxArtifactLayers = 16

// Artifact fetches an artifact by the digest of its manifest, with all its blobs. Everything has the digest
// and the size that its parent says.
func (c *Client) Artifact(ctx context.Context, repository, digest string) (*Artifact, error) {
	ctx, cancel := c.bounded(ctx, 0)
	defer cancel()
	_, raw, err := c.Describe(ctx, repository, digest)
	if err != nil {
		return nil, err
	}
	repo, err := c.repository(repository)
	if err != nil {
		return nil, err
	}
	var m artifactManifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, &Error{Kind: ErrWrongContent, Message: "the manifest of artifact " + digest + " is not readable", Err: err}
	}
	if len(m.Layers) > maxArtifactLayers {
		return nil, wrongContent("the artifact %s has %d blobs, at most %d are read", digest, len(m.Layers), maxArtifactLayers)
	}
	a := &Artifact{Type: m.ArtifactType, Annotations: m.Annotations}
	if m.Subject != nil {
		a.Subject = *m.Subject
	}
	if a.Config, err = c.artifactBlob(ctx, repo, m.Config); err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		blob, err := c.artifactBlob(ctx, repo, l)
		if err != nil {
			return nil, err
		}
		a.Layers = append(a.Layers, blob)
	}
	return a, nil
}

func (c *Client) artifactBlob(ctx context.Context, repo name.Repository, d Descriptor) (Content, error) {
	at := descriptor{Digest: d.Digest, Size: d.Size}
	if err := at.check(maxDocument); err != nil {
		return Content{}, err
	}
	b, err := c.content(ctx, repo, at)
	return Content{MediaType: d.MediaType, Bytes: b, Annotations: d.Annotations}, err
}
