package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"
)

// pushVariant pushes what an image can be besides the usual: variant KIND NAME:TAG DIR. DIR is as for image.
func pushVariant(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: variant docker|zstd|plain|nested|deep|sparse NAME:TAG DIR")
	}
	ref, err := name.ParseReference(ts.Getenv("REGISTRY") + "/" + args[1])
	ts.Check(err)
	amd, err := imageOf(ts.MkAbs(args[2]), "amd64")
	ts.Check(err)
	arm, err := imageOf(ts.MkAbs(args[2]), "arm64")
	ts.Check(err)
	switch args[0] {
	case "docker":
		ts.Check(remote.Write(ref, mutate.ConfigMediaType(mutate.MediaType(withLayer(ts, amd, types.DockerLayer), types.DockerManifestSchema2), types.DockerConfigJSON)))
	case "zstd":
		ts.Check(remote.Write(ref, withLayer(ts, amd, types.OCILayerZStd)))
	case "plain":
		ts.Check(remote.Write(ref, withLayer(ts, amd, types.OCIUncompressedLayer)))
	case "nested":
		ts.Check(remote.WriteIndex(ref, indexOf(indexOf(amd), arm)))
	case "deep":
		index := indexOf(amd)
		for range 8 {
			index = indexOf(index)
		}
		ts.Check(remote.WriteIndex(ref, index))
	case "sparse":
		ts.Check(remote.WriteIndex(ref, indexOf(amd, arm)))
		gone, err := arm.Digest()
		ts.Check(err)
		ts.Check(os.RemoveAll(filepath.Join(ts.MkAbs(".registry"), "docker/registry/v2/repositories", ref.Context().RepositoryStr(), "_manifests/revisions/sha256", gone.Hex)))
	default:
		ts.Fatalf("unknown kind %s", args[0])
	}
}

// withLayer gives an image with its only layer in another form.
func withLayer(ts *testscript.TestScript, img v1.Image, form types.MediaType) v1.Image {
	layers, err := img.Layers()
	ts.Check(err)
	layer := layers[0]
	switch form {
	case types.OCILayerZStd:
		layer, err = tarball.LayerFromOpener(layer.Uncompressed, tarball.WithCompression(compression.ZStd), tarball.WithMediaType(form))
		ts.Check(err)
	case types.OCIUncompressedLayer:
		r, err := layer.Uncompressed()
		ts.Check(err)
		var b strings.Builder
		_, err = io.Copy(&b, r)
		ts.Check(err)
		layer = static.NewLayer([]byte(b.String()), form)
	default:
		layer, err = tarball.LayerFromOpener(layer.Uncompressed, tarball.WithMediaType(form))
		ts.Check(err)
	}
	config, err := img.ConfigFile()
	ts.Check(err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs, config.History = nil, nil
	out, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config)
	ts.Check(err)
	out, err = mutate.Append(out, mutate.Addendum{Layer: layer, MediaType: form})
	ts.Check(err)
	return mutate.ConfigMediaType(out, types.OCIConfigJSON)
}

// indexOf makes an index of images, with their platforms, and indexes, without.
func indexOf(parts ...mutate.Appendable) v1.ImageIndex {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range parts {
		add := mutate.IndexAddendum{Add: p}
		if img, ok := p.(v1.Image); ok {
			if config, err := img.ConfigFile(); err == nil {
				add.Platform = &v1.Platform{OS: "linux", Architecture: config.Architecture}
			}
		}
		index = mutate.AppendManifests(index, add)
	}
	return index
}
