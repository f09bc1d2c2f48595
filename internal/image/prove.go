package image

import (
	"context"
	"errors"
	"fmt"
)

// A LayerBlob is a layer with the blob that its image's manifest names for it.
type LayerBlob struct {
	DiffID string
	Digest string
	Size   int64 // of the blob, in bytes, as the manifest declares
}

// LayerBlobs are the layers of an image, lowest first, whether they are there or not.
func (s *Store) LayerBlobs(manifestDigest string, manifest, config []byte) ([]LayerBlob, error) {
	spec, err := s.spec(manifestDigest, manifest, config)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", quote(manifestDigest), err)
	}
	layers := make([]LayerBlob, len(spec.blobs))
	for i, blob := range spec.blobs {
		layers[i] = LayerBlob{DiffID: spec.diffIDs[i], Digest: blob.Digest, Size: blob.Size}
	}
	return layers, nil
}

// Prove fetches a layer although it is there, verifies it as a pull does, and throws away what came. A source that gives
// all bytes of a layer cannot learn any from what is in the store.
func (s *Store) Prove(ctx context.Context, src Source, layer LayerBlob) error {
	l, err := s.layerFile(layer.DiffID, descriptor{Digest: layer.Digest, Size: layer.Size})
	if err != nil {
		return err
	}
	w := s.newWorker()
	files, err := s.createAll(l.idx, l.tar)
	if err != nil {
		return errors.Join(err, w.release())
	}
	_, err = s.receive(ctx, src, w, l, files[1].file, files[0].file, func(int64) {})
	return errors.Join(err, discardAll(files), w.release())
}
