package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

// filesDiff is what differs between the files of two images.
type filesDiff struct {
	Architecture string       `json:"architecture"`
	AddedBytes   int64        `json:"added_bytes"`
	RemovedBytes int64        `json:"removed_bytes"`
	Changes      []fileChange `json:"changes"`
}

type fileChange struct {
	Path string             `json:"path"`
	Kind release.ChangeKind `json:"kind"`
	What []string           `json:"what,omitempty"` // of a change: content, mode, owner, type, target, attributes, device
	Old  *fileFacts         `json:"old,omitempty"`
	New  *fileFacts         `json:"new,omitempty"`
}

type fileFacts struct {
	Mode   string `json:"mode"` // as ls shows it
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`
	Target string `json:"target,omitempty"`
}

// compareFiles fetches what it takes to compare the files of the two images.
func (c *cli) compareFiles(ctx context.Context, d *releaseDiff, a, b *pinnacev1.Release, asked string) (err error) {
	var common []string
	for _, arch := range architecturesOf(a) {
		if platformFor(b, arch) != nil {
			common = append(common, arch)
		}
	}
	arch, err := chooseArchitecture(asked, common)
	if err != nil {
		return err
	}
	d.Files = &filesDiff{Architecture: arch, Changes: []fileChange{}}
	if platformFor(a, arch).ManifestDigest == platformFor(b, arch).ManifestDigest {
		return nil
	}
	files, err := c.imageFiles()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := files.Close(); err == nil {
			err = closeErr
		}
	}()
	client, err := c.registryClient()
	if err != nil {
		return err
	}
	defer client.Close()
	defer c.progress(ctx, "fetching images")()
	var trees [2]*image.Tree
	for i, r := range []*pinnacev1.Release{a, b} {
		p := platformFor(r, arch)
		trees[i], err = files.fetch(ctx, client, r.Sources, registry.Platform{
			Architecture: arch, ManifestDigest: p.ManifestDigest, Manifest: p.ImageManifest, Config: p.ImageConfig,
		})
		if err != nil {
			return fmt.Errorf("files of %s: %w", release.ID(r.Id).Short(), err)
		}
	}
	changes, err := image.Compare(trees[0], trees[1])
	if err != nil {
		return err
	}
	for _, change := range changes {
		d.Files.add(change)
	}
	return nil
}

func (d *filesDiff) add(change image.FileChange) {
	out := fileChange{Path: change.Path, Kind: release.Changed, What: change.What, Old: factsOf(change.Old), New: factsOf(change.New)}
	switch {
	case change.Old == nil:
		out.Kind = release.Added
		d.AddedBytes += change.New.Size
	case change.New == nil:
		out.Kind = release.Removed
		d.RemovedBytes += change.Old.Size
	case slices.Contains(change.What, "content"), slices.Contains(change.What, "type"):
		d.RemovedBytes += change.Old.Size
		d.AddedBytes += change.New.Size
	}
	d.Changes = append(d.Changes, out)
}

func factsOf(f *image.File) *fileFacts {
	if f == nil {
		return nil
	}
	return &fileFacts{Mode: f.Mode.String(), UID: f.UID, GID: f.GID, Size: f.Size, Target: f.Target}
}

func (d *filesDiff) print(w io.Writer) {
	count := map[release.ChangeKind]int{}
	for _, c := range d.Changes {
		count[c.Kind]++
	}
	fmt.Fprintf(w, "\nfiles (%s): %d added, %d changed, %d removed, +%s −%s\n", d.Architecture,
		count[release.Added], count[release.Changed], count[release.Removed], byteSize(d.AddedBytes), byteSize(d.RemovedBytes))
	for _, c := range d.Changes {
		row(w, "  "+marks[c.Kind]+" "+printable(c.Path), c.sizes(), printable(strings.Join(c.details(), ", ")))
	}
}

func (c fileChange) sizes() string {
	var old, now string
	if c.Old != nil {
		old = byteSize(c.Old.Size)
	}
	if c.New != nil {
		now = byteSize(c.New.Size)
	}
	if old == now {
		return now
	}
	return arrow(old, now)
}

// details says what of a file changed, with the values of what is short.
func (c fileChange) details() []string {
	if c.Old == nil || c.New == nil {
		return nil
	}
	var words []string
	for _, what := range c.What {
		switch what {
		case "mode", "type":
			what += " " + c.Old.Mode + " → " + c.New.Mode
		case "owner":
			what += fmt.Sprintf(" %d:%d → %d:%d", c.Old.UID, c.Old.GID, c.New.UID, c.New.GID)
		case "target":
			what += " " + c.Old.Target + " → " + c.New.Target
		}
		words = append(words, what)
	}
	return words
}
