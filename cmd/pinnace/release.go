package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *cli) newRelease() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Create, list, compare, export and verify Releases",
		Long: `A Release is the immutable pair of an image, pinned by digest, and a manifest. Creating one
starts nothing; the same pair is the same Release, and creating it again changes nothing.`,
	}
	cmd.AddCommand(c.newReleaseCreate(), c.newReleaseList(), c.newReleaseShow(), c.newReleaseDiff(), c.newReleaseExport(),
		c.newReleaseVerify())
	return cmd
}

func (c *cli) newReleaseCreate() *cobra.Command {
	var file, image string
	cmd := &cobra.Command{
		Use:   "create --image REFERENCE [-f FILE]",
		Short: "Pair an image with a manifest",
		Long: `Create resolves the image reference once, with your docker credentials, and pins what it
found by digest. The tag is not kept: moving or deleting it changes nothing afterwards.`,
		Example: `  pinnace release create --image registry.example.com/shop/api:v3
  pinnace release create --image registry.example.com/shop/api@sha256:… -f api.toml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rel, err := c.createRelease(cmd.Context(), file, image)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(releaseJSON(rel.Release))
			}
			c.print("%s", release.ID(rel.Release.Id).Short())
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", manifestName, "the manifest")
	cmd.Flags().StringVar(&image, "image", "", "the image in its registry (required)")
	return cmd
}

// createRelease makes the Release of a manifest file and an image reference on the server.
func (c *cli) createRelease(ctx context.Context, file, reference string) (*pinnacev1.CreateReleaseResponse, error) {
	if reference == "" {
		return nil, fail(exitInvalid, "name it with --image registry.example.com/name:tag", "which image?")
	}
	src, err := c.readManifest(file)
	if err != nil {
		return nil, err
	}
	m, problems := manifest.Parse(src)
	if len(problems) > 0 && !c.json {
		c.showProblems(file, src, problems)
	}
	if m == nil {
		if c.json {
			if err := c.printJSON(checkResult{File: file, Problems: problems}); err != nil {
				return nil, err
			}
		}
		return nil, errReported{exitInvalid}
	}
	client, _, err := c.client()
	if err != nil {
		return nil, err
	}
	started := time.Now()
	image, err := c.resolve(ctx, reference)
	if err != nil {
		return nil, err
	}
	c.say("resolved %s to %s@%s in %s", reference, image.Repository, shortDigest(image.Digest), since(started))
	req := &pinnacev1.CreateReleaseRequest{
		Manifest:      src,
		ManifestHash:  string(m.Hash()),
		Image:         image.Digest,
		Sources:       []string{image.Repository},
		ClientVersion: version,
	}
	for _, p := range image.Platforms {
		req.Platforms = append(req.Platforms, releasePlatform(p))
	}
	res, err := client.CreateRelease(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	verb := "created"
	if res.Msg.Existed {
		verb = "exists already:"
	}
	c.say("release %s %s (image %s, manifest %s)", verb, release.ID(res.Msg.Release.Id).Short(),
		shortDigest(image.Digest), shortDigest(string(m.Hash())))
	return res.Msg, nil
}

// resolve finds what an image reference names now.
func (c *cli) resolve(ctx context.Context, reference string) (*registry.Image, error) {
	client, err := c.registryClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	defer c.progress(ctx, "resolving "+reference)()
	image, err := client.Resolve(ctx, reference)
	if err == nil && len(image.Missing) > 0 {
		c.say("the index of %s names %s too, which this registry does not have", reference, strings.Join(image.Missing, ", "))
	}
	return image, err
}

func (c *cli) newReleaseList() *cobra.Command {
	var app string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List Releases, the newest first",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.ListReleases(cmd.Context(), connect.NewRequest(&pinnacev1.ListReleasesRequest{App: app}))
			if err != nil {
				return err
			}
			if c.json {
				out := make([]map[string]any, 0, len(res.Msg.Releases))
				for _, r := range res.Msg.Releases {
					out = append(out, releaseJSON(r))
				}
				return c.printJSON(out)
			}
			w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "RELEASE\tAPP\tIMAGE\tMANIFEST\tCREATED\tBY")
			for _, r := range res.Msg.Releases {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", release.ID(r.Id).Short(), r.App, shortDigest(r.Image),
					shortDigest(r.Manifest), r.CreatedAt.AsTime().UTC().Format(time.DateTime), printable(r.CreatedBy))
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVar(&app, "app", "", "only the Releases of this `app`")
	return cmd
}

func (c *cli) newReleaseShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show RELEASE",
		Short: "Show a Release: what it pins, and its manifest",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.GetRelease(cmd.Context(), connect.NewRequest(&pinnacev1.GetReleaseRequest{Release: args[0]}))
			if err != nil {
				return err
			}
			r := res.Msg.Release
			if c.json {
				return c.printJSON(releaseJSON(r))
			}
			c.print("release   %s (%s)", release.ID(r.Id).Short(), r.Id)
			c.print("app       %s", r.App)
			c.print("image     %s", r.Image)
			for _, p := range r.Platforms {
				c.print("          %s %s", p.Architecture, p.ManifestDigest)
			}
			c.print("manifest  %s", r.Manifest)
			for _, s := range r.Sources {
				c.print("source    %s", printable(s))
			}
			c.print("created   %s by %s", r.CreatedAt.AsTime().UTC().Format(time.RFC3339), printable(r.CreatedBy))
			c.print("")
			_, err = c.stdout.Write(r.ManifestSource)
			return err
		},
	}
}

// releaseJSON is a Release as --json shows it.
func releaseJSON(r *pinnacev1.Release) map[string]any {
	platforms := map[string]string{}
	for _, p := range r.Platforms {
		platforms[p.Architecture] = p.ManifestDigest
	}
	out := map[string]any{
		"id": r.Id, "short": release.ID(r.Id).Short(), "app": r.App, "image": r.Image, "manifest": r.Manifest,
		"sources": r.Sources, "platforms": platforms, "created_by": r.CreatedBy,
		"created_at": r.CreatedAt.AsTime().UTC().Format(time.RFC3339Nano),
	}
	if len(r.ManifestSource) > 0 {
		out["manifest_source"] = string(r.ManifestSource)
		out["manifest_canonical"] = string(r.ManifestCanonical)
	}
	return out
}

// shortDigest shortens "sha256:…" for people.
func shortDigest(d string) string {
	if len(d) > 7+12 {
		return d[:7+12]
	}
	return d
}

// since is the time that has passed, in the precision that people want.
func since(t time.Time) string {
	return time.Since(t).Round(time.Millisecond).String()
}
