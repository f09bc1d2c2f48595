package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/kernel"
)

// kernelStore says where the kernels are that the kernel commands work on.
type kernelStore struct{ data, dir string }

func (s *kernelStore) path() string {
	if s.dir != "" {
		return s.dir
	}
	return filepath.Join(s.data, "kernels")
}

func (c *cli) newKernel() *cobra.Command {
	where := kernelStore{data: "/var/lib/pinnace"}
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "List the guest kernels of this host, and choose one",
		Long: `Kernel works on the kernels that microVMs of this host boot; it needs no server. They lie
unpacked in DATA_DIR/kernels, a folder for each release. Two scripts put them there, and neither
installs anything on the host: scripts/get-kernel.sh fetches Debian's cloud kernel, and
scripts/build-kernel.sh builds a smaller one.

New microVMs boot the kernel that was chosen with "pinnace kernel use", or else the newest fit one
of a distribution. A kernel that lacks what guests need is never booted.`,
		Example: `  pinnace kernel ls
  pinnace kernel use 6.12.95+deb12-cloud-amd64`,
	}
	cmd.PersistentFlags().Var((*dirFlag)(&where.data), "data-dir", "the host's data directory")
	cmd.PersistentFlags().Var((*dirFlag)(&where.dir), "kernels", "where the kernels are (default: DATA_DIR/kernels)")
	cmd.AddCommand(c.newKernelList(&where), c.newKernelUse(&where))
	return cmd
}

// listedKernel is one of kernel ls --json.
type listedKernel struct {
	Release string `json:"release"`
	// Source says where it came from: the package, or "unknown".
	Source string `json:"source"`
	Built  bool   `json:"built"` // on this machine
	Fit    bool   `json:"fit"`
	// Problems are why it is not fit.
	Problems  []string `json:"problems"`
	SizeBytes int64    `json:"size_bytes"` // of its folder
	SHA256    string   `json:"sha256"`     // of its image
	// InUse tells that new microVMs boot it.
	InUse bool   `json:"in_use"`
	Dir   string `json:"dir"`
}

type kernelList struct {
	Dir string `json:"dir"`
	// Chosen is the release that "kernel use" has chosen; empty for the newest.
	Chosen  string         `json:"chosen"`
	Kernels []listedKernel `json:"kernels"`
}

func (c *cli) newKernelList(where *kernelStore) *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the kernels, the newest first, whether they are fit, and which one new microVMs boot",
		Example: "  pinnace kernel ls\n  pinnace kernel ls --json",
		RunE: func(*cobra.Command, []string) error {
			list, choice, err := listKernels(where.path())
			if err != nil {
				return kernelFailure(err)
			}
			if c.json {
				return c.printJSON(list)
			}
			return c.printKernels(list, choice)
		},
	}
}

// listKernels lists what is in dir. choice is why no kernel can be booted, if so.
func listKernels(dir string) (list kernelList, choice, err error) {
	list = kernelList{Dir: dir, Kernels: []listedKernel{}}
	all, err := kernel.List(dir)
	if err != nil {
		return list, nil, err
	}
	if list.Chosen, err = kernel.Chosen(dir); err != nil {
		return list, nil, err
	}
	inUse, choice := kernel.Choose(dir)
	for _, s := range all {
		k := listedKernel{
			Release: s.Release, Source: s.Origin().String(), Built: s.Origin().Built, Problems: []string{},
			InUse: choice == nil && s.Release == inUse.Release, Dir: s.Dir,
		}
		if k.SizeBytes, k.SHA256, err = s.Usage(); err != nil {
			return list, nil, err
		}
		err := s.Check()
		if k.Fit = err == nil; !k.Fit {
			k.Problems = append(k.Problems, err.Error())
		}
		if unfit, ok := errors.AsType[*kernel.UnfitError](err); ok {
			k.Problems = unfit.Problems
		}
		list.Kernels = append(list.Kernels, k)
	}
	return list, choice, nil
}

func (c *cli) printKernels(list kernelList, choice error) error {
	if len(list.Kernels) == 0 {
		c.say("no kernels in %s; scripts/get-kernel.sh fetches one", list.Dir)
		return nil
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "RELEASE\tIN USE\tFIT\tSIZE\tSHA256\tSOURCE")
	for _, k := range list.Kernels {
		use, fit := "", "yes"
		if k.InUse {
			use = "newest"
			if list.Chosen != "" {
				use = "chosen"
			}
		}
		if !k.Fit {
			fit = "no"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.12s\t%s\n", printable(k.Release), use, fit, byteSize(k.SizeBytes), k.SHA256, printable(k.Source))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, k := range list.Kernels {
		for _, problem := range k.Problems {
			c.print("%s: %s", printable(k.Release), printable(problem))
		}
	}
	if choice != nil {
		c.say("no microVM can be started: %v", choice)
	}
	return nil
}

// newestWord takes back a choice.
const newestWord = "newest"

func (c *cli) newKernelUse(where *kernelStore) *cobra.Command {
	return &cobra.Command{
		Use:   "use RELEASE|newest",
		Short: "Choose the kernel that new microVMs boot",
		Long: `Use chooses the kernel of the microVMs that an agent starts from its own next start on; those that
run keep theirs. The choice lasts until the next one: a newer kernel does not take its place, and
when the chosen one is removed or turns out unfit, the agent refuses to start microVMs and says so.
"newest" takes the choice back.

A kernel that is not fit is refused, with all that it lacks.`,
		Example: `  pinnace kernel use 6.12.117-pinnace
  pinnace kernel use newest`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			words := []cobra.Completion{cobra.CompletionWithDesc(newestWord, "the newest fit one of a distribution")}
			all, err := kernel.List(where.path())
			if err != nil {
				return words, cobra.ShellCompDirectiveNoFileComp
			}
			for _, s := range all {
				if s.Check() == nil {
					words = append(words, cobra.CompletionWithDesc(s.Release, s.Origin().String()))
				}
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(_ *cobra.Command, args []string) error {
			dir := where.path()
			var err error
			if args[0] == newestWord {
				err = kernel.UseNewest(dir)
			} else {
				err = kernel.Use(dir, args[0])
			}
			if err != nil {
				return kernelFailure(err)
			}
			s, err := kernel.Choose(dir)
			if err != nil {
				return kernelFailure(err)
			}
			if c.json {
				chosen, err := kernel.Chosen(dir)
				if err != nil {
					return kernelFailure(err)
				}
				return c.printJSON(struct {
					Release string `json:"release"`
					Chosen  string `json:"chosen"`
				}{s.Release, chosen})
			}
			c.print("new microVMs boot Linux %s", s.Release)
			c.say("an agent that runs takes it from its next start on; microVMs that run keep theirs")
			return nil
		},
	}
}

// kernelFailure gives the errors about kernels their status.
func kernelFailure(err error) error {
	const see = "pinnace kernel ls shows those that are there"
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(exitDenied, "run it with sudo", "%w", err)
	case errors.Is(err, kernel.ErrNoKernel):
		return fail(exitNotFound, kernelHint(err), "%w", err)
	case errors.Is(err, kernel.ErrNotFound):
		return fail(exitNotFound, see, "%w", err)
	}
	if unfit, ok := errors.AsType[*kernel.UnfitError](err); ok {
		return fail(exitInvalid, see, "kernel %s cannot boot a guest: %s", unfit.Release, strings.Join(unfit.Problems, ", "))
	}
	return err
}
