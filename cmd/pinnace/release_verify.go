package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *cli) newReleaseVerify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify RELEASE",
		Short: "Recompute every identity of a Release, and see that its image is there",
		Long: `Verify takes nothing for granted: it recomputes release id, manifest hash and the digests of
image manifests and configs from their bytes, fetches the image's documents by digest from
the registry and compares them, asks for every layer without fetching it, and looks at what
release export has put there.

Exit status: 0 all is well, 2 something is not what its name says, 4 something is missing,
6 the registry is not reachable. An image may be gone from all places but one.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.getRelease(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			report, err := c.verifyRelease(cmd.Context(), r)
			if err != nil {
				return err
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if c.json {
				err = c.printJSON(report)
			} else {
				report.print(c)
			}
			if err == nil && report.status != exitOK {
				return errReported{report.status}
			}
			return err
		},
	}
}

// verifyReport is what release verify prints with --json.
type verifyReport struct {
	Release string            `json:"release"`
	OK      bool              `json:"ok"`
	Checks  []release.Finding `json:"checks"`
	// Places are the repositories that the image is said to be in.
	Places []placeReport `json:"places"`

	status int
}

type placeReport struct {
	Repository string            `json:"repository"`
	OK         bool              `json:"ok"` // the image is complete here
	Checks     []release.Finding `json:"checks"`

	status int // of what is wrong first
}

func (c *cli) verifyRelease(ctx context.Context, r *pinnacev1.Release) (*verifyReport, error) {
	report := &verifyReport{Release: r.Id, Checks: documents(r).Verify(), Places: []placeReport{}}
	if slices.ContainsFunc(report.Checks, func(f release.Finding) bool { return !f.OK }) {
		report.status = exitInvalid
	}
	client, err := c.unmirroredClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	complete := false
	for _, repository := range r.Sources {
		stop := c.progress(ctx, "asking "+repository)
		p := &placeReport{Repository: repository, OK: true, Checks: []release.Finding{}}
		p.verify(ctx, client, r)
		stop()
		report.Places = append(report.Places, *p)
		complete = complete || p.OK
	}
	if report.status == exitOK && !complete {
		report.status = exitNotFound
		if len(report.Places) > 0 {
			report.status = report.Places[0].status
		}
	}
	// Forged content is told even when the image is complete elsewhere.
	if report.status == exitOK && slices.ContainsFunc(report.Places, func(p placeReport) bool { return p.status == exitInvalid }) {
		report.status = exitInvalid
	}
	report.OK = report.status == exitOK
	return report, nil
}

func (p *placeReport) good(what, format string, args ...any) {
	p.Checks = append(p.Checks, release.Finding{What: what, OK: true, Detail: fmt.Sprintf(format, args...)})
}

func (p *placeReport) bad(what string, err error) {
	p.Checks = append(p.Checks, release.Finding{What: what, Detail: printable(err.Error())})
	if p.OK {
		p.OK, p.status = false, registryStatus(err)
	}
}

// verify compares what a repository has with the Release.
func (p *placeReport) verify(ctx context.Context, client *registry.Client, r *pinnacev1.Release) {
	image, err := client.Resolve(ctx, p.Repository+"@"+r.Image)
	if err != nil {
		p.bad("image", err)
		return
	}
	p.good("image", "%s is there, and its bytes have this digest", r.Image)
	for _, recorded := range r.Platforms {
		p.platform(ctx, client, image, recorded)
	}
	p.exported(ctx, client, r)
}

// errDiffers is for what is there and not what the Release says.
var errDiffers = errors.New("differs from the Release")

func (p *placeReport) platform(ctx context.Context, client *registry.Client, image *registry.Image, recorded *pinnacev1.ReleasePlatform) {
	what := "image for " + recorded.Architecture
	i := slices.IndexFunc(image.Platforms, func(have registry.Platform) bool { return have.Architecture == recorded.Architecture })
	switch {
	case i < 0 && slices.Contains(image.Missing, recorded.Architecture):
		p.bad(what, fmt.Errorf("the index names it, and the registry does not have it: %w", registry.ErrNotFound))
		return
	case i < 0:
		p.bad(what, fmt.Errorf("the image has nothing for it: %w", errDiffers))
		return
	}
	have := image.Platforms[i]
	if have.ManifestDigest != recorded.ManifestDigest || !bytes.Equal(have.Manifest, recorded.ImageManifest) || !bytes.Equal(have.Config, recorded.ImageConfig) {
		p.bad(what, fmt.Errorf("the image leads to the manifest %s: it %w, %s", have.ManifestDigest, errDiffers, recorded.ManifestDigest))
		return
	}
	p.good(what, "manifest %s and its config are there, byte by byte", recorded.ManifestDigest)
	p.layers(ctx, client, recorded)
}

// layers asks for every layer of an image manifest.
func (p *placeReport) layers(ctx context.Context, client *registry.Client, recorded *pinnacev1.ReleasePlatform) {
	var m struct {
		Layers []struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"layers"`
	}
	what := "layers for " + recorded.Architecture
	if err := json.Unmarshal(recorded.ImageManifest, &m); err != nil {
		p.bad(what, err)
		return
	}
	var mu sync.Mutex
	var errs []error
	var group errgroup.Group
	group.SetLimit(8)
	var total int64
	for _, l := range m.Layers {
		total += l.Size
		group.Go(func() error {
			if err := client.CheckBlob(ctx, p.Repository, l.Digest, l.Size); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
			return nil // every layer is asked for, whatever the others are
		})
	}
	_ = group.Wait() // it has no errors: they are in errs
	for _, err := range errs {
		p.bad(what, err)
	}
	if len(errs) == 0 {
		p.good(what, "%s of %s are there", plural(len(m.Layers), "blob"), byteSize(total))
	}
}

