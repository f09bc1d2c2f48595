package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/local"
)

func (c *cli) newLocalExec() *cobra.Command {
	var opts execOptions
	var dirs directories
	cmd := &cobra.Command{
		Use:   "exec [-it] NAME -- COMMAND [ARG...]",
		Short: "Run a command in what runs locally, beside its process",
		Long: `Exec runs a command in the microVM of a "pinnace local" that runs in another terminal: as the process's
user, in its directory, with its environment and within its limits. Flags of exec come before NAME.
"pinnace exec --help" has the rest, and the exit statuses.`,
		Example: "  pinnace local exec -it hello -- sh\n  pinnace local exec hello -- cat /etc/hosts",
		Args:    cobra.ArbitraryArgs, // exec tells of its own, with its own status

		ValidArgsFunction: completeLocal(&dirs),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.execStatus(c.exec(cmd.Context(), opts, args, func(name string) (*execPath, error) { return execLocally(dirs, name) }))
		},
	}
	c.addExec(cmd, &opts)
	dirs.add(cmd)
	return cmd
}

// execLocally is the way of commands in what runs under a name.
func execLocally(dirs directories, name string) (*execPath, error) {
	away := fail(exitNotFound, "pinnace local ls lists what runs", "nothing of the name %q runs locally", printable(name))
	if !localName.MatchString(name) {
		return nil, away
	}
	socket := execSocket(localRun(dirs, name))
	switch _, err := os.Stat(socket); {
	case errors.Is(err, fs.ErrPermission):
		return nil, fail(exitDenied, "run it with sudo", "%w", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, away
	case err != nil:
		return nil, err
	}
	return &execPath{local.Dial(socket), localEnvironment, away}, nil
}

// execSocket is where a run takes commands.
func execSocket(runDir string) string { return filepath.Join(runDir, "exec.sock") }
