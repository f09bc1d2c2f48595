package image

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a store has, and what it takes.
type Usage struct {
	Dir        string
	Images     []StoredImage     // the most recently used first
	Kinds      map[string]Amount // "layers", "indexes", "metadata", "packs", "images", "quarantine", "unfinished"
	Unnamed    Amount            // of those, files that neither an image nor a lease needs
	Bytes      int64             // all of it
	Quota      Quota
	Free, Disk int64 // of the file system: left for this user, and its size
	Leases     []Lease
}

// Amount is a number of files and their bytes.
type Amount struct {
	Files int
	Bytes int64
}

func (a *Amount) add(bytes int64) {
	a.Files++
	a.Bytes += bytes
}

// A StoredImage is an image that has a record.
type StoredImage struct {
	Digest   string
	Config   Config
	Manifest []byte
	Complete bool // all its files are there; Lookup alone says whether they are intact
	Layers   []StoredLayer
	Bytes    int64 // of all its files
	Unique   int64 // of those that no other image needs
	Used     time.Time
	Leases   []Lease
}

// A StoredLayer is one layer of an image.
type StoredLayer struct {
	DiffID    string
	Blob      string // digest of what the registry has
	MediaType string
	BlobBytes int64
	Bytes     int64 // uncompressed; 0 when it is not there
	Images    int   // that have it
}

// Usage lists what the store has. It reads no layer.
func (s *Store) Usage() (*Usage, error) {
	inv, err := s.inventory()
	if err != nil {
		return nil, fmt.Errorf("list image store: %w", err)
	}
	u := &Usage{Dir: s.dir, Kinds: map[string]Amount{}, Quota: s.quota, Leases: inv.leases}
	users := map[string]int{}
	for _, img := range inv.images {
		for _, name := range unique(append([]string{img.file}, img.needs...)) {
			users[name]++
		}
	}
	needed := map[string]bool{}
	for _, l := range inv.leases {
		for _, name := range inv.need(l.DiffIDs, l.Metadata) {
			needed[name] = true
		}
	}
	for name, f := range inv.files {
		kind := kindOfUsage(name)
		a := u.Kinds[kind]
		a.add(f.size)
		u.Kinds[kind] = a
		if users[name] == 0 && !needed[name] {
			u.Unnamed.add(f.size)
		}
	}
	if inv.temp > 0 {
		u.Kinds["unfinished"] = Amount{Bytes: inv.temp}
	}
	u.Bytes = inv.bytes() + inv.temp
	for _, img := range inv.images {
		u.Images = append(u.Images, inv.storedImage(img, users))
	}
	slices.SortFunc(u.Images, func(a, b StoredImage) int {
		return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.Digest, b.Digest))
	})
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return nil, fmt.Errorf("look at the disk of %s: %w", s.dir, err)
	}
	u.Free, u.Disk = int64(fs.Bavail)*fs.Bsize, int64(fs.Blocks)*fs.Bsize
	return u, nil
}

// Describe says of an image that need not be in a store what its documents say. It checks them as Pull does.
func Describe(manifestDigest string, manifest, config []byte) (StoredImage, error) {
	spec, err := parseSpec(manifestDigest, manifest, config, Limits{}.withDefaults())
	if err != nil {
		return StoredImage{}, fmt.Errorf("image %s: %w", quote(manifestDigest), err)
	}
	return spec.describe(), nil
}

func (s *spec) describe() StoredImage {
	out := StoredImage{Digest: s.digest, Config: s.parsed, Manifest: s.manifest}
	for i, d := range s.diffIDs {
		blob := s.blobs[i]
		out.Layers = append(out.Layers, StoredLayer{DiffID: d, Blob: blob.Digest, MediaType: blob.MediaType, BlobBytes: blob.Size})
	}
	return out
}

func (inv *inventory) storedImage(img *stored, users map[string]int) StoredImage {
	out := img.spec.describe()
	out.Complete, out.Used = img.record.Converter == Converter, img.used
	for i, l := range out.Layers {
		name := tarName(l.DiffID)
		out.Layers[i].Bytes, out.Layers[i].Images = inv.files[name].size, users[name]
	}
	for _, name := range unique(append([]string{img.file}, img.needs...)) {
		f, there := inv.files[name]
		out.Bytes += f.size
		if users[name] == 1 {
			out.Unique += f.size
		}
		// A pack disk is made when a machine needs it.
		if !there && kindOfFile(name) != "pack" {
			out.Complete = false
		}
	}
	for _, l := range inv.leases {
		if l.Image == out.Digest {
			out.Leases = append(out.Leases, l)
		}
	}
	return out
}

// unique leaves out what comes again: an image may have a layer twice.
func unique(names []string) []string {
	slices.Sort(names)
	return slices.Compact(names)
}

func kindOfUsage(name string) string {
	switch kind := kindOfFile(name); {
	case kind == "layer" && name[len(name)-4:] == ".idx":
		return "indexes"
	case kind == "metadata" || kind == "quarantine":
		return kind
	case kind == "record":
		return "images"
	default:
		return kind + "s"
	}
}
