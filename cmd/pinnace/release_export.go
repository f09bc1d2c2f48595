package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *cli) newReleaseExport() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "export RELEASE",
		Short: "Put a Release into the registry, beside its image",
		Long: `Export pushes a Release as an OCI artifact whose subject is the image: the descriptor, whose
digest is the release id; the canonical manifest, whose digest is the manifest hash; and the
manifest as it was written. Every client that knows referrers lists it, also in registries
without the referrers API. It needs the right to push; exporting again changes nothing.`,
		Example: `  pinnace release export rel-0123456789ab
  oras discover registry.example.com/shop/api@sha256:…`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := c.getRelease(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			repository, digest, err := c.exportRelease(cmd.Context(), r, to)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(map[string]any{
					"release": r.Id, "repository": repository, "digest": digest, "subject": r.Image, "artifact_type": release.MediaType,
				})
			}
			c.say("%s lists %s among the referrers of %s", repository, release.ID(r.Id).Short(), shortDigest(r.Image))
			c.print("%s@%s", repository, digest)
			return nil
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "HOST/REPOSITORY that has the image (default: where the Release's was found)")
	return cmd
}

// exportRelease pushes the artifact, and gives where it is.
func (c *cli) exportRelease(ctx context.Context, r *pinnacev1.Release, to string) (repository, digest string, err error) {
	for _, f := range documents(r).Verify() {
		if !f.OK {
			return "", "", fail(exitInvalid, "pinnace release verify "+release.ID(r.Id).Short(), "the server's copy of the Release is not what its id says: %s: %s", f.What, f.Detail)
		}
	}
	if repository = to; repository == "" {
		if len(r.Sources) == 0 {
			return "", "", fail(exitInvalid, "name one with --to HOST/REPOSITORY", "the Release does not say where its image is")
		}
		repository = r.Sources[0]
	}
	client, err := c.registryClient()
	if err != nil {
		return "", "", err
	}
	defer client.Close()
	defer c.progress(ctx, "pushing to "+repository)()
	// A referrer of something that is not there would be lost at the registry's next clean-up.
	subject, _, err := client.Describe(ctx, repository, r.Image)
	if err != nil {
		return "", "", fmt.Errorf("find the image: %w", err)
	}
	digest, err = client.Push(ctx, repository, artifactOf(r, subject))
	return repository, digest, err
}

// artifactOf is a Release as an OCI artifact. It depends on the Release alone.
func artifactOf(r *pinnacev1.Release, subject registry.Descriptor) registry.Artifact {
	const title = "org.opencontainers.image.title"
	return registry.Artifact{
		Type:   release.MediaType,
		Config: registry.Content{MediaType: release.MediaType, Bytes: descriptorOf(r)},
		Layers: []registry.Content{
			{MediaType: release.MediaTypeManifest, Bytes: r.ManifestCanonical, Annotations: map[string]string{title: "manifest.json"}},
			{MediaType: release.MediaTypeSource, Bytes: r.ManifestSource, Annotations: map[string]string{title: manifestName}},
		},
		Subject: subject,
		Annotations: map[string]string{
			"org.opencontainers.image.title": r.App + " " + release.ID(r.Id).Short(),
			"io.github.pinnacehq.release":    r.Id,
			"io.github.pinnacehq.manifest":   r.Manifest,
			"io.github.pinnacehq.app":        r.App,
		},
	}
}

// descriptorOf are the bytes whose sha256 is the release id.
func descriptorOf(r *pinnacev1.Release) []byte {
	return documents(r).Release().Descriptor()
}
