package image

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/erofs"
)

// identity names the file system that the converter makes of layers. The first half of it is the UUID.
func identity(diffIDs []string) [sha256.Size]byte {
	return sha256.Sum256([]byte(Converter + "\n" + strings.Join(diffIDs, "\n") + "\n"))
}

func uuidOf(id [sha256.Size]byte) string {
	h := hex.EncodeToString(id[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// assemble merges the layers, writes the metadata, and records that the image is complete.
func (s *Store) assemble(spec *spec, layers []*layerFile) (*Image, error) {
	t := newTree(s.limits)
	devices := make([]erofs.Device, len(layers))
	for i, l := range layers {
		x, err := readIndex(l.idx)
		if err != nil {
			return nil, fmt.Errorf("layer %d: read index: %w", i+1, err)
		}
		if err := t.apply(x, uint16(i+1)); err != nil {
			return nil, fmt.Errorf("layer %d of %d (%s): %w", i+1, len(layers), l.diffID, err)
		}
		devices[i] = erofs.Device{Tag: strings.TrimPrefix(l.diffID, digestPrefix), Size: l.size}
	}
	t.prune()
	id := identity(spec.diffIDs)
	r, err := s.writeMetadata(t.Tree, id, devices)
	if err != nil {
		return nil, fmt.Errorf("write metadata: %w", err)
	}
	r.Manifest, r.Config = spec.manifest, spec.config
	if err := s.writeRecord(spec.digest, r); err != nil {
		return nil, fmt.Errorf("write record: %w", err)
	}
	return s.image(spec, r, layers), nil
}

// writeMetadata writes the file system of a tree and gives a record with its checksums.
func (s *Store) writeMetadata(tree *erofs.Tree, id [sha256.Size]byte, devices []erofs.Device) (*record, error) {
	f, err := s.create()
	if err != nil {
		return nil, err
	}
	sum, crc := sha256.New(), crc32.New(crc32.MakeTable(crc32.Castagnoli))
	size := new(counter)
	buffered := bufio.NewWriterSize(io.MultiWriter(f, sum, crc, size), 1<<20)
	err = erofs.Write(buffered, tree, erofs.Options{BlockSize: sectorSize, UUID: [16]byte(id[:16]), Devices: devices})
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return nil, errors.Join(err, durable.Discard(f))
	}
	if err := durable.Commit(f, s.metadataPath(id)); err != nil {
		return nil, err
	}
	return &record{
		Converter:      Converter,
		MetadataSHA256: hex.EncodeToString(sum.Sum(nil)),
		MetadataCRC32C: crc.Sum32(),
		MetadataSize:   int64(*size),
	}, nil
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

// A counter is a writer that counts.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
