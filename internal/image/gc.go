package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// GCOptions say what a collection may remove. What a lease holds stays in any case.
type GCOptions struct {
	DryRun bool          // report, and remove nothing
	MinAge time.Duration // what was used or written since then stays
	Need   int64         // bytes after which it stops, the least recently used going first; 0 removes all it may

	// Disregard, when set, ends leases for which it says true.
	Disregard func(Lease) bool
}

// A GCReport says what a collection removed, or would remove, and why the rest stays.
type GCReport struct {
	Removed []Removed
	Kept    []KeptImage
	Freed   int64 // bytes
	Bytes   int64 // that the store's complete files take afterwards
}

// Removed is an image, with the files that only it needed, or a file that nothing needed.
type Removed struct {
	Kind  string    // "image", "layer", "metadata", "pack", "record", "quarantine"
	Name  string    // digest of the image, or name of the file
	Bytes int64     // that its removal freed
	Used  time.Time // when it was used or written last
}

// A KeptImage is one that stays.
type KeptImage struct {
	Digest string
	Bytes  int64 // of all files that it needs
	Used   time.Time
	Leases []Lease // that hold it
	Recent bool    // was used more recently than MinAge
	Enough bool    // nothing holds it, and what was needed had been freed already
}

// GC removes what nobody needs. It finds out what is held and takes the rest away under the store's lock, so that
// it cannot cross with a process that takes a lease; a pull that runs has one. When it is killed, what is left is
// some files that no image names, which the next collection removes.
func (s *Store) GC(ctx context.Context, opts GCOptions) (*GCReport, error) {
	report, err := s.collect(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("collect garbage of image store: %w", err)
	}
	return report, nil
}

func (s *Store) collect(ctx context.Context, opts GCOptions) (*GCReport, error) {
	unlock, err := s.lockStore(ctx, syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	inv, err := s.inventory()
	if err != nil {
		unlock()
		return nil, err
	}
	report, trash, err := s.collectLocked(inv, opts)
	unlock()
	// Removing large files takes a while, which nobody has to wait for.
	if trash != "" {
		err = errors.Join(err, os.RemoveAll(trash))
	}
	if err != nil || opts.DryRun {
		return report, err
	}
	guard, err := s.guardTemp()
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	return report, s.sweepTemp()
}

// collectLocked moves what can go into a directory, for the caller to remove. The caller has the store's lock for
// itself alone.
func (s *Store) collectLocked(inv *inventory, opts GCOptions) (report *GCReport, trash string, err error) {
	if opts.Disregard != nil {
		inv.leases = slices.DeleteFunc(inv.leases, func(l Lease) bool {
			if opts.Disregard(l) {
				inv.dead = append(inv.dead, s.leasePath(l.ID))
				return true
			}
			return false
		})
	}
	report = inv.plan(time.Now(), opts)
	if opts.DryRun {
		return report, "", nil
	}
	var gone []string
	for _, r := range report.Removed {
		gone = append(gone, r.files(inv)...)
	}
	for _, path := range inv.dead {
		if err := os.Remove(path); ignoreMissing(err) != nil {
			return nil, "", err
		}
	}
	trash, err = s.discard(gone)
	return report, trash, err
}

// discard takes files out of the store: away from their names, into a directory that the caller removes. It is
// called in an order in which nothing is missing a part: records go before what they name.
func (s *Store) discard(names []string) (trash string, err error) {
	if len(names) == 0 {
		return "", nil
	}
	if s.temp != "" { // it is while the store is opened on a disk that is full
		if trash, err = os.MkdirTemp(s.temp, "trash-"); err != nil && !outOfSpace(err) {
			return "", err
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(removalOrder(a), removalOrder(b)) })
	for i, name := range names {
		path := filepath.Join(s.dir, name)
		if err := failpoint.Hit("remove", path); err != nil {
			return trash, err
		}
		// A disk that is full may have no room for another name; then it is removed here and now.
		if trash == "" || os.Rename(path, filepath.Join(trash, fmt.Sprint(i))) != nil {
			err = os.Remove(path)
		}
		if ignoreMissing(err) != nil {
			return trash, err
		}
		err = nil
		// A power cut takes no layer from a record that it leaves.
		if i+1 == len(names) || filepath.Dir(names[i+1]) != filepath.Dir(name) {
			if err := durable.SyncDir(filepath.Dir(path)); err != nil {
				return trash, err
			}
		}
	}
	return trash, nil
}

func removalOrder(name string) int {
	kinds := []string{"quarantine", "images", "packs", "metadata", "layers"}
	i := slices.Index(kinds, filepath.Dir(name))
	if strings.HasSuffix(name, ".idx") {
		i++ // a tar is never without its index
	}
	return i
}

// plan decides what goes.
func (inv *inventory) plan(now time.Time, opts GCOptions) *GCReport {
	p := gcPlan{inventory: inv, opts: opts, refs: map[string]int{}, report: &GCReport{}, before: now.Add(-opts.MinAge)}
	for _, l := range inv.leases {
		p.refer(inv.need(l.DiffIDs, l.Metadata))
		if img := inv.images[l.Image]; img != nil {
			p.refer([]string{img.file})
		}
	}
	for _, img := range inv.images {
		p.refer(img.needs)
		p.refer([]string{img.file})
	}
	p.unnamed()
	p.images()
	report := p.report
	report.Bytes = inv.bytes() - report.Freed
	return report
}

// A gcPlan counts who needs a file: images, and once more for each lease.
type gcPlan struct {
	*inventory
	opts   GCOptions
	refs   map[string]int
	report *GCReport
	before time.Time // what was used after it stays
}

func (p *gcPlan) refer(files []string) {
	for _, f := range files {
		p.refs[f]++
	}
}

func (p *gcPlan) enough() bool { return p.opts.Need > 0 && p.report.Freed >= p.opts.Need }

func (p *gcPlan) remove(r Removed) {
	p.report.Removed = append(p.report.Removed, r)
	p.report.Freed += r.Bytes
}

// unnamed removes the files that nothing needs, the oldest first.
func (p *gcPlan) unnamed() {
	var names []string
	for name := range p.files {
		if p.refs[name] == 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(p.files[a].mtime.Compare(p.files[b].mtime), cmp.Compare(a, b))
	})
	for _, name := range names {
		f := p.files[name]
		if p.enough() || f.mtime.After(p.before) {
			continue
		}
		p.remove(Removed{Kind: kindOfFile(name), Name: name, Bytes: f.size, Used: f.mtime})
	}
}

