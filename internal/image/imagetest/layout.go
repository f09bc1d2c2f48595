package imagetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// blobPath is the place of a blob in an OCI image layout.
func blobPath(dir, digest string) string {
	return filepath.Join(dir, "blobs", filepath.FromSlash(strings.ReplaceAll(digest, ":", "/")))
}

// WriteLayout makes an OCI image layout of the image at dir, under the name tag.
func (i *Image) WriteLayout(dir, tag string) error {
	blobs := map[string][]byte{i.ManifestDigest: i.Manifest}
	maps.Copy(blobs, i.Blobs)
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil { //nolint:gosec // tools of other users read it
		return err
	}
	for digest, b := range blobs {
		if err := os.WriteFile(blobPath(dir, digest), b, 0o644); err != nil { //nolint:gosec // the same
			return err
		}
	}
	d := Descriptor("application/vnd.oci.image.manifest.v1+json", i.Manifest)
	d["annotations"] = map[string]any{"org.opencontainers.image.ref.name": tag}
	index := encode(map[string]any{"schemaVersion": 2, "manifests": []any{d}})
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),                                    //nolint:gosec // the same
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644), //nolint:gosec // the same
	)
}

// OpenLayout finds an image in an OCI image layout: the one named tag, or the only one. It is a source of its
// blobs, which stay in their files.
func OpenLayout(dir, tag string) (*Image, error) {
	var index struct {
		Manifests []struct {
			Digest      string            `json:"digest"`
			Annotations map[string]string `json:"annotations"`
		} `json:"manifests"`
	}
	if err := readJSON(filepath.Join(dir, "index.json"), &index); err != nil {
		return nil, err
	}
	img := &Image{requests: map[string]int{}}
	for _, m := range index.Manifests {
		if tag == "" && len(index.Manifests) == 1 || tag != "" && m.Annotations["org.opencontainers.image.ref.name"] == tag {
			img.ManifestDigest = m.Digest
		}
	}
	if img.ManifestDigest == "" {
		return nil, fmt.Errorf("layout %s: %d images, none of them chosen by the name %q", dir, len(index.Manifests), tag)
	}
	var manifest struct {
		Config struct {
			Digest string `json:"digest"`
		} `json:"config"`
		Layers []struct {
			Digest string `json:"digest"`
		} `json:"layers"`
	}
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	var err error
	if img.Manifest, err = os.ReadFile(blobPath(dir, img.ManifestDigest)); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(img.Manifest, &manifest); err != nil {
		return nil, err
	}
	if img.Config, err = os.ReadFile(blobPath(dir, manifest.Config.Digest)); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(img.Config, &config); err != nil {
		return nil, err
	}
	img.DiffIDs = config.RootFS.DiffIDs
	for _, l := range manifest.Layers {
		img.BlobDigests = append(img.BlobDigests, l.Digest)
	}
	img.Open = func(_ context.Context, digest string, _ int64) (io.ReadCloser, error) {
		return os.Open(blobPath(dir, digest))
	}
	return img, nil
}

func readJSON(path string, to any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}

// With is the image with another layer on top, in the form of the ones it has.
func (i *Image) With(entries ...Entry) (*Image, error) {
	var manifest, config map[string]any
	if err := errors.Join(json.Unmarshal(i.Manifest, &manifest), json.Unmarshal(i.Config, &config)); err != nil {
		return nil, err
	}
	rootfs, ok := config["rootfs"].(map[string]any)
	layers, ok2 := manifest["layers"].([]any)
	if !ok || !ok2 {
		return nil, errors.New("not the manifest and config of an image")
	}
	layer := Tar(entries...)
	blob := compress(layer, Gzip)
	ids, _ := rootfs["diff_ids"].([]any)
	rootfs["diff_ids"] = append(ids, Digest(layer))
	manifest["layers"] = append(layers, Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", blob))
	top := &Image{Config: encode(config), requests: map[string]int{}, DiffIDs: append(slices.Clone(i.DiffIDs), Digest(layer))}
	old, _ := manifest["config"].(map[string]any)
	mediaType, _ := old["mediaType"].(string)
	manifest["config"] = Descriptor(mediaType, top.Config)
	top.Manifest = encode(manifest)
	top.ManifestDigest = Digest(top.Manifest)
	top.BlobDigests = append(slices.Clone(i.BlobDigests), Digest(blob))
	top.Open = func(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
		if digest == Digest(blob) {
			return io.NopCloser(bytes.NewReader(blob)), nil
		}
		return i.Blob(ctx, digest, size)
	}
	return top, nil
}
