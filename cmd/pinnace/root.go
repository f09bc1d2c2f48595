package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// cli is what every sub-command shares: where it reads and writes, and the global flags.
type cli struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	server, token, environment string
	json, noInput, quiet       bool
}

// run executes one command line and returns its exit status.
func (c *cli) run(ctx context.Context, args []string) int {
	root := c.newRoot()
	root.SetArgs(args)
	root.SetIn(c.stdin)
	root.SetOut(c.stdout)
	root.SetErr(c.stderr)
	return exitStatus(c.stderr, root.ExecuteContext(ctx))
}

func (c *cli) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "pinnace",
		Short: "Run OCI images as microVMs on your own hosts",
		Long: `Pinnace runs OCI images as microVMs on your own hosts.

A workload is an image pinned by digest and a manifest, pinnace.toml. Together they
are a Release, which never changes; deploying puts one into an environment, and
rolling back runs an earlier one again, exactly.

` + exitStatusHelp,
		Example: `  pinnace dev                                   start everything on this machine
  pinnace init                                  write a manifest
  pinnace check                                 say what is wrong with it
  pinnace deploy --image 127.0.0.1:5000/api:v1  run it
  pinnace rollback api                          run what ran before`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.server, "server", "", "URL of the server (PINNACE_SERVER; else the current context)")
	flags.StringVar(&c.token, "token", "", "token to call it with (PINNACE_TOKEN; else the current context)")
	flags.StringVarP(&c.environment, "env", "e", "", "`environment` (PINNACE_ENV; else the current context)")
	flags.BoolVar(&c.json, "json", false, "print one JSON document, or one a line for a stream")
	flags.BoolVar(&c.noInput, "no-input", false, "never ask; fail where an answer is needed")
	flags.BoolVar(&c.quiet, "quiet", false, "print results only, no progress")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fail(exitInvalid, fmt.Sprintf("%s --help lists the flags", cmd.CommandPath()), "%w", err)
	})

	groups := []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"write", "Write and check a manifest:", []*cobra.Command{c.newInit(), c.newImport(), c.newCheck(), c.newFmt(), c.newExplain(), c.newSchema(), c.newRelease()}},
		{"run", "Run it:", []*cobra.Command{
			c.newLocal(), c.newPlan(), c.newDeploy(), c.newRollback(), c.newPromote(), c.newPause(), c.newResume(), c.newAbort(),
			c.newWait(), c.newScale(), c.newRestart(), c.newStop(), c.newEnv(), c.newApp(), c.newVars(), c.newSecrets(), c.newRoutes(), c.newPlace(), c.newVolumes(),
		}},
		{"see", "See what happens:", []*cobra.Command{
			c.newStatus(), c.newDeployments(), c.newInstances(), c.newWhy(), c.newLogs(), c.newTop(), c.newExec(), c.newRun(), c.newPortForward(), c.newEvents(), c.newAudit(),
		}},
		{"operate", "Operate the platform:", []*cobra.Command{
			c.newDev(), c.newServer(), c.newAgent(), c.newHost(), c.newToken(), c.newContext(), c.newProxy(), c.newRegistry(), c.newImage(), c.newKernel(), c.newDoctor(), c.newVersion(),
		}},
	}
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, cmd := range g.commands {
			cmd.GroupID = g.id
			root.AddCommand(cmd)
		}
	}
	root.SetHelpCommandGroupID("operate")
	root.SetCompletionCommandGroupID("operate")
	checkArguments(root)
	c.completeNames(root)
	return root
}

// checkArguments gives wrong arguments of cmd and of those below it the status of invalid input.
func checkArguments(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		check = cobra.NoArgs
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return fail(exitInvalid, "usage: "+cmd.UseLine(), "%w", err)
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		checkArguments(sub)
	}
}

// say tells the user something on stderr, unless told to be quiet.
func (c *cli) say(format string, args ...any) {
	if !c.quiet {
		fmt.Fprintf(c.stderr, format+"\n", args...)
	}
}

// print writes a result line to stdout.
func (c *cli) print(format string, args ...any) {
	fmt.Fprintf(c.stdout, format+"\n", args...)
}

// printJSON writes v as one line of JSON.
func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// onTerminal says whether w is a terminal that shows colours.
func onTerminal(w io.Writer, getenv func(string) string) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// printable makes text that came from elsewhere safe to show: control characters cannot move the cursor
// or recolour the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) {
			return r
		}
		return '\uFFFD'
	}, s)
}
