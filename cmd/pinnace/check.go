package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// manifestName is the file that commands read when none is named.
const manifestName = "pinnace.toml"

func (c *cli) newCheck() *cobra.Command {
	var against imageCheck
	var environment environmentCheck
	cmd := &cobra.Command{
		Use:   "check [FILE…]",
		Short: "Say whether a manifest is valid, or everything that is wrong with it",
		Long: `Check reads manifests (pinnace.toml unless others are named; "-" is stdin) and says for each
whether it is valid, with its hash, or lists every error with its place, cause and fix.

It works offline, and its verdict does not depend on the version of Pinnace: it accepts all
of schema v1. What this version cannot run yet is said by plan and deploy.

With --image it reads the image's config as well, without running it: does the architecture
fit, is there something to run, and what of the image has no effect. With --deep it fetches
the layers, unless they are in your user's cache, and looks into the image: programs are
there and can be executed, with their interpreters; user and group exist.

With -e it asks the server what the environment lacks: variables, secret bundles and their
keys, and room for one more instance.

Exit status: 0 when all are valid and fit, 2 when one is not valid or does not fit the image,
5 when the environment lacks something only.`,
		Example: `  pinnace check
  pinnace check --json apps/*/pinnace.toml
  pinnace check --deep --image registry.example.com/shop/api:v3
  pinnace check -e staging`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 {
				args = []string{manifestName}
			}
			if err := against.open(cmd.Context(), c); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, against.Close()) }()
			if err := environment.open(c); err != nil {
				return err
			}
			worst := exitOK
			for _, file := range args {
				status, err := c.checkFile(cmd.Context(), file, &against, &environment)
				if err != nil {
					return err
				}
				if status == exitInvalid || worst == exitOK {
					worst = status
				}
			}
			if worst != exitOK {
				return errReported{worst}
			}
			return nil
		},
	}
	against.add(cmd)
	return cmd
}

// checkResult is what check prints with --json for each file.
type checkResult struct {
	File     string            `json:"file"`
	OK       bool              `json:"ok"`
	Name     string            `json:"name,omitempty"`
	Hash     manifest.Hash     `json:"hash,omitempty"`
	Problems manifest.Problems `json:"problems"`
	Image    *checkedImage     `json:"image,omitempty"` // with --image
	// Environment is there with -e, unless the manifest is not valid.
	Environment *checkedEnvironment `json:"environment,omitempty"`
}

// checkFile checks one manifest and tells the user; the status is what it alone would have check exit with.
func (c *cli) checkFile(ctx context.Context, file string, against *imageCheck, environment *environmentCheck) (status int, err error) {
	src, err := c.readManifest(file)
	if err != nil {
		return exitInternal, err
	}
	m, problems := manifest.Parse(src)
	result := checkResult{File: file, Problems: problems}
	if m != nil {
		result.Name, result.Hash, result.Image = m.Name, m.Hash(), against.image
		result.Problems = append(result.Problems, against.problems(m)...)
	}
	if result.Problems.HasErrors() {
		status = exitInvalid
	}
	if m != nil {
		var lacks manifest.Problems
		if result.Environment, lacks, err = environment.check(ctx, src, m, against.architectures()); err != nil {
			return exitInternal, err
		}
		if result.Problems = append(result.Problems, lacks...); status == exitOK && lacks.HasErrors() {
			status = exitConflict
		}
	}
	result.OK = status == exitOK
	if c.json {
		return status, c.printJSON(result)
	}
	c.showProblems(file, src, result.Problems)
	if result.OK {
		values, defaults := m.Counts()
		c.print("ok %s %s (%d values, %d defaults)%s%s", m.Name, m.Hash(), values, defaults, against.verdict(), environment.verdict())
	}
	return status, nil
}

// readManifest reads a manifest file, or stdin for "-". What is plainly not a manifest is refused with a
// pointer to what to do.
func (c *cli) readManifest(file string) ([]byte, error) {
	switch {
	case strings.HasSuffix(file, ".yaml"), strings.HasSuffix(file, ".yml"):
		return nil, fail(exitInvalid, "convert one of its services with: pinnace import "+file,
			"%s is not a manifest: Pinnace deploys one image with one pinnace.toml, not a compose file or a chart", file)
	case strings.HasSuffix(file, ".tar"), strings.HasSuffix(file, ".tar.gz"), strings.HasSuffix(file, ".tgz"), strings.HasSuffix(file, ".zip"):
		return nil, fail(exitInvalid, "push the image to a registry, and name it with --image",
			"%s is an archive, not a manifest", file)
	}
	r := c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fail(exitNotFound, "pinnace init writes one", "there is no %s", file)
		}
		if err != nil {
			return nil, fail(exitInvalid, "", "%w", err)
		}
		defer f.Close()
		r = f
	}
	// One byte more than the limit is enough to know that it is too long; the parser says so.
	src, err := io.ReadAll(io.LimitReader(r, manifest.MaxSourceSize+1))
	if err != nil {
		return nil, fail(exitInvalid, "", "read %s: %w", file, err)
	}
	return src, nil
}

// showProblems prints problems for a person.
func (c *cli) showProblems(file string, src []byte, problems manifest.Problems) {
	terminal := onTerminal(c.stderr, c.getenv)
	problems.Render(c.stderr, file, src, manifest.RenderOptions{Color: terminal, Caret: true})
	if n := len(problems.Errors()); n > 0 {
		fmt.Fprintf(c.stderr, "%s: %s\n", file, plural(n, "error"))
	}
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
