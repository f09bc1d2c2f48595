package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/manifest"
)

func (c *cli) newFmt() *cobra.Command {
	var check, showDiff bool
	cmd := &cobra.Command{
		Use:   "fmt [--check] [-d] [FILE…]",
		Short: "Lay a manifest out in the one way that there is",
		Long: `Fmt rewrites manifests (pinnace.toml unless others are named) in the canonical layout: aligned,
with bare keys, one blank line before each table, and no white space that says nothing. It
keeps every comment, the order of the keys and the spelling of the values, so the manifest
means what it meant: its hash stays the same. "-" reads stdin and writes to stdout.

It needs a file that is TOML, not one that is valid: pinnace check says whether it is.

With --check or -d nothing is written. Exit status of --check: 0 when nothing would change,
10 when something would.`,
		Example: `  pinnace fmt
  pinnace fmt -d
  pinnace fmt --check apps/*/pinnace.toml`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{manifestName}
			}
			status := exitOK
			for _, file := range args {
				got, err := c.fmtFile(file, !check && !showDiff, showDiff)
				if err != nil {
					return err
				}
				// A file that cannot be read is worse than one that would change.
				if status != exitInvalid && (got == exitInvalid || check) {
					status = max(status, got)
				}
				if got == exitInvalid {
					status = exitInvalid
				}
			}
			if status != exitOK {
				return errReported{status}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "change nothing; exit with 10 when a file is laid out otherwise")
	cmd.Flags().BoolVarP(&showDiff, "diff", "d", false, "change nothing; print what would change as a unified diff")
	return cmd
}

// fmtResult is what fmt prints with --json for each file.
type fmtResult struct {
	File     string            `json:"file"`
	Changed  bool              `json:"changed"` // or would be
	Diff     string            `json:"diff,omitempty"`
	Problems manifest.Problems `json:"problems,omitempty"`
}

// fmtFile formats one file and returns exitOK, exitChanges or exitInvalid. It has told the user of the last.
func (c *cli) fmtFile(file string, write, showDiff bool) (status int, err error) {
	src, err := c.readManifest(file)
	if err != nil {
		return exitInternal, err
	}
	out, problems := manifest.Format(src)
	if problems.HasErrors() {
		if c.json {
			return exitInvalid, c.printJSON(fmtResult{File: file, Problems: problems})
		}
		c.showProblems(file, src, problems)
		return exitInvalid, nil
	}
	result := fmtResult{File: file, Changed: !bytes.Equal(src, out)}
	if showDiff {
		result.Diff = string(unified(file, src, out))
	}
	if write && file == "-" && !c.json {
		_, err := c.stdout.Write(out)
		return exitOK, err
	}
	if write && result.Changed && file != "-" {
		if err := replace(file, out); err != nil {
			return exitInternal, fail(exitInvalid, "", "%w", err)
		}
	}
	switch {
	case c.json:
		err = c.printJSON(result)
	case showDiff:
		_, err = c.stdout.Write([]byte(result.Diff))
	case result.Changed:
		c.print("%s", file)
	}
	if result.Changed {
		return exitChanges, err
	}
	return exitOK, err
}

// replace writes a file whole or not at all, and keeps its permissions. A symbolic link stays one.
func replace(file string, content []byte) error {
	target, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	perm := fs.FileMode(0o644)
	info, err := os.Stat(target)
	switch {
	case err == nil:
		perm = info.Mode().Perm()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return durable.WriteFile(target, content, perm)
}

// unified gives a diff as patch reads it.
func unified(file string, before, after []byte) []byte {
	file = strings.TrimPrefix(file, "/")
	d := diff.Diff("a/"+file, before, "b/"+file, after)
	// The first line names the command that would show it, and is not part of the format.
	_, d, _ = bytes.Cut(d, []byte("\n"))
	return d
}
