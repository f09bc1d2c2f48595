package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newSecretsEdit() *cobra.Command {
	var later bool
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "edit BUNDLE",
		Short: "Set keys of a bundle in an editor",
		Long: `Edit opens $VISUAL or $EDITOR with a file of lines KEY=VALUE, in a directory in memory that only you
can enter ($XDG_RUNTIME_DIR, or /dev/shm). The file is gone when the editor ends. It does not begin with the
values that there are: they never leave the server but for hosts. Keys that you don't set stay as they are.`,
		Example: "  pinnace secrets edit api -e prod",
		Args:    bundleOnly,

		ValidArgsFunction: c.complete(c.bundleNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pinnacev1.PutSecretRequest{Bundle: args[0], NoDeploy: later}
			if c.noInput {
				return fail(exitInvalid, "pinnace secrets put reads stdin or a file", "--no-input forbids an editor")
			}
			known, err := c.bundle(cmd.Context(), args[0])
			if err != nil && connect.CodeOf(err) != connect.CodeNotFound {
				return err
			}
			if err == nil {
				req.BaseVersion = known.GetNewest().GetVersion()
			} else if known, err = c.newBundle(args[0]); err != nil {
				return err
			}
			if req.Set, err = c.editSecrets(cmd.Context(), known); err != nil {
				return err
			}
			if len(req.Set) == 0 {
				c.say("nothing to do: no key was set")
				return nil
			}
			return c.putSecret(cmd.Context(), req, &wait)
		},
	}
	cmd.Flags().BoolVar(&later, "later", false, "leave what runs as it is until its next deployment")
	wait.add(cmd)
	return cmd
}

// newBundle is a bundle that there is not yet, in an environment that is chosen.
func (c *cli) newBundle(name string) (*pinnacev1.SecretBundle, error) {
	_, env, err := c.clientIn()
	return &pinnacev1.SecretBundle{Environment: env, Name: name}, err
}

// editSecrets has somebody set keys in an editor.
func (c *cli) editSecrets(ctx context.Context, b *pinnacev1.SecretBundle) (set map[string][]byte, err error) {
	editor := strings.Fields(c.getenv("VISUAL"))
	if len(editor) == 0 {
		editor = strings.Fields(c.getenv("EDITOR"))
	}
	if len(editor) == 0 {
		return nil, fail(exitInvalid, "EDITOR=vi pinnace secrets edit "+b.Name, "neither VISUAL nor EDITOR says which editor to use")
	}
	dir, err := privateMemory(c.getenv("XDG_RUNTIME_DIR"), "/dev/shm")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	path := filepath.Join(dir, b.Name+".env")
	if err := os.WriteFile(path, editText(b), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, editor[0], append(editor[1:], path)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.stdin, c.stdout, c.stderr
	if err := cmd.Run(); err != nil {
		return nil, fail(exitInvalid, "nothing was changed", "the editor %s: %w", editor[0], err)
	}
	text, err := readBounded(path, maxInputFile)
	if err != nil {
		return nil, err
	}
	set, err = parseBundle(b.Name, text)
	if err != nil {
		return nil, fail(exitInvalid, dotenvHint+"; nothing was changed", "%w", err)
	}
	return set, nil
}

// editText is what the file begins with.
func editText(b *pinnacev1.SecretBundle) []byte {
	var text strings.Builder
	fmt.Fprintf(&text, "# Keys of the bundle %s of %s, as lines of KEY=VALUE. What is not set here stays as it is.\n", b.Name, printable(b.Environment))
	fmt.Fprintln(&text, "# A value in double quotes may have \\n in it; one in single quotes is taken as it is.")
	if b.Newest != nil {
		fmt.Fprintf(&text, "# Version %d has:\n", b.Newest.Version)
		for _, key := range b.Newest.Keys {
			fmt.Fprintf(&text, "#%s=\n", printable(key))
		}
	}
	return []byte(text.String())
}

// privateMemory makes a directory that only this user can enter, in the first of the places that is in memory.
func privateMemory(places ...string) (string, error) {
	for _, place := range places {
		var st unix.Statfs_t
		if place == "" || unix.Statfs(place, &st) != nil || st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
			continue
		}
		dir := filepath.Join(place, "pinnace-"+rand.Text())
		if err := os.Mkdir(dir, 0o700); err == nil {
			return dir, nil
		}
	}
	return "", fail(exitInvalid, "pinnace secrets put reads stdin", "there is no place in memory for the file that an editor needs: neither $XDG_RUNTIME_DIR nor /dev/shm is one that can be written to")
}
