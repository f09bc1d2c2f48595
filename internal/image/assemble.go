package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// identity names the file system that the converter makes of layers. The first half of it is the UUID.
func identity(diffIDs []string) [sha256.Size]byte {
	return sha256.Sum256([]byte(Converter + "\n" + strings.Join(diffIDs, "\n") + "\n"))
}

func uuidOf(id [sha256.Size]byte) string {
	h := hex.EncodeToString(id[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// assemble has the layers merged, stores the metadata, and records that the image is complete.
func (s *Store) assemble(ctx context.Context, w *worker, spec *spec, layers []*layerFile) (*Image, error) {
	id := identity(spec.diffIDs)
	files, err := s.createAll(s.metadataPath(id))
	if err != nil {
		return nil, err
	}
	m, err := s.merge(ctx, w, id, layers, files[0].file)
	if err != nil {
		return nil, errors.Join(err, discardAll(files))
	}
	if err := publish(files); err != nil {
		return nil, fmt.Errorf("store metadata: %w", err)
	}
	if err := s.syncNames(); err != nil {
		return nil, err
	}
	r := &record{
		Converter: Converter, Manifest: spec.manifest, Config: spec.config,
		MetadataSHA256: m.SHA256, MetadataCRC32C: m.CRC32C, MetadataSize: m.Size,
	}
	if err := s.writeRecord(spec.digest, r); err != nil {
		return nil, fmt.Errorf("write record: %w", err)
	}
	return s.image(spec, r, layers), nil
}

// merge has the confined process write the file system of the layers to out.
func (s *Store) merge(ctx context.Context, w *worker, id [sha256.Size]byte, layers []*layerFile, out *os.File) (*metadataReport, error) {
	r := &request{Task: taskMerge, Limits: s.limits, UUID: [16]byte(id[:16])}
	files := []*os.File{out}
	defer func() { closeFiles(files[1:]) }()
	for i, l := range layers {
		idx, err := os.Open(l.idx)
		if err != nil {
			return nil, fmt.Errorf("layer %d: read index: %w", i+1, err)
		}
		files = append(files, idx)
		r.Layers = append(r.Layers, requestLayer{DiffID: l.diffID, Size: l.size})
	}
	j, err := w.begin(ctx, "the indexes", nil, r, files...)
	if err != nil {
		return nil, err
	}
	done, err := w.end(j)
	if err != nil {
		return nil, err
	}
	info, err := out.Stat()
	if err != nil {
		return nil, err
	}
	if done.Metadata == nil || done.Metadata.Size != info.Size() {
		return nil, fmt.Errorf("%w: it says nothing true about the metadata", errConfined)
	}
	return done.Metadata, nil
}

func (s *Store) metadataPath(id [sha256.Size]byte) string {
	return s.path("metadata", hex.EncodeToString(id[:])+".erofs")
}

func (s *Store) image(spec *spec, r *record, layers []*layerFile) *Image {
	id := identity(spec.diffIDs)
	img := &Image{
		ManifestDigest: spec.digest,
		DiffIDs:        spec.diffIDs,
		Metadata:       s.metadataPath(id),
		MetadataSHA256: r.MetadataSHA256,
		UUID:           uuidOf(id),
		Converter:      r.Converter,
		Config:         spec.parsed,
	}
	for _, l := range layers {
		img.Layers = append(img.Layers, Layer{DiffID: l.diffID, Path: l.tar, Size: l.size})
	}
	return img
}
