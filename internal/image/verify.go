package image

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// VerifyOptions say what to read again, and how.
type VerifyOptions struct {
	Images []string // manifest digests; nil for everything in the store
	Rate   int64    // bytes a second at most; 0 for no bound
	Keep   bool     // leave what is damaged where it is

	// Progress, when set, is told now and then how many bytes of how many were read.
	Progress func(done, total int64)
}

// A VerifyReport says what was read, and what is not as it should be.
type VerifyReport struct {
	Files     int
	Bytes     int64
	Unchecked []string // metadata and pack disks that no image names, so that nothing says what they should be
	Damaged   []Damage
}

// Damage is a file that is not what its name or its record says, or that is missing from an image.
type Damage struct {
	Kind        string   // "layer", "index", "metadata", "pack", "record", "missing"
	Name        string   // below the store: "layers/<hex>.tar"
	Problem     string   // what is wrong
	Images      []string // manifest digests of those that need it, sorted
	Leases      []Lease  // that hold these images: what runs from the file goes on with it until it is started anew
	Quarantined string   // where the file is now, below the store; "" when it was left or is missing
}

// Verify reads files of the store again: layers against their names, indexes and metadata against their checksums
// and records, pack disks against the layers. What is damaged is moved to quarantine, so that nothing is started
// from it any more and the next Pull makes it again; a machine that has it open keeps the file that it has.
//
// It reads the disk, not the host's memory, where the file system can do that.
func (s *Store) Verify(ctx context.Context, opts VerifyOptions) (*VerifyReport, error) {
	v, err := s.newVerifier(opts)
	if err != nil {
		return nil, fmt.Errorf("verify image store: %w", err)
	}
	names, err := v.choose(opts.Images)
	if err != nil {
		return nil, fmt.Errorf("verify image store: %w", err)
	}
	for _, name := range names {
		v.total += v.inv.files[name].size
	}
	for _, name := range names {
		if err := v.file(ctx, name); err != nil {
			return nil, fmt.Errorf("verify image store: %s: %w", name, err)
		}
	}
	v.missing(opts.Images)
	return &v.report, nil
}

// A verifier checks files one by one. It is for one goroutine.
type verifier struct {
	s      *Store
	opts   VerifyOptions
	inv    *inventory
	packs  map[string]*packPlan // by file name, of all images
	pace   pace
	buffer []byte
	total  int64
	done   map[string]bool
	report VerifyReport
}

func (s *Store) newVerifier(opts VerifyOptions) (*verifier, error) {
	inv, err := s.inventory()
	if err != nil {
		return nil, err
	}
	v := &verifier{s: s, opts: opts, inv: inv, packs: map[string]*packPlan{}, done: map[string]bool{}}
	v.pace = pace{rate: opts.Rate, start: time.Now()}
	for _, img := range inv.images {
		v.plans(img.spec.diffIDs)
	}
	for _, l := range inv.leases {
		v.plans(l.DiffIDs)
	}
	return v, nil
}

// plans notes what the pack disks of an image with these layers would be.
func (v *verifier) plans(diffIDs []string) {
	if !v.inv.packs {
		return
	}
	var layers []Layer
	for _, d := range diffIDs {
		layers = append(layers, Layer{DiffID: d, Size: v.inv.files[tarName(d)].size})
	}
	for own := range layers {
		if p, err := planPack(layers[own:]); err == nil {
			v.packs["packs/"+hex.EncodeToString(p.id[:])+".img"] = p
		}
	}
}

