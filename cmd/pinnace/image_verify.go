package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
)

// verifiedStore is what image verify prints with --json.
type verifiedStore struct {
	Store     string        `json:"store"`
	OK        bool          `json:"ok"`
	Files     int           `json:"files"`
	Bytes     int64         `json:"bytes"`
	Seconds   float64       `json:"seconds"`
	Unchecked []string      `json:"unchecked"` // files of no image, so that nothing says what they should be
	Damaged   []damagedFile `json:"damaged"`
}

type damagedFile struct {
	Kind       string      `json:"kind"`
	File       string      `json:"file"`
	Problem    string      `json:"problem"`
	Images     []string    `json:"images"`
	Leases     []leaseInfo `json:"leases"`
	Quarantine string      `json:"quarantine,omitempty"`
}

func (c *cli) newImageVerify(where *imageStore) *cobra.Command {
	var keep bool
	rate := sizeFlag{}
	cmd := &cobra.Command{
		Use:   "verify [IMAGE…]",
		Short: "Read images again, and find what has rotted on the disk",
		Long: `Verify reads every file again: layers against the sha256 in their names, indexes and file
systems against their records, disks of several layers against the layers. What is damaged is
moved to quarantine, so that nothing starts from it any more, and the next pull fetches it
again; what runs from it goes on with what it has open, and should be restarted after that.

Exit status: 0 all is well, 1 something is damaged or missing, 4 the image is not there.`,
		Example:           "  pinnace image verify\n  pinnace image verify --keep --rate 50MiB 3f1c2a9b",
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: where.words(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			return where.with(c, false, func(s *image.Store, dir string) error {
				return c.verifyImages(cmd.Context(), s, dir, args, image.VerifyOptions{Keep: keep, Rate: rate.bytes})
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave what is damaged where it is")
	cmd.Flags().Var(&rate, "rate", "read no more than this each second, such as 50MiB (default: as fast as it goes)")
	return cmd
}

func (c *cli) verifyImages(ctx context.Context, s *image.Store, dir string, names []string, opts image.VerifyOptions) error {
	if len(names) > 0 {
		u, err := s.Usage()
		if err != nil {
			return err
		}
		for _, name := range names {
			found, err := c.find(ctx, u, name)
			if err != nil {
				return err
			}
			for _, i := range found {
				opts.Images = append(opts.Images, i.Digest)
			}
		}
	}
	opts.Progress = c.verifyProgress()
	began := time.Now()
	report, err := s.Verify(ctx, opts)
	if err != nil {
		return err
	}
	out := verifiedStore{
		Store: dir, OK: len(report.Damaged) == 0, Files: report.Files, Bytes: report.Bytes, Seconds: time.Since(began).Seconds(),
		Unchecked: append([]string{}, report.Unchecked...), Damaged: []damagedFile{},
	}
	for _, d := range report.Damaged {
		out.Damaged = append(out.Damaged, damagedFile{
			Kind: d.Kind, File: d.Name, Problem: d.Problem, Images: append([]string{}, d.Images...), Leases: leaseInfos(d.Leases), Quarantine: d.Quarantined,
		})
	}
	if c.json {
		if err := c.printJSON(out); err != nil {
			return err
		}
	} else {
		c.printVerified(out, report)
	}
	if !out.OK {
		return errReported{exitInternal}
	}
	return nil
}

func (c *cli) printVerified(out verifiedStore, report *image.VerifyReport) {
	for i, d := range out.Damaged {
		c.print("damaged %s: %s", d.File, printable(d.Problem))
		for _, digest := range d.Images {
			c.print("  needed by %s (%s)", digest, holders(report.Damaged[i].Leases))
		}
		if d.Quarantine != "" {
			c.print("  moved to %s", d.Quarantine)
		}
	}
	verdict := "ok"
	if !out.OK {
		verdict = fmt.Sprintf("%d damaged or missing", len(out.Damaged))
	}
	c.print("%s: %s, %s read in %.1f s", verdict, plural(out.Files, "file"), byteSize(out.Bytes), out.Seconds)
	if n := len(out.Unchecked); n > 0 {
		c.say("%s of no image not checked; pinnace image gc removes them", plural(n, "file"))
	}
	if !out.OK {
		c.say("hint: pinnace image pull, or the next start of an instance, fetches what is missing")
	}
}

// verifyProgress says every few seconds how far a verification is.
func (c *cli) verifyProgress() func(done, total int64) {
	if c.quiet {
		return nil
	}
	last := time.Now()
	return func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= sayAgain {
			last = now
			c.say("read %s of %s", byteSize(done), byteSize(total))
		}
	}
}
