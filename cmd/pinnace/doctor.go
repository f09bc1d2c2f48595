package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// finding is one thing that doctor looked at.
type finding struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	Fix    string `json:"fix,omitempty"`
}

func (c *cli) newDoctor() *cobra.Command {
	role := agentRole{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host can do, and what to install",
		Long: `Doctor looks at everything that running microVMs needs, without changing anything but a cache:
it boots the guest kernel once to see whether KVM works here.

Exit status: 0 when microVMs can run here, 1 when something is missing.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			role.log = c.logger("doctor", 0)
			findings := c.examine(cmd.Context(), &role)
			missing := 0
			for _, f := range findings {
				if !f.OK {
					missing++
				}
			}
			if c.json {
				if err := c.printJSON(findings); err != nil {
					return err
				}
			} else {
				for _, f := range findings {
					c.printFinding(f)
				}
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

func (c *cli) printFinding(f finding) {
	mark := "ok     "
	if !f.OK {
		mark = "MISSING"
	}
	c.print("%s  %-12s %s", mark, f.Name, f.Detail)
	if f.Fix != "" {
		c.print("         %-12s %s", "", "-> "+f.Fix)
	}
}

// examine looks at one thing after the other; those that rest on one that is missing are left out.
func (c *cli) examine(ctx context.Context, r *agentRole) []finding {
	findings := []finding{
		examineRoot(),
		examineDevice("tun", "/dev/net/tun", "modprobe tun"),
		examineProgram("mkfs.ext4", "makes the template of the scratch disks", "apt-get install e2fsprogs"),
		examineOutliving(),
		c.examineRegistries(),
	}
	cache, err := os.MkdirTemp("", "pinnace-doctor-")
	if err != nil {
		return append(findings, finding{Name: "temp", Detail: err.Error(), Fix: "make room in " + os.TempDir()})
	}
	defer func() { _ = os.RemoveAll(cache) }()
	b, f := r.examineKernel(cache)
	findings = append(findings, f)
	if !f.OK {
		return findings
	}
	return append(findings, r.examineDriver(ctx, b)...)
}

func examineRoot() finding {
	f := finding{Name: "root", OK: os.Geteuid() == 0, Detail: "running as root"}
	if !f.OK {
		f.Detail = "not root: the agent makes network namespaces, tap devices and a user for each VM"
		f.Fix = "run the agent, or pinnace dev, with sudo"
	}
	return f
}

func examineDevice(name, path, fix string) finding {
	if _, err := os.Stat(path); err != nil {
		return finding{Name: name, Detail: err.Error(), Fix: fix}
	}
	return finding{Name: name, OK: true, Detail: path + " is there"}
}

func examineProgram(name, what, fix string) finding {
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath(filepath.Join("/sbin", name))
	}
	if err != nil {
		return finding{Name: name, Detail: "not found; it " + what, Fix: fix}
	}
	return finding{Name: name, OK: true, Detail: path}
}

// examineOutliving says whether microVMs can outlive the agent here, and what else that takes.
func examineOutliving() finding {
	f := finding{Name: "outliving"}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		f.Detail = fmt.Sprintf("microVMs cannot be taken over by the next agent: open a pidfd: %v", err)
		f.Fix = "use Linux 5.10 or later"
		return f
	}
	_ = unix.Close(fd)
	f.OK = true
	const unit = "; a service manager has to end the agent's process alone (systemd: KillMode=process)"
	h, err := cgroup.Find()
	switch {
	case err != nil:
		f.Detail = "microVMs outlive the agent, but have no cgroup of their own (" + err.Error() + ")" + unit
	case h.Version == 1:
		f.Detail = "microVMs outlive the agent, in memory cgroups of their own (version 1)" + unit
	default:
		f.Detail = "microVMs outlive the agent, in cgroups of their own; the proxy is in the agent's" + unit
	}
	return f
}

func (r *agentRole) examineKernel(cache string) (bootFiles, finding) {
	f := finding{Name: "kernel"}
	b := bootFiles{dir: cache, cache: filepath.Join(cache, "probe"), jails: filepath.Join(cache, "jails"), log: r.log}
	var err error
	if b.source, b.kernel, err = r.kernel(cache); err == nil {
		f.OK, f.Detail = true, "Linux "+b.kernel.Release
		return b, f
	}
	f.Detail = err.Error()
	if known, ok := errors.AsType[*failure](err); ok {
		f.Fix = known.hint
	}
	return b, f
}

func (r *agentRole) examineDriver(ctx context.Context, b bootFiles) []finding {
	f := finding{Name: "driver"}
	m, err := r.drivers.choose(ctx, b)
	if err != nil {
		f.Detail = err.Error()
		if missing, ok := errors.AsType[*vm.MissingError](err); ok {
			f.Fix = "apt-get install " + missing.Package
		}
		return []finding{f}
	}
	f.OK, f.Detail = true, m.can.Driver+" "+m.can.Version
	accel := finding{Name: "accelerator", OK: true, Detail: m.can.Accelerator}
	if m.can.Accelerator != "kvm" {
		accel.Detail = fmt.Sprintf("%s, for development only: slow, and no security boundary. No KVM: %s", m.can.Accelerator, m.can.Reason)
	}
	findings := []finding{f, accel}
	for _, w := range m.can.Weaknesses {
		findings = append(findings, finding{Name: "protection", OK: true, Detail: "off: " + w})
	}
	return findings
}
