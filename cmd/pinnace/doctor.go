package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// A finding is what doctor found of one thing.
type finding struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Needed tells that microVMs cannot run here unless it is OK. What is not needed is worth knowing.
	Needed bool   `json:"needed"`
	Detail string `json:"detail"`
	// Fix is what to do about it.
	Fix string `json:"fix,omitempty"`
}

func good(name, detail string) finding {
	return finding{Name: name, OK: true, Needed: true, Detail: detail}
}

// bad is what keeps microVMs from running here.
func bad(name, detail, fix string) finding {
	return finding{Name: name, Needed: true, Detail: detail, Fix: fix}
}

// note is what a host can do without.
func note(name, detail, fix string) finding { return finding{Name: name, Detail: detail, Fix: fix} }

func (c *cli) newDoctor() *cobra.Command {
	role := agentRole{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, and what to install",
		Long: `Doctor looks at everything that running microVMs needs, and changes nothing: it boots the guest
kernel once to see whether KVM works here, and makes a network that is gone afterwards.

Each line is "ok", "note" for what microVMs can do without, or "MISSING" with what to do about it.

Exit status: 0 when microVMs can run here, 1 when something is missing.`,
		Example: "  sudo pinnace doctor\n  sudo pinnace doctor --driver firecracker --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := role.drivers.check(); err != nil {
				return err
			}
			role.log = c.logger("doctor", 0)
			findings, err := c.examine(cmd.Context(), &role, thisHost())
			if err != nil {
				return err
			}
			missing := 0
			for _, f := range findings {
				if f.Needed && !f.OK {
					missing++
				}
			}
			if c.json {
				if err := c.printJSON(findings); err != nil {
					return err
				}
			} else {
				c.printFindings(findings)
			}
			if missing > 0 {
				c.say("%s", plural(missing, "problem"))
				return errReported{exitInternal}
			}
			return nil
		},
	}
	role.dirs.add(cmd)
	role.add(cmd)
	return cmd
}

func (c *cli) printFindings(findings []finding) {
	width := 0
	for _, f := range findings {
		width = max(width, len(f.Name))
	}
	for _, f := range findings {
		mark := "ok"
		switch {
		case !f.OK && f.Needed:
			mark = "MISSING"
		case !f.OK:
			mark = "note"
		}
		c.print("%-7s  %-*s  %s", mark, width, f.Name, printable(f.Detail))
		if f.Fix != "" {
			c.print("%-7s  %-*s  -> %s", "", width, "", f.Fix)
		}
	}
}

// examine looks at one thing after the other; those that rest on one that is missing are left out. The error is for what
// says nothing about the host.
func (c *cli) examine(ctx context.Context, r *agentRole, h hostView) ([]finding, error) {
	work, err := tryIn(existing(r.dirs.data))
	if err != nil {
		return nil, fail(exitInternal, "make room in "+os.TempDir(), "make a directory for what is tried: %w", err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	findings := []finding{h.examineUser()}
	b, kernel := r.examineKernel(filepath.Join(work, "boot"))
	findings = append(findings, kernel)
	if kernel.OK {
		b.cache, b.jails = filepath.Join(work, "probe"), filepath.Join(work, "jails")
		findings = append(findings, r.drivers.examine(ctx, b)...)
	}
	findings = append(findings, h.examineCgroups(), h.examineTun())
	if findings[0].OK {
		findings = append(findings, h.examineNetwork(ctx, filepath.Join(work, "network")))
	}
	findings = append(findings,
		h.examineProgram("mkfs.ext4", "makes scratch disks and volumes", "apt-get install e2fsprogs"),
		h.examineOutliving(), h.examineMemory())
	findings = append(findings, h.examineDisk(r.dirs.data)...)
	findings = append(findings, c.examineRegistries())
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return findings, nil
}

// tryIn makes a directory for what is tried: in dir, because jails may be possible there and not among temporary files, which
// are often mounted without devices; or else among those.
func tryIn(dir string) (string, error) {
	const pattern = "pinnace-doctor-"
	if work, err := os.MkdirTemp(dir, pattern); err == nil {
		return work, nil
	}
	return os.MkdirTemp("", pattern)
}

// existing is dir, or the first above it that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// protections says what is off, in one line.
func protections(weaknesses []string) finding {
	// The accelerator has a line of its own.
	off := slices.DeleteFunc(slices.Clone(weaknesses), func(w string) bool { return strings.Contains(w, "(TCG)") })
	if len(off) == 0 {
		return finding{Name: "protections", OK: true, Detail: "all are on"}
	}
	return note("protections", "off: "+strings.Join(off, "; "), "")
}
