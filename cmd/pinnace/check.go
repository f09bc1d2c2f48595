package main

import (
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

Exit status: 0 when all are valid, 2 when one is not.`,
		Example: `  pinnace check
  pinnace check --json apps/*/pinnace.toml
  pinnace check --deep --image registry.example.com/shop/api:v3`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 0 {
				args = []string{manifestName}
			}
			if err := against.open(cmd.Context(), c); err != nil {
				return err
			}
			defer func() { err = errors.Join(err, against.Close()) }()
			bad := false
			for _, file := range args {
				ok, err := c.checkFile(file, &against)
				if err != nil {
					return err
				}
				bad = bad || !ok
			}
			if bad {
				return errReported{exitInvalid}
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
}

func (c *cli) checkFile(file string, against *imageCheck) (ok bool, err error) {
	src, err := c.readManifest(file)
	if err != nil {
		return false, err
	}
	m, problems := manifest.Parse(src)
	result := checkResult{File: file, OK: m != nil, Problems: problems}
	if m != nil {
		result.Name, result.Hash = m.Name, m.Hash()
		problems = append(problems, against.problems(m)...)
		result.Problems, result.OK, result.Image = problems, !problems.HasErrors(), against.image
	}
	if c.json {
		return result.OK, c.printJSON(result)
	}
	c.showProblems(file, src, problems)
	if result.OK {
		values, defaults := m.Counts()
		c.print("ok %s %s (%d values, %d defaults)%s", m.Name, m.Hash(), values, defaults, against.verdict())
	}
	return result.OK, nil
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
