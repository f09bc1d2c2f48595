package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/importer"
)

func (c *cli) newImport() *cobra.Command {
	var format, service, output string
	cmd := &cobra.Command{
		Use:   "import FILE [--service NAME]",
		Short: "Convert one service of a fly.toml, a Nomad job or a compose.yaml",
		Long: `Import prints a manifest for one service of somebody else's configuration, and on stderr
everything that it could not carry over or had to change, with the reason. It works offline:
it opens no other file, asks nobody, and knows no variables of your shell.

The name of the file says what it is (.toml, .hcl or .nomad, .yaml or .yml); for others, and
for "-", which is stdin, give --format.`,
		Example: `  pinnace import fly.toml > pinnace.toml
  pinnace import compose.yaml --service web -o pinnace.toml
  pinnace import --json job.nomad.hcl`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := c.importFile(args[0], importer.Format(format), service)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(importJSON(args[0], r))
			}
			if err := c.writeManifest(output, r.Manifest); err != nil {
				return err
			}
			c.sayNotes(args[0], r, output)
			return nil
		},
	}
	cmd.Flags().StringVar(&format, "format", "", "fly, nomad or compose (default: by the name of the file)")
	cmd.Flags().StringVar(&service, "service", "", "which service, task or process group, when there are several")
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the manifest here (default: stdout)")
	return cmd
}

// importResult is what import prints with --json.
type importResult struct {
	File     string          `json:"file"`
	Service  string          `json:"service"`
	Services []string        `json:"services"`
	Image    string          `json:"image,omitempty"`
	Manifest string          `json:"manifest"`
	Name     string          `json:"name"`
	Hash     string          `json:"hash"`
	Notes    []importer.Note `json:"notes"`
}

func importJSON(file string, r *importer.Result) importResult {
	notes := r.Notes
	if notes == nil {
		notes = []importer.Note{}
	}
	return importResult{
		File: file, Service: r.Service, Services: r.Services, Image: r.Image, Manifest: string(r.Manifest),
		Name: r.Parsed.Name, Hash: string(r.Parsed.Hash()), Notes: notes,
	}
}

func (c *cli) importFile(file string, format importer.Format, service string) (*importer.Result, error) {
	if format == "" {
		format = importer.FormatOf(file)
	}
	switch format {
	case importer.Fly, importer.Nomad, importer.Compose:
	case "":
		return nil, fail(exitInvalid, "say it with --format fly, nomad or compose", "the name %s does not say what kind of file it is", file)
	default:
		return nil, fail(exitInvalid, "fly, nomad and compose are", "%q is no format", string(format))
	}
	src, err := c.readImport(file)
	if err != nil {
		return nil, err
	}
	r, err := importer.Convert(src, format, service)
	if errors.Is(err, importer.ErrService) {
		return nil, fail(exitInvalid, "name one with --service; each becomes an app of its own", "%s: %s", file, printable(err.Error()))
	}
	if err != nil {
		return nil, fail(exitInvalid, "", "import %s: %s", file, printable(err.Error()))
	}
	return r, nil
}

func (c *cli) readImport(file string) ([]byte, error) {
	r := c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fail(exitNotFound, "", "there is no %s", file)
		}
		if err != nil {
			return nil, fail(exitInvalid, "", "%w", err)
		}
		defer f.Close()
		r = f
	}
	// One byte more than the limit is enough to know that it is too long; the importer says so.
	src, err := io.ReadAll(io.LimitReader(r, importer.MaxSize+1))
	if err != nil {
		return nil, fail(exitInvalid, "", "read %s: %w", file, err)
	}
	return src, nil
}

// writeManifest writes to stdout, or to a new file.
func (c *cli) writeManifest(output string, text []byte) error {
	if output == "" {
		_, err := c.stdout.Write(text)
		return err
	}
	f, err := os.OpenFile(output, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // A manifest is public, and lies in a repository.
	if errors.Is(err, fs.ErrExist) {
		return fail(exitConflict, "name another file with -o", "%s exists already", output)
	}
	if err != nil {
		return fail(exitInvalid, "", "%w", err)
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// sayNotes lists what is not in the manifest, or not as it was. It is a result as much as the manifest is, so
// --quiet does not keep it back.
func (c *cli) sayNotes(file string, r *importer.Result, output string) {
	for _, n := range r.Notes {
		place := file
		if n.Line > 0 {
			place = fmt.Sprintf("%s:%d", file, n.Line)
		}
		subject := strings.TrimSpace(n.Key)
		if subject != "" {
			subject += ": "
		}
		fmt.Fprintf(c.stderr, "%s: %s: %s%s\n", place, n.Kind, printable(subject), printable(n.Reason))
	}
	count := 0
	for _, n := range r.Notes {
		if n.Kind == importer.Dropped {
			count++
		}
	}
	if output == "" {
		output = "the manifest"
	}
	c.say("%s: service %s; %s not carried over, %s changed; next: read through %s, then pinnace check", file, printable(r.Service),
		plural(count, "value"), plural(len(r.Notes)-count, "value"), output)
}
