package image

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// fileKinds are the directories of complete files.
var fileKinds = []string{"layers", "metadata", "packs", "images", "quarantine"}

// An inventory is what files a store has, and who needs which, at one moment.
type inventory struct {
	files  map[string]storedFile // by path below the store: "layers/<hex>.tar"
	images map[string]*stored    // by manifest digest
	leases []Lease
	dead   []string // files of leases that hold nothing any more
	unread []string // records that are damaged
	temp   int64    // bytes in unfinished files
	packs  bool     // there are pack disks
}

type storedFile struct {
	size  int64
	mtime time.Time
}

// A stored image is a record and what it names.
type stored struct {
	spec   *spec
	record *record
	file   string // of the record, below the store
	used   time.Time
	needs  []string // files below the store, whether or not they are there
}

// inventory reads the names of all files, and the records. Without the store's lock it is a snapshot that can
// be out of date in parts, which is good enough to show.
func (s *Store) inventory() (*inventory, error) {
	inv := &inventory{files: map[string]storedFile{}, images: map[string]*stored{}}
	for _, kind := range fileKinds {
		if err := s.listFiles(kind, inv.files); err != nil {
			return nil, err
		}
	}
	var err error
	if inv.leases, inv.dead, err = s.readLeases(time.Now()); err != nil {
		return nil, err
	}
	for name := range inv.files {
		inv.packs = inv.packs || strings.HasPrefix(name, "packs/")
	}
	for name, f := range inv.files {
		if filepath.Dir(name) != "images" {
			continue
		}
		img, err := s.readStored(name)
		if err != nil {
			return nil, err
		}
		if img == nil {
			inv.unread = append(inv.unread, name)
			continue
		}
		img.used = f.mtime
		img.needs = inv.need(img.spec.diffIDs, hexIdentity(img.spec.diffIDs)+".erofs")
		inv.images[img.spec.digest] = img
	}
	inv.temp, err = s.tempBytes()
	return inv, err
}

func (s *Store) listFiles(kind string, into map[string]storedFile) error {
	entries, err := os.ReadDir(s.path(kind, ""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			into[kind+"/"+e.Name()] = storedFile{info.Size(), info.ModTime()}
		}
	}
	return nil
}

// readStored gives nil for a record that is damaged.
func (s *Store) readStored(name string) (*stored, error) {
	digits, _ := strings.CutSuffix(filepath.Base(name), ".json")
	r, err := s.readRecord(digestPrefix + digits)
	if r == nil || err != nil {
		return nil, err
	}
	spec, err := parseSpec(digestPrefix+digits, r.Manifest, r.Config, s.limits)
	if err != nil {
		return nil, nil
	}
	return &stored{spec: spec, record: r, file: name}, nil
}

// readRecord reads the record of an image. It gives nil for one that is missing or no JSON.
func (s *Store) readRecord(manifestDigest string) (*record, error) {
	digits, err := digestHex(manifestDigest)
	if err != nil {
		return nil, err
	}
	b, err := readFile(s.path("images", digits+".json"), maxRecord)
	if b == nil || err != nil {
		return nil, err
	}
	return decodeRecord(b), nil
}

func decodeRecord(b []byte) *record {
	var r record
	if json.Unmarshal(b, &r) != nil {
		return nil
	}
	return &r
}

// need lists the files of an image with these layers. Its pack disk has a name that follows from its layers'
// sizes, so it is among them only when the layers are there, as they are whenever the disk is of use.
func (inv *inventory) need(diffIDs []string, metadata string) []string {
	needs := []string{"metadata/" + metadata}
	layers := make([]Layer, 0, len(diffIDs))
	for _, d := range diffIDs {
		digits := strings.TrimPrefix(d, digestPrefix)
		needs = append(needs, "layers/"+digits+".tar", "layers/"+digits+".idx")
		layers = append(layers, Layer{DiffID: d, Size: inv.files[tarName(d)].size})
	}
	if !inv.packs {
		return unique(needs)
	}
	// Which layers are drives of their own is the caller's choice, so any tail of them may be packed.
	for own := range layers {
		if p, err := planPack(layers[own:]); err == nil {
			needs = append(needs, "packs/"+hex.EncodeToString(p.id[:])+".img")
		}
	}
	return unique(needs)
}

// tempBytes counts what all processes have in unfinished files.
func (s *Store) tempBytes() (int64, error) {
	var total int64
	dirs, err := os.ReadDir(s.path("tmp", ""))
	if err != nil {
		return 0, err
	}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		err := filepath.WalkDir(s.path("tmp", d.Name()), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Name() == ".lock" {
				return ignoreMissing(err)
			}
			info, err := e.Info()
			if err == nil {
				total += info.Size()
			}
			return ignoreMissing(err)
		})
		if err != nil {
			return 0, err
		}
	}
	return total, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// bytes is what the complete files take.
func (inv *inventory) bytes() int64 {
	var n int64
	for _, f := range inv.files {
		n += f.size
	}
	return n
}

func hexIdentity(diffIDs []string) string {
	id := identity(diffIDs)
	return hex.EncodeToString(id[:])
}
