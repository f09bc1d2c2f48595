package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
)

// inspectedImage is what image inspect prints with --json.
type inspectedImage struct {
	Digest       string           `json:"digest"`
	Architecture string           `json:"architecture"`
	Stored       bool             `json:"stored"`   // the store has it
	Complete     bool             `json:"complete"` // with all its files
	Config       inspectedConfig  `json:"config"`
	Ignored      inspectedIgnored `json:"ignored"`
	Layers       []inspectedLayer `json:"layers"`
	Bytes        int64            `json:"bytes"` // in the store
	UniqueBytes  int64            `json:"unique_bytes"`
	UsedAt       *time.Time       `json:"used_at,omitempty"`
	Leases       []leaseInfo      `json:"leases"`
}

type inspectedConfig struct {
	Entrypoint []string `json:"entrypoint"`
	Cmd        []string `json:"cmd"`
	Env        []string `json:"env"`
	WorkingDir string   `json:"working_dir"`
	User       string   `json:"user"`
	StopSignal string   `json:"stop_signal"`
}

// inspectedIgnored is what an image asks for that has no effect.
type inspectedIgnored struct {
	ExposedPorts []string `json:"exposed_ports"`
	Volumes      []string `json:"volumes"`
	Labels       []string `json:"labels"`
	Healthcheck  bool     `json:"healthcheck"`
	Shell        bool     `json:"shell"`
	OnBuild      bool     `json:"on_build"`
}

type inspectedLayer struct {
	DiffID    string `json:"diff_id"`
	Blob      string `json:"blob"`
	MediaType string `json:"media_type"`
	BlobBytes int64  `json:"blob_bytes"`
	Bytes     int64  `json:"bytes"`  // uncompressed; 0 when it is not in the store
	Images    int    `json:"images"` // in the store that have it
}

func (c *cli) newImageInspect(where *imageStore) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show an image's config, layers and sizes, and what of it has no effect",
		Long: `Inspect shows what an image says of the process to run, what it asks for that has no effect,
its layers with their sizes, and who holds it. With a reference it also shows an image that is
not in the store, from what the registry says; its layers are not fetched.

Exit status: 0 shown, 2 not an image, 4 not found, 6 the registry is not reachable.`,
		Example:           "  pinnace image inspect 3f1c2a9b\n  pinnace image inspect 127.0.0.1:5000/api:v1",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: where.words(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			images, err := c.inspect(cmd.Context(), where, args[0])
			if err != nil {
				return err
			}
			for i, img := range images {
				out := inspected(img)
				if c.json {
					if err := c.printJSON(out); err != nil {
						return err
					}
					continue
				}
				if i > 0 {
					c.print("")
				}
				if err := out.print(c.stdout); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// inspect finds an image in the store, or else in the registry.
func (c *cli) inspect(ctx context.Context, where *imageStore, name string) (found []image.StoredImage, err error) {
	err = where.with(c, false, func(s *image.Store, _ string) error {
		u, err := s.Usage()
		if err == nil {
			found, err = c.find(ctx, u, name)
		}
		return err
	})
	missing, ok := errors.AsType[*failure](err)
	if err == nil || !ok || missing.status != exitNotFound || digestPrefix.MatchString(name) {
		return found, err
	}
	resolved, err := c.resolve(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, p := range resolved.Platforms {
		img, err := image.Describe(p.ManifestDigest, p.Manifest, p.Config)
		if err != nil {
			return nil, storeFailure(err)
		}
		found = append(found, img)
	}
	return onlyMine(found), nil
}

// onlyMine leaves of an image for several architectures the one of this machine, if it has that.
func onlyMine(images []image.StoredImage) []image.StoredImage {
	for _, img := range images {
		if img.Config.Architecture == runtime.GOARCH {
			return []image.StoredImage{img}
		}
	}
	return images
}

func inspected(img image.StoredImage) inspectedImage {
	cfg := img.Config
	out := inspectedImage{
		Digest: img.Digest, Architecture: cfg.Architecture, Stored: !img.Used.IsZero(), Complete: img.Complete,
		Config: inspectedConfig{
			Entrypoint: orEmpty(cfg.Entrypoint), Cmd: orEmpty(cfg.Cmd), Env: orEmpty(cfg.Env), WorkingDir: cfg.WorkingDir, User: cfg.User, StopSignal: cfg.StopSignal,
		},
		Ignored: inspectedIgnored(cfg.Ignored), Layers: []inspectedLayer{},
		Bytes: img.Bytes, UniqueBytes: img.Unique, Leases: leaseInfos(img.Leases),
	}
	out.Ignored.ExposedPorts, out.Ignored.Volumes = orEmpty(out.Ignored.ExposedPorts), orEmpty(out.Ignored.Volumes)
	out.Ignored.Labels = orEmpty(out.Ignored.Labels)
	if out.Stored {
		used := img.Used.UTC()
		out.UsedAt = &used
	}
	for _, l := range img.Layers {
		out.Layers = append(out.Layers, inspectedLayer(l))
	}
	return out
}

func (i inspectedImage) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, printable(value))
		}
	}
	field("image", i.Digest)
	field("architecture", i.Architecture)
	field("entrypoint", quoted(i.Config.Entrypoint))
	field("command", quoted(i.Config.Cmd))
	field("user", i.Config.User)
	field("working dir", i.Config.WorkingDir)
	field("stop signal", i.Config.StopSignal)
	for n, e := range i.Config.Env {
		field(firstOnly(n, "environment"), e)
	}
	for n, text := range i.Ignored.lines() {
		field(firstOnly(n, "no effect"), text)
	}
	switch {
	case !i.Stored:
		field("store", "not in it")
	case !i.Complete:
		field("store", "incomplete: the next pull makes it whole")
	default:
		field("store", fmt.Sprintf("%s, %s of them for this image alone; last used %s", byteSize(i.Bytes), byteSize(i.UniqueBytes), ago(*i.UsedAt)))
	}
	for n, l := range i.Leases {
		text := l.Owner + ": " + l.Kind + " " + l.Name
		if l.Expires != nil {
			text += ", until " + l.Expires.UTC().Format(time.DateTime)
		}
		field(firstOnly(n, "held by"), text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "LAYER\tDIFF ID\tFETCHED\tSTORED\tOTHER IMAGES")
	for n, l := range i.Layers {
		stored, others := "-", "-"
		if l.Bytes > 0 {
			stored, others = byteSize(l.Bytes), fmt.Sprint(max(0, l.Images-1))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", n+1, shortDigest(l.DiffID), byteSize(l.BlobBytes), stored, others)
	}
	return w.Flush()
}

// lines are what has no effect, for people.
func (i inspectedIgnored) lines() []string {
	var lines []string
	add := func(name string, values []string) {
		if len(values) > 0 {
			lines = append(lines, name+" "+strings.Join(values, ", "))
		}
	}
	add("EXPOSE", i.ExposedPorts)
	add("VOLUME", i.Volumes)
	add("LABEL", i.Labels)
	if i.Healthcheck {
		lines = append(lines, "HEALTHCHECK")
	}
	if i.Shell {
		lines = append(lines, "SHELL")
	}
	if i.OnBuild {
		lines = append(lines, "ONBUILD")
	}
	return lines
}

// orEmpty lets programs see a list, whether or not there is something in it.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// firstOnly is the label of the first of several lines.
func firstOnly(n int, label string) string {
	if n > 0 {
		return ""
	}
	return label
}

func quoted(args []string) string {
	var words []string
	for _, a := range args {
		words = append(words, fmt.Sprintf("%q", a))
	}
	return strings.Join(words, " ")
}
