package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
)

// A record says that an image is complete, and what its metadata looked like then.
type record struct {
	Converter      string `json:"converter"`
	Manifest       []byte `json:"manifest"`
	Config         []byte `json:"config"`
	MetadataSHA256 string `json:"metadata_sha256"`
	MetadataCRC32C uint32 `json:"metadata_crc32c"`
	MetadataSize   int64  `json:"metadata_size"`
}

// maxRecord is above two documents in base64.
const maxRecord = 3*maxDocument + 64<<10

func (s *Store) writeRecord(manifestDigest string, r *record) error {
	digits, err := digestHex(manifestDigest)
	if err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return s.write(s.path("images", digits+".json"), append(b, '\n'))
}

// Lookup finds an image that is complete in the store. It is quick enough to be asked before every start:
// it verifies record, config, metadata and indexes by their checksums and the layers by their size, but
// reads no layer. What is damaged counts as absent: Pull makes it again. A file that this Store has verified is
// read again only when its inode, size or times have changed.
func (s *Store) Lookup(manifestDigest string) (*Image, bool, error) {
	digits, err := digestHex(manifestDigest)
	if err != nil {
		return nil, false, fmt.Errorf("look up image: %w", err)
	}
	img, err := s.lookup(manifestDigest, s.path("images", digits+".json"))
	if err != nil {
		return nil, false, fmt.Errorf("look up image %s: %w", manifestDigest, err)
	}
	return img, img != nil, nil
}

// lookup gives no image and no error for one that is not there.
func (s *Store) lookup(manifestDigest, path string) (*Image, error) {
	b, err := readFile(path, maxRecord)
	if b == nil || err != nil {
		return nil, err
	}
	var r record
	if json.Unmarshal(b, &r) != nil || r.Converter != Converter {
		return nil, nil
	}
	spec, err := parseSpec(manifestDigest, r.Manifest, r.Config, s.limits)
	if err != nil {
		return nil, nil // the record is damaged, so the image isn't there
	}
	layers := make([]*layerFile, len(spec.diffIDs))
	for i, diffID := range spec.diffIDs {
		if layers[i], err = s.layerFile(diffID, spec.blobs[i]); err != nil {
			return nil, err
		}
		if ok, err := layers[i].check(); !ok || err != nil {
			return nil, err
		}
	}
	if ok, err := s.intact(s.metadataPath(identity(spec.diffIDs)), &r); !ok || err != nil {
		return nil, err
	}
	return s.image(spec, &r, layers), nil
}

// intact compares the metadata with its record.
func (s *Store) intact(path string, r *record) (bool, error) {
	info, err := os.Stat(path)
	if err == nil {
		if crc, ok := s.memo.look(path, info); ok {
			return info.Size() == r.MetadataSize && uint32(crc) == r.MetadataCRC32C, nil
		}
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, make([]byte, 256<<10))
	if err != nil {
		return false, err
	}
	if n != r.MetadataSize || sum.Sum32() != r.MetadataCRC32C {
		return false, nil
	}
	s.memo.keep(path, info, int64(sum.Sum32()))
	return true, nil
}

// readFile reads a file of at most limit bytes; it gives nil for one that is missing or longer.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil || int64(len(b)) > limit {
		return nil, err
	}
	return b, nil
}
