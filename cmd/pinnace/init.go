package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *cli) newInit() *cobra.Command {
	var name, reference, file string
	cmd := &cobra.Command{
		Use:   "init [--name NAME] [--image REFERENCE]",
		Short: "Write the smallest manifest",
		Long: `Init writes pinnace.toml for you to edit. Nothing is inferred from an image: with --image it
only lists what of the image's config has no effect in Pinnace, such as exposed ports and
health checks, because the manifest alone says how an app runs.`,
		Example: `  pinnace init
  pinnace init --name shop-api --image registry.example.com/shop/api:v3`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				name = nameFromFolder()
			}
			text := manifest.Template(name)
			if _, problems := manifest.Parse(text); problems.HasErrors() {
				return fail(exitInvalid, "a name is a letter, then up to 39 of a-z, 0-9 and -", "%q cannot be the name of an app", name)
			}
			if reference != "" {
				if err := c.listIgnored(cmd, reference); err != nil {
					return err
				}
			}
			f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // A manifest is public, and lies in a repository.
			if errors.Is(err, fs.ErrExist) {
				return fail(exitConflict, "edit it, or name another file with -f", "%s exists already", file)
			}
			if err != nil {
				return fail(exitInvalid, "", "%w", err)
			}
			if _, err := f.Write(text); err != nil {
				return errors.Join(err, f.Close())
			}
			if err := f.Close(); err != nil {
				return err
			}
			c.say("wrote %s; next: edit it, then pinnace check", file)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the app (default: from the folder's name)")
	cmd.Flags().StringVar(&reference, "image", "", "list what of this image's config is ignored")
	cmd.Flags().StringVarP(&file, "file", "f", manifestName, "where to write it")
	return cmd
}

// nameFromFolder makes an app's name of the working directory's.
func nameFromFolder() string {
	dir, err := os.Getwd()
	if err != nil {
		return "app"
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, filepath.Base(dir))
	name = strings.Trim(strings.TrimLeft(name, "0123456789-"), "-")
	if name == "" {
		return "app"
	}
	return name[:min(len(name), 40)]
}

func (c *cli) listIgnored(cmd *cobra.Command, reference string) error {
	img, err := c.resolve(cmd.Context(), reference)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, p := range img.Platforms {
		cfg, err := image.ParseConfig(p.Config)
		if err != nil {
			return fail(exitInvalid, "", "config of %s: %w", reference, err)
		}
		for _, ignored := range ignoredTexts(cfg.Ignored) {
			if !seen[ignored] {
				seen[ignored] = true
				c.print("ignored: %s", printable(ignored))
			}
		}
	}
	if len(seen) == 0 {
		c.say("%s has nothing in its config that Pinnace ignores", reference)
	}
	return nil
}

// ignoredTexts says of each thing that an image asks for and does not get.
func ignoredTexts(i image.Ignored) []string {
	var texts []string
	for _, port := range i.ExposedPorts {
		texts = append(texts, "EXPOSE "+port+": ports are declared in [ports.NAME]")
	}
	for _, volume := range i.Volumes {
		texts = append(texts, "VOLUME "+volume+": volumes are declared in [volumes.NAME]")
	}
	if i.Healthcheck {
		texts = append(texts, "HEALTHCHECK: health is declared in [health.ready] and [health.live]")
	}
	for _, label := range i.Labels {
		texts = append(texts, "LABEL "+label+": labels have no effect")
	}
	if i.Shell {
		texts = append(texts, "SHELL: it is for builds")
	}
	if i.OnBuild {
		texts = append(texts, "ONBUILD: it is for builds")
	}
	return texts
}