// exported looks at what export has put beside the image. There need not be anything.
func (p *placeReport) exported(ctx context.Context, client *registry.Client, r *pinnacev1.Release) {
	const what = "exported Release"
	list, err := client.Referrers(ctx, p.Repository, r.Image, release.MediaType)
	if err != nil {
		p.bad(what, err)
		return
	}
	var wrong []error
	found := false
	for _, d := range list {
		if d.Annotations["io.github.pinnacehq.release"] != r.Id {
			continue // another Release of the same image
		}
		if err := isExport(ctx, client, p.Repository, d.Digest, r); err != nil {
			wrong = append(wrong, err)
			continue
		}
		found = true
		p.good(what, "%s is it", d.Digest)
	}
	for _, err := range wrong {
		p.bad(what, err)
	}
	if !found && len(wrong) == 0 {
		p.good(what, "not exported here")
	}
}

// isExport compares an artifact that claims to be the Release with it.
func isExport(ctx context.Context, client *registry.Client, repository, digest string, r *pinnacev1.Release) error {
	a, err := client.Artifact(ctx, repository, digest)
	if err != nil {
		return err
	}
	if !bytes.Equal(a.Config.Bytes, descriptorOf(r)) || a.Subject.Digest != r.Image ||
		len(a.Layers) == 0 || !bytes.Equal(a.Layers[0].Bytes, r.ManifestCanonical) {
		return fmt.Errorf("%s claims to be it: it %w", digest, errDiffers)
	}
	return nil
}

func (v *verifyReport) print(c *cli) {
	mark := func(ok bool) string {
		if ok {
			return "ok"
		}
		return "WRONG"
	}
	for _, f := range v.Checks {
		c.print("%-5s  %s: %s", mark(f.OK), f.What, printable(f.Detail))
	}
	for _, p := range v.Places {
		c.print("in %s", printable(p.Repository))
		for _, f := range p.Checks {
			c.print("  %-5s  %s: %s", mark(f.OK), f.What, printable(f.Detail))
		}
	}
	verdict := "verified: everything is what its name says"
	switch {
	case v.status == exitInvalid:
		verdict = "NOT VERIFIED: something is not what its name says"
	case !v.OK:
		verdict = "NOT VERIFIED: the image is not complete in any place that the Release names"
	}
	c.print("%s %s", release.ID(v.Release).Short(), verdict)
}
