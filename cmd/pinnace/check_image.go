package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/registry"
	"github.com/pinnacehq/pinnace/internal/release"
)

// imageCheck is the image that manifests are checked against, if any.
type imageCheck struct {
	reference string
	deep      bool

	image *checkedImage
	files *imageFiles
	facts []release.Image
}

// checkedImage is what check --json says about the image.
type checkedImage struct {
	Reference     string          `json:"reference"`
	Repository    string          `json:"repository"`
	Digest        string          `json:"digest"`
	Architectures []string        `json:"architectures"`
	Files         map[string]bool `json:"files"` // by architecture: whether the files were looked at
}

func (i *imageCheck) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.reference, "image", "", "check against the config of this image, too")
	cmd.Flags().BoolVar(&i.deep, "deep", false, "with --image: fetch the layers, and look at the files")
}

// open reads the image's config, and its files when they are asked for or at hand.
func (i *imageCheck) open(ctx context.Context, c *cli) error {
	if i.reference == "" {
		if i.deep {
			return fail(exitInvalid, "name the image with --image", "--deep looks into which image?")
		}
		return nil
	}
	img, err := c.resolve(ctx, i.reference)
	if err != nil {
		return err
	}
	i.image = &checkedImage{Reference: i.reference, Repository: img.Repository, Digest: img.Digest, Files: map[string]bool{}}
	if i.files, err = c.imageFiles(); err != nil {
		return err
	}
	defer c.progress(ctx, "fetching layers")()
	for _, p := range img.Platforms {
		facts, err := i.look(ctx, img.Repository, p)
		if err != nil {
			return errors.Join(err, i.Close())
		}
		i.facts = append(i.facts, facts)
		i.image.Architectures = append(i.image.Architectures, p.Architecture)
		i.image.Files[p.Architecture] = facts.Files != nil
	}
	return nil
}

// Close gives the files back.
func (i *imageCheck) Close() error {
	if i.files == nil {
		return nil
	}
	files := i.files
	i.files = nil
	return files.Close()
}

// look learns what the image says for one architecture.
func (i *imageCheck) look(ctx context.Context, repository string, p registry.Platform) (release.Image, error) {
	config, err := image.ParseConfig(p.Config)
	if err == nil && config.Architecture != p.Architecture {
		err = errors.New("the index has it for " + p.Architecture + ", its config says " + printable(config.Architecture))
	}
	if err != nil {
		return release.Image{Architecture: p.Architecture, Refused: errors.New(printable(err.Error()))}, nil
	}
	facts := release.Image{
		Architecture: p.Architecture,
		Entrypoint:   config.Entrypoint, Cmd: config.Cmd, Env: config.Env,
		WorkingDir: config.WorkingDir, User: config.User, StopSignal: config.StopSignal,
		ExposedPorts: config.Ignored.ExposedPorts, Volumes: config.Ignored.Volumes, Labels: config.Ignored.Labels,
		Healthcheck: config.Ignored.Healthcheck, Shell: config.Ignored.Shell, OnBuild: config.Ignored.OnBuild,
	}
	tree, err := i.files.cached(ctx, p.ManifestDigest)
	if err == nil && tree == nil && i.deep {
		client, clientErr := i.files.c.registryClient()
		if clientErr != nil {
			return release.Image{}, clientErr
		}
		defer client.Close()
		tree, err = i.files.fetch(ctx, client, []string{repository}, p)
	}
	if err != nil {
		return release.Image{}, err
	}
	if tree != nil {
		facts.Files = treeFiles{tree}
	}
	return facts, nil
}

// problems are what does not fit between a manifest and the image.
func (i *imageCheck) problems(m *manifest.Manifest) manifest.Problems {
	if i.image == nil {
		return nil
	}
	return release.CheckImage(m, i.facts)
}

// architectures are those of the image; none when there is none.
func (i *imageCheck) architectures() []string {
	if i.image == nil {
		return nil
	}
	return i.image.Architectures
}

// verdict ends the line that says that a manifest is valid.
func (i *imageCheck) verdict() string {
	if i.image == nil {
		return ""
	}
	text := ", fits " + i.image.Repository + "@" + shortDigest(i.image.Digest) + " (" + strings.Join(i.image.Architectures, ", ")
	for _, looked := range i.image.Files {
		if !looked {
			return text + "; files not looked at: --deep)"
		}
	}
	return text + ")"
}
