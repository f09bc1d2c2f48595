package image

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// Disks says what to attach for img, which must come from this store: the first maxDrives layers as drives
// of their own, and the others as partitions of one pack disk, which is made if it is not in the store.
// LayerDrives is the number to give; another one changes where layers are and not a byte of the metadata.
func (s *Store) Disks(img *Image, maxDrives int) (DiskSet, error) {
	if maxDrives < 0 {
		return DiskSet{}, fmt.Errorf("disks of image %s: %d drives", img.ManifestDigest, maxDrives)
	}
	own := min(maxDrives, len(img.Layers))
	set := DiskSet{Metadata: img.Metadata}
	for i, l := range img.Layers[:own] {
		set.Drives = append(set.Drives, Drive{Path: l.Path})
		set.Layers = append(set.Layers, DiskRef{Drive: i})
	}
	if own == len(img.Layers) {
		return set, nil
	}
	path, err := s.pack(img.Layers[own:])
	if err != nil {
		return DiskSet{}, fmt.Errorf("disks of image %s: %w", img.ManifestDigest, err)
	}
	set.Drives = append(set.Drives, Drive{Path: path, Pack: true})
	for i := range img.Layers[own:] {
		set.Layers = append(set.Layers, DiskRef{Drive: own, Partition: i + 1})
	}
	return set, nil
}

// pack gives the path of the pack disk of layers, which it makes if it isn't there.
func (s *Store) pack(layers []Layer) (string, error) {
	p, err := planPack(layers)
	if err != nil {
		return "", err
	}
	path := s.path("packs", hex.EncodeToString(p.id[:])+".img")
	if info, err := os.Stat(path); err == nil && info.Size() == p.size {
		return path, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := s.withRoom(context.Background(), p.size, func() error { return s.makePack(p, path) }); err != nil {
		return "", err
	}
	return path, nil
}

func (s *Store) makePack(p *packPlan, path string) error {
	f, err := s.create()
	if err != nil {
		return err
	}
	if err := p.write(f); err != nil {
		return errors.Join(fmt.Errorf("make pack disk: %w", err), durable.Discard(f))
	}
	if err := durable.Commit(f, path); err != nil {
		return fmt.Errorf("store pack disk: %w", err)
	}
	return nil
}

func (p *packPlan) write(f *os.File) error {
	if err := f.Truncate(p.size); err != nil {
		return err
	}
	if _, err := f.WriteAt(p.head(), 0); err != nil {
		return err
	}
	for _, part := range p.partitions {
		if err := part.copyTo(f); err != nil {
			return fmt.Errorf("layer %s: %w", part.layer.DiffID, err)
		}
	}
	_, err := f.WriteAt(p.tail(), p.size-gptTableBytes-sectorSize)
	return err
}

// copyTo copies the layer to its place. Between two files the kernel does it, and shares the blocks where
// the file system can, for which the partitions are aligned.
func (p partition) copyTo(f *os.File) error {
	src, err := os.Open(p.layer.Path)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if info.Size() != p.layer.Size {
		return fmt.Errorf("has %d bytes, the image says %d", info.Size(), p.layer.Size)
	}
	if _, err := f.Seek(p.start, io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	return err
}
