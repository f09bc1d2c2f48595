package imagetest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Compression of layers.
type Compression string

// The compressions that images use.
const (
	None Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// A Builder collects what an image is made of. Its methods change it and return it.
type Builder struct {
	layers       [][]byte
	compression  Compression
	docker       bool
	editConfig   []func(map[string]any)
	editManifest []func(map[string]any)
}

// New is an image without layers, with gzip, in OCI's form, for this machine's architecture.
func New() *Builder { return &Builder{compression: Gzip} }

// Layer adds a layer of entries.
func (b *Builder) Layer(entries ...Entry) *Builder { return b.RawLayer(Tar(entries...)) }

// RawLayer adds a layer of any bytes.
func (b *Builder) RawLayer(tar []byte) *Builder {
	b.layers = append(b.layers, tar)
	return b
}

// Compress sets how all layers are compressed.
func (b *Builder) Compress(c Compression) *Builder {
	b.compression = c
	return b
}

// Docker makes it an image of Docker's schema 2.
func (b *Builder) Docker() *Builder {
	b.docker = true
	return b
}

// Config lets edit change the config's "config" object: Entrypoint, Env and so on.
func (b *Builder) Config(edit func(config map[string]any)) *Builder {
	return b.Document(func(doc map[string]any) { edit(doc["config"].(map[string]any)) })
}

// Document lets edit change the whole config document.
func (b *Builder) Document(edit func(doc map[string]any)) *Builder {
	b.editConfig = append(b.editConfig, edit)
	return b
}

// Manifest lets edit change the manifest.
func (b *Builder) Manifest(edit func(doc map[string]any)) *Builder {
	b.editManifest = append(b.editManifest, edit)
	return b
}

// An Image is built. It is a source of its blobs.
type Image struct {
	ManifestDigest string
	Manifest       []byte
	Config         []byte
	DiffIDs        []string
	Tars           [][]byte          // uncompressed layers
	Blobs          map[string][]byte // by digest, config included
	BlobDigests    []string          // of the layers, in order

	// Open, when set, serves the blobs instead of Blobs.
	Open func(ctx context.Context, digest string, size int64) (io.ReadCloser, error)

	mu       sync.Mutex
	requests map[string]int // guarded by mu
}

// Build makes the image.
func (b *Builder) Build() *Image {
	img := &Image{Blobs: map[string][]byte{}, requests: map[string]int{}, Tars: b.layers}
	types := b.mediaTypes()
	layers := []any{}
	for _, tar := range b.layers {
		blob := compress(tar, b.compression)
		img.DiffIDs = append(img.DiffIDs, Digest(tar))
		img.BlobDigests = append(img.BlobDigests, Digest(blob))
		img.Blobs[Digest(blob)] = blob
		layers = append(layers, Descriptor(types.layer, blob))
	}
	config := map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": img.DiffIDs},
	}
	for _, edit := range b.editConfig {
		edit(config)
	}
	img.Config = encode(config)
	img.Blobs[Digest(img.Config)] = img.Config
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": types.manifest,
		"config": Descriptor(types.config, img.Config), "layers": layers,
	}
	for _, edit := range b.editManifest {
		edit(manifest)
	}
	img.Manifest = encode(manifest)
	img.ManifestDigest = Digest(img.Manifest)
	return img
}

// Blob serves a blob and counts the request.
func (i *Image) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	i.mu.Lock()
	i.requests[digest]++
	i.mu.Unlock()
	if i.Open != nil {
		return i.Open(ctx, digest, size)
	}
	blob, ok := i.Blobs[digest]
	if !ok {
		return nil, fmt.Errorf("no blob %s", digest)
	}
	return io.NopCloser(bytes.NewReader(blob)), nil
}

// Requests is how often the blob was asked for; "" means all blobs.
func (i *Image) Requests(digest string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	if digest != "" {
		return i.requests[digest]
	}
	n := 0
	for _, count := range i.requests {
		n += count
	}
	return n
}

// Digest is the sha256 of b as images write it.
func Digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// Descriptor names a blob in a manifest.
func Descriptor(mediaType string, blob []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": Digest(blob), "size": len(blob)}
}

type mediaTypes struct{ manifest, config, layer string }

func (b *Builder) mediaTypes() mediaTypes {
	if b.docker {
		t := mediaTypes{
			"application/vnd.docker.distribution.manifest.v2+json",
			"application/vnd.docker.container.image.v1+json",
			"application/vnd.docker.image.rootfs.diff.tar",
		}
		if b.compression != None {
			t.layer += "." + string(b.compression)
		}
		return t
	}
	t := mediaTypes{
		"application/vnd.oci.image.manifest.v1+json",
		"application/vnd.oci.image.config.v1+json",
		"application/vnd.oci.image.layer.v1.tar",
	}
	if b.compression != None {
		t.layer += "+" + string(b.compression)
	}
	return t
}

func compress(b []byte, c Compression) []byte {
	var out bytes.Buffer
	var w io.WriteCloser
	switch c {
	case Gzip:
		w = gzip.NewWriter(&out)
	case Zstd:
		z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			panic(err)
		}
		w = z
	case None:
		return b
	default:
		panic("unknown compression " + string(c))
	}
	if _, err := w.Write(b); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func encode(doc any) []byte {
	b, err := json.Marshal(doc)
	if err != nil {
		panic(err)
	}
	return b
}
