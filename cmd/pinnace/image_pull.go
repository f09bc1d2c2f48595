package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/registry"
)

// pulledImage is what image pull prints with --json.
type pulledImage struct {
	Store        string    `json:"store"`
	Reference    string    `json:"reference"`
	Repository   string    `json:"repository"`
	Image        string    `json:"image"` // digest that the reference stands for, of an index perhaps
	Manifest     string    `json:"manifest"`
	Architecture string    `json:"architecture"`
	Layers       int       `json:"layers"`
	LayersCached int       `json:"layers_cached"`
	FetchedBytes int64     `json:"fetched_bytes"`
	Bytes        int64     `json:"bytes"` // of the layers, uncompressed
	Seconds      float64   `json:"seconds"`
	KeptUntil    time.Time `json:"kept_until"`
}

func (c *cli) newImagePull(where *imageStore) *cobra.Command {
	var arch string
	var keep time.Duration
	cmd := &cobra.Command{
		Use:   "pull REFERENCE",
		Short: "Fetch an image, so that it is there before it is deployed",
		Long: `Pull fetches the layers of an image that are not there yet, verifies each, and makes the file
system that machines boot from. What it fetched is kept for as long as --keep says, and for
as long as something runs from it.

Exit status: 0 it is there, 2 the image is refused or there is no room for it, 3 not allowed,
4 not found, 6 the registry is not reachable; layers that are complete stay for the next try.`,
		Example: "  pinnace image pull 127.0.0.1:5000/api:v1\n  pinnace image pull --cache --arch arm64 registry.example.com/api@sha256:…",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if keep < 0 {
				return fail(exitInvalid, "", "--keep is %s: want no less than 0s", keep)
			}
			return c.pullImage(cmd.Context(), where, args[0], arch, keep)
		},
	}
	cmd.Flags().StringVar(&arch, "arch", runtime.GOARCH, "architecture, of an image that has several")
	cmd.Flags().DurationVar(&keep, "keep", 7*24*time.Hour, "how long it stays although nothing runs from it")
	return cmd
}

func (c *cli) pullImage(ctx context.Context, where *imageStore, reference, arch string, keep time.Duration) error {
	resolved, err := c.resolve(ctx, reference)
	if err != nil {
		return err
	}
	platform, err := choosePlatform(resolved, reference, arch)
	if err != nil {
		return err
	}
	return where.with(c, true, func(s *image.Store, dir string) error {
		began := time.Now()
		spec := image.LeaseSpec{Owner: leaseOwner, Kind: leaseKept, Name: reference, Expires: began.Add(keep)}
		if _, err := s.Lease(ctx, spec, platform.ManifestDigest, platform.Manifest, platform.Config); err != nil {
			return err
		}
		client, err := c.registryClient()
		if err != nil {
			return err
		}
		defer client.Close()
		view := c.newPullView()
		pull := func() (*image.Image, error) {
			return s.Pull(ctx, repositorySource{client, resolved.Repository}, platform.ManifestDigest, platform.Manifest, platform.Config, view.update)
		}
		img, err := pull()
		if errors.Is(err, registry.ErrMirror) {
			img, err = pull() // without the mirror, whose content was wrong
		}
		view.end()
		if err != nil {
			return err
		}
		out := pulledImage{
			Store: dir, Reference: reference, Repository: resolved.Repository, Image: resolved.Digest, Manifest: img.ManifestDigest,
			Architecture: arch, Layers: len(img.Layers), LayersCached: view.cached, FetchedBytes: view.fetched(),
			Seconds: time.Since(began).Seconds(), KeptUntil: spec.Expires.UTC(),
		}
		for _, l := range img.Layers {
			out.Bytes += l.Size
		}
		if c.json {
			return c.printJSON(out)
		}
		c.print("%s is %s (%s, %s, %s): %s", printable(reference), img.ManifestDigest, arch, plural(out.Layers, "layer"), byteSize(out.Bytes), out.effort())
		return nil
	})
}

func (p pulledImage) effort() string {
	if p.FetchedBytes == 0 {
		return "it was there already"
	}
	text := fmt.Sprintf("fetched %s in %.1f s", byteSize(p.FetchedBytes), p.Seconds)
	if p.LayersCached > 0 {
		text += fmt.Sprintf(", %s were there", plural(p.LayersCached, "layer"))
	}
	return text
}

func choosePlatform(img *registry.Image, reference, arch string) (registry.Platform, error) {
	var have []string
	for _, p := range img.Platforms {
		if p.Architecture == arch {
			return p, nil
		}
		have = append(have, p.Architecture)
	}
	return registry.Platform{}, fail(exitNotFound, "choose one with --arch", "%s has nothing for %s, it has %s", reference, arch, orNone(have))
}
