package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/image"
)

// collection is what image gc prints with --json.
type collection struct {
	Store   string        `json:"store"`
	DryRun  bool          `json:"dry_run"`
	Freed   int64         `json:"freed_bytes"`
	Bytes   int64         `json:"bytes"` // that are left
	Removed []removedFile `json:"removed"`
	Kept    []keptImage   `json:"kept"`
}

type removedFile struct {
	Kind   string    `json:"kind"`
	Name   string    `json:"name"`
	Bytes  int64     `json:"bytes"`
	UsedAt time.Time `json:"used_at"`
}

type keptImage struct {
	Digest string      `json:"digest"`
	Bytes  int64       `json:"bytes"`
	Why    string      `json:"why"` // "held", "recent", "enough"
	Leases []leaseInfo `json:"leases"`
}

func (c *cli) newImageGC(where *imageStore) *cobra.Command {
	var opts image.GCOptions
	var pulled bool
	need := sizeFlag{}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove images that nobody needs",
		Long: `Gc removes what nobody holds: images that nothing runs from, that no deployment may go back
to, and that image pull does not keep any longer; and what pulls that were interrupted left.
It says what it removed and why the rest stays. An agent does this by itself.`,
		Example: "  pinnace image gc --dry-run\n  pinnace image gc --older-than 24h\n  pinnace image gc --need 5GiB",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.MinAge < 0 {
				return fail(exitInvalid, "", "--older-than is %s: want no less than 0s", opts.MinAge)
			}
			opts.Need = need.bytes
			if pulled {
				opts.Disregard = func(l image.Lease) bool { return l.Owner == leaseOwner && l.Kind == leaseKept }
			}
			return where.with(c, false, func(s *image.Store, dir string) error {
				report, err := s.GC(cmd.Context(), opts)
				if err != nil {
					return err
				}
				out := collected(report, dir, opts.DryRun)
				if c.json {
					return c.printJSON(out)
				}
				return c.printCollected(out, report)
			})
		},
	}
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "say what would be removed, and remove nothing")
	cmd.Flags().DurationVar(&opts.MinAge, "older-than", 0, "only what has not been used for this long")
	cmd.Flags().Var(&need, "need", "stop when this much is free again, such as 5GiB (default: remove all that may go)")
	cmd.Flags().BoolVar(&pulled, "pulled", false, "also what is only kept because image pull fetched it")
	return cmd
}

func collected(report *image.GCReport, dir string, dry bool) collection {
	out := collection{Store: dir, DryRun: dry, Freed: report.Freed, Bytes: report.Bytes, Removed: []removedFile{}, Kept: []keptImage{}}
	for _, r := range report.Removed {
		out.Removed = append(out.Removed, removedFile{Kind: r.Kind, Name: r.Name, Bytes: r.Bytes, UsedAt: r.Used.UTC()})
	}
	for _, k := range report.Kept {
		kept := keptImage{Digest: k.Digest, Bytes: k.Bytes, Why: "held", Leases: leaseInfos(k.Leases)}
		switch {
		case k.Recent:
			kept.Why = "recent"
		case k.Enough:
			kept.Why = "enough"
		}
		out.Kept = append(out.Kept, kept)
	}
	return out
}

func (c *cli) printCollected(out collection, report *image.GCReport) error {
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	verb := "removed"
	if out.DryRun {
		verb = "would remove"
	}
	for _, r := range out.Removed {
		name := r.Name
		if r.Kind == "image" {
			name = shortDigest(name)
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\tlast used %s\n", verb, r.Kind, name, byteSize(r.Bytes), ago(r.UsedAt))
	}
	for i, k := range out.Kept {
		why := map[string]string{
			"held": "held by " + holders(report.Kept[i].Leases), "recent": "used lately", "enough": "not needed to go",
		}[k.Why]
		fmt.Fprintf(w, "kept image\t%s\t%s\t%s\n", shortDigest(k.Digest), byteSize(k.Bytes), why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	freed := "freed"
	if out.DryRun {
		freed = "would free"
	}
	c.print("%s %s, %s are left", freed, byteSize(out.Freed), byteSize(out.Bytes))
	return nil
}