// choose lists the files of the images, or all but those in quarantine.
func (v *verifier) choose(images []string) ([]string, error) {
	chosen := map[string]bool{}
	if images == nil {
		for name := range v.inv.files {
			chosen[name] = filepath.Dir(name) != "quarantine"
		}
	}
	for _, digest := range images {
		img := v.inv.images[digest]
		if img == nil {
			return nil, fmt.Errorf("image %s: %w", quote(digest), ErrNotFound)
		}
		for _, name := range append([]string{img.file}, img.needs...) {
			_, chosen[name] = v.inv.files[name]
		}
	}
	var names []string
	for name, ok := range chosen {
		if ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// file checks one file. The error is one of reading; damage is reported.
func (v *verifier) file(ctx context.Context, name string) error {
	if v.done[name] {
		return nil
	}
	v.done[name] = true
	f, err := openDirect(filepath.Join(v.s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // collected meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	problem, err := v.check(ctx, name, f, info.Size())
	if errors.Is(err, syscall.EIO) {
		problem, err = "the disk cannot read it: "+err.Error(), nil
	}
	if err != nil {
		return err
	}
	v.report.Files++
	if problem == "" {
		return nil
	}
	d := v.damage(name, problem)
	if !v.opts.Keep {
		if d.Quarantined, err = v.s.quarantine(ctx, name, info); err != nil {
			return err
		}
	}
	v.report.Damaged = append(v.report.Damaged, d)
	// A pack disk may share the very blocks of the layer.
	if d.Kind == "layer" {
		return v.packsWith(ctx, digestPrefix+strings.TrimSuffix(filepath.Base(name), ".tar"))
	}
	return nil
}

func (v *verifier) packsWith(ctx context.Context, diffID string) error {
	for name, p := range v.packs {
		if _, there := v.inv.files[name]; !there {
			continue
		}
		if slices.ContainsFunc(p.partitions, func(part partition) bool { return part.layer.DiffID == diffID }) {
			if err := v.file(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing reports what images lack. It comes last: what is in quarantine by now was reported as damaged.
func (v *verifier) missing(images []string) {
	for digest, img := range v.inv.images {
		if images != nil && !slices.Contains(images, digest) || img.record.Converter != Converter {
			continue
		}
		for _, name := range img.needs {
			if _, there := v.inv.files[name]; !there && !strings.HasPrefix(name, "packs/") {
				d := v.damage(name, "is missing")
				d.Kind = "missing"
				if !slices.ContainsFunc(v.report.Damaged, func(o Damage) bool { return o.Name == name }) {
					v.report.Damaged = append(v.report.Damaged, d)
				}
			}
		}
	}
	slices.SortStableFunc(v.report.Damaged, func(a, b Damage) int { return cmp.Compare(a.Name, b.Name) })
}

// damage says whom a damaged file concerns.
func (v *verifier) damage(name, problem string) Damage {
	d := Damage{Kind: kindOfFile(name), Name: name, Problem: problem}
	if strings.HasSuffix(name, ".idx") {
		d.Kind = "index"
	}
	for digest, img := range v.inv.images {
		if img.file == name || slices.Contains(img.needs, name) {
			d.Images = append(d.Images, digest)
		}
	}
	slices.Sort(d.Images)
	for _, l := range v.inv.leases {
		if slices.Contains(d.Images, l.Image) || slices.Contains(v.inv.need(l.DiffIDs, l.Metadata), name) {
			d.Leases = append(d.Leases, l)
		}
	}
	return d
}

// quarantine takes a damaged file away from its name, unless it was replaced since it was looked at. It gives
// the file's new name.
func (s *Store) quarantine(ctx context.Context, name string, seen fs.FileInfo) (string, error) {
	unlock, err := s.lockStore(ctx, syscall.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer unlock()
	path := filepath.Join(s.dir, name)
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, seen) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	to := "quarantine/" + filepath.Base(name) + time.Now().UTC().Format(".20060102T150405.000000000Z")
	if err := durable.Rename(path, filepath.Join(s.dir, to)); err != nil {
		return "", err
	}
	return to, errors.Join(durable.SyncDir(filepath.Dir(path)), durable.SyncDir(s.path("quarantine", "")))
}

func tarName(diffID string) string {
	return "layers/" + strings.TrimPrefix(diffID, digestPrefix) + ".tar"
}