// images removes images that nobody holds, the least recently used first.
func (p *gcPlan) images() {
	held := map[string][]Lease{}
	for _, l := range p.leases {
		held[l.Image] = append(held[l.Image], l)
	}
	all := make([]*stored, 0, len(p.inventory.images))
	for _, img := range p.inventory.images {
		all = append(all, img)
	}
	slices.SortFunc(all, func(a, b *stored) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.spec.digest, b.spec.digest))
	})
	for _, img := range all {
		kept := KeptImage{Digest: img.spec.digest, Bytes: p.size(img), Used: img.used, Leases: held[img.spec.digest]}
		switch {
		case len(kept.Leases) > 0:
		case p.enough():
			kept.Enough = true
		case img.used.After(p.before):
			kept.Recent = true
		default:
			p.remove(Removed{Kind: "image", Name: img.spec.digest, Bytes: p.drop(img), Used: img.used})
			continue
		}
		p.report.Kept = append(p.report.Kept, kept)
	}
}

// drop takes an image out of the count, and gives the bytes of what nobody needs any more.
func (p *gcPlan) drop(img *stored) int64 {
	var freed int64
	only := img.needs[:0:0]
	for _, name := range append([]string{img.file}, img.needs...) {
		if p.refs[name]--; p.refs[name] == 0 {
			if f, ok := p.files[name]; ok {
				freed += f.size
				only = append(only, name)
			}
		}
	}
	img.needs = only
	return freed
}

// size is what the files of an image take, those that it shares with others too.
func (inv *inventory) size(img *stored) int64 {
	n := inv.files[img.file].size
	for _, name := range img.needs {
		n += inv.files[name].size
	}
	return n
}

// files are those that go with what is removed.
func (r Removed) files(inv *inventory) []string {
	if r.Kind == "image" {
		return inv.images[r.Name].needs // what drop left of them
	}
	return []string{r.Name}
}

func kindOfFile(name string) string {
	switch dir := filepath.Dir(name); dir {
	case "images":
		return "record"
	case "layers", "packs":
		return strings.TrimSuffix(dir, "s")
	default:
		return dir
	}
}
