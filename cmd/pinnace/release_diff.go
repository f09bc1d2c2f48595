package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *cli) newReleaseDiff() *cobra.Command {
	var files bool
	var arch string
	cmd := &cobra.Command{
		Use:   "diff RELEASE RELEASE",
		Short: "Say what differs between two Releases, and what each change does",
		Long: `Diff compares two Releases: their manifests key by key, each with what the change does to
instances that run (none, routing, in place, restart, replace, data); the configs of their
images; and with --files the files of their images, with sizes.

Values are the effective ones: a default that was written out is no difference. For files the
layers are fetched by digest from where the Releases say that their images are, and kept in
the cache of your user. Times of files don't count.`,
		Example: `  pinnace release diff rel-0123456789ab rel-ba9876543210
  pinnace release diff --files rel-0123456789ab rel-ba9876543210`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			a, err := c.getRelease(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			b, err := c.getRelease(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			d, err := compareReleases(a, b)
			if err != nil {
				return err
			}
			if files {
				if err := c.compareFiles(cmd.Context(), &d, a, b, arch); err != nil {
					return err
				}
			}
			if c.json {
				return c.printJSON(d)
			}
			return d.print(c.stdout)
		},
	}
	cmd.Flags().BoolVar(&files, "files", false, "compare the files of the images, too")
	cmd.Flags().StringVar(&arch, "arch", "", "the architecture whose files are compared (default: this machine's, if they have it)")
	return cmd
}

// releaseDiff is what release diff prints with --json.
type releaseDiff struct {
	A releaseName `json:"a"`
	B releaseName `json:"b"`
	// Effect is the greatest of all changes: an image that differs replaces instances.
	Effect   manifest.Effect  `json:"effect"`
	Manifest []release.Change `json:"manifest"`
	Image    []imageDiff      `json:"image"`
	Files    *filesDiff       `json:"files,omitempty"`
}

type releaseName struct {
	ID       string `json:"id"`
	Short    string `json:"short"`
	App      string `json:"app"`
	Image    string `json:"image"`
	Manifest string `json:"manifest"`
}

// imageDiff is what differs between the images for one architecture.
type imageDiff struct {
	Architecture string              `json:"architecture"`
	Kind         release.ChangeKind  `json:"kind"`
	Old          string              `json:"old,omitempty"` // manifest digests
	New          string              `json:"new,omitempty"`
	Config       *release.ConfigDiff `json:"config,omitempty"`
}

func nameOf(r *pinnacev1.Release) releaseName {
	return releaseName{ID: r.Id, Short: release.ID(r.Id).Short(), App: r.App, Image: r.Image, Manifest: r.Manifest}
}

func compareReleases(a, b *pinnacev1.Release) (releaseDiff, error) {
	d := releaseDiff{A: nameOf(a), B: nameOf(b), Effect: manifest.EffectNone, Image: []imageDiff{}}
	var err error
	if d.Manifest, err = release.Diff(a.ManifestCanonical, b.ManifestCanonical); err != nil {
		return d, err
	}
	if d.Manifest == nil {
		d.Manifest = []release.Change{}
	}
	for _, c := range d.Manifest {
		d.Effect = release.Strongest(d.Effect, c.Effect)
	}
	if a.Image != b.Image {
		d.Effect = release.Strongest(d.Effect, manifest.EffectReplace)
	}
	m, err := manifest.ParseCanonical(b.ManifestCanonical)
	if err != nil {
		return d, err
	}
	for _, arch := range architecturesOf(a, b) {
		old, now := platformFor(a, arch), platformFor(b, arch)
		i := imageDiff{Architecture: arch, Kind: release.Changed, Old: old.GetManifestDigest(), New: now.GetManifestDigest()}
		switch {
		case i.Old == i.New:
			continue
		case old == nil:
			i.Kind = release.Added
		case now == nil:
			i.Kind = release.Removed
		default:
			config, err := release.DiffConfigs(old.ImageConfig, now.ImageConfig, m)
			if err != nil {
				return d, fmt.Errorf("%s: %w", arch, err)
			}
			i.Config = &config
		}
		d.Image = append(d.Image, i)
	}
	return d, nil
}

func architecturesOf(releases ...*pinnacev1.Release) []string {
	var names []string
	for _, r := range releases {
		for _, p := range r.Platforms {
			names = append(names, p.Architecture)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func platformFor(r *pinnacev1.Release, arch string) *pinnacev1.ReleasePlatform {
	for _, p := range r.Platforms {
		if p.Architecture == arch {
			return p
		}
	}
	return nil
}

// marks are how a person sees the kinds of changes.
var marks = map[release.ChangeKind]string{release.Added: "+", release.Removed: "-", release.Changed: "~"}

// print writes the difference for a person.
func (d *releaseDiff) print(out io.Writer) error {
	fmt.Fprintf(out, "%s → %s: %s\n", d.A.Short, d.B.Short, d.verdict())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if len(d.Manifest) > 0 {
		fmt.Fprintf(w, "\nmanifest %s → %s\n", shortDigest(d.A.Manifest), shortDigest(d.B.Manifest))
		for _, c := range d.Manifest {
			row(w, "  "+marks[c.Kind]+" "+c.Key, printable(arrow(c.OldText, c.NewText)), string(c.Effect))
		}
	}
	if d.A.Image != d.B.Image {
		fmt.Fprintf(w, "\nimage %s → %s\n", shortDigest(d.A.Image), shortDigest(d.B.Image))
	}
	for n, i := range d.Image {
		row(w, "  "+marks[i.Kind]+" "+i.Architecture, arrow(shortDigest(i.Old), shortDigest(i.New)))
		if i.Config == nil {
			continue
		}
		if n > 0 && d.Image[n-1].Config != nil && slices.EqualFunc(i.Config.Changes, d.Image[n-1].Config.Changes, sameChange) && len(i.Config.Changes) > 0 {
			row(w, "    config", "the same changes as for "+d.Image[n-1].Architecture)
		} else {
			for _, c := range i.Config.Changes {
				row(w, "    "+marks[c.Kind]+" "+printable(c.Field), printable(arrow(clip(c.Old), clip(c.New))), configEffect(c))
			}
		}
		row(w, "    layers", fmt.Sprintf("%d shared, %d added, %d removed", i.Config.Layers.Shared, len(i.Config.Layers.Added), len(i.Config.Layers.Removed)))
	}
	if d.Files != nil {
		d.Files.print(w)
	}
	return w.Flush()
}

// row writes a line of a table, without blanks at its end.
func row(w io.Writer, cells ...string) {
	for len(cells) > 1 && cells[len(cells)-1] == "" {
		cells = cells[:len(cells)-1]
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func sameChange(a, b release.ConfigChange) bool {
	return a.Field == b.Field && a.Kind == b.Kind && a.Effect == b.Effect && string(a.Old) == string(b.Old) && string(a.New) == string(b.New)
}

func (d *releaseDiff) verdict() string {
	switch {
	case d.A.ID == d.B.ID:
		return "the same Release"
	case d.Effect == manifest.EffectReplace:
		return "new instances take the place of the old ones"
	case d.Effect == manifest.EffectData:
		return "stored data is touched"
	default:
		return fmt.Sprintf("effect %s", d.Effect)
	}
}

func configEffect(c release.ConfigChange) string {
	switch {
	case c.Ignored:
		return "none: ignored"
	case c.Overridden:
		return "none: the manifest sets it"
	}
	return string(c.Effect)
}

// arrow shows a change; one side of it may be empty.
func arrow(old, now string) string {
	switch {
	case old == "":
		return now
	case now == "":
		return old
	}
	return old + " → " + now
}

// clip bounds a value out of an image.
func clip(raw json.RawMessage) string {
	const most = 120
	s := string(raw)
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// byteSize writes a number of bytes for a person.
func byteSize(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, i := float64(n)/unit, 0
	for ; value >= unit && i < 3; i++ {
		value /= unit
	}
	return fmt.Sprintf("%.1f %s", value, []string{"KiB", "MiB", "GiB", "TiB"}[i])
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
