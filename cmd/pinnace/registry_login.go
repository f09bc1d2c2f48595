package main

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// loginScope are the flags that say whose a login is.
type loginScope struct{ all bool }

func (s *loginScope) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all-environments", false, "for all environments that have none of their own, instead of one")
}

// environment is the one that a login is for; empty for all.
func (s *loginScope) environment(c *cli) (string, error) {
	_, env, err := c.client()
	switch {
	case err != nil:
		return "", err
	case s.all && c.environment != "":
		return "", fail(exitInvalid, "leave out one of them", "--env and --all-environments")
	case s.all:
		return "", nil
	case env == "":
		return "", errNoEnvironment()
	}
	return env, nil
}

func (c *cli) newRegistryLogin() *cobra.Command {
	var scope loginScope
	var username string
	cmd := &cobra.Command{
		Use:   "login HOST[:PORT]",
		Short: "Give hosts what they pull from a private registry with",
		Long: `Login keeps a user name and a password, or token, for one registry: the server seals the password as it does
secrets, and sends it to a host with what is placed there from that registry. It is good for that host
and port alone. The password is read from stdin, or asked for; it is never written on a command line.

The commands that you run yourself use docker's credentials, as before.`,
		Example: `  pinnace registry login registry.example.com --username robot -e prod < token
  pinnace registry login registry.example.com:5000 --username robot --all-environments`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := scope.environment(c)
			if err != nil {
				return err
			}
			if username == "" {
				return fail(exitInvalid, "--username NAME", "the user name is missing")
			}
			password, err := c.readPassword()
			if err != nil {
				return err
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.LoginRegistry(cmd.Context(), connect.NewRequest(&pinnacev1.LoginRegistryRequest{
				Environment: env, Registry: args[0], Username: username, Password: password, IdempotencyKey: newKey(),
			}))
			if err != nil {
				return err
			}
			switch {
			case c.json:
				return c.printProto(res.Msg)
			case res.Msg.Unchanged:
				c.say("nothing to do: that is the login")
			default:
				c.say("hosts pull from %s as %s%s", printable(args[0]), printable(username), inScope(env))
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&username, "username", "u", "", "the `name` to log in with")
	scope.add(cmd)
	return cmd
}

func inScope(env string) string {
	if env == "" {
		return " for all environments"
	}
	return " for " + printable(env)
}

// maxPassword bounds what is read as a password, in bytes. The server takes less.
const maxPassword = 64 << 10

// readPassword reads a line from stdin, or asks whoever sits there.
func (c *cli) readPassword() (string, error) {
	if in, ok := c.typing(); ok {
		b, err := c.askHidden(in, "password")
		return string(b), err
	}
	b, err := c.readStdin(maxPassword)
	if err != nil {
		return "", err
	}
	b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	if len(b) == 0 {
		return "", fail(exitInvalid, "pinnace registry login HOST --username NAME < FILE", "there is no password on stdin")
	}
	return string(b), nil
}

func (c *cli) newRegistryLogout() *cobra.Command {
	var scope loginScope
	cmd := &cobra.Command{
		Use:     "logout HOST[:PORT]",
		Short:   "Forget what hosts pull from a registry with",
		Example: "  pinnace registry logout registry.example.com -e prod",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.loginRegistries),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := scope.environment(c)
			if err != nil {
				return err
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.LogoutRegistry(cmd.Context(), connect.NewRequest(&pinnacev1.LogoutRegistryRequest{Environment: env, Registry: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("hosts pull from %s without it%s", printable(args[0]), inScope(env))
			return nil
		},
	}
	scope.add(cmd)
	return cmd
}

func (c *cli) newRegistryList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List what hosts pull with, without passwords",
		Long:    "List shows the logins of an environment with those that are good for all of them; everything where none is chosen.",
		Example: "  pinnace registry list\n  pinnace registry list -e prod",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, env, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.ListRegistryLogins(cmd.Context(), connect.NewRequest(&pinnacev1.ListRegistryLoginsRequest{Environment: env}))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "REGISTRY\tENVIRONMENT\tUSER\tSET\tBY", func(w io.Writer) {
				for _, l := range res.Msg.Logins {
					where := "all"
					if l.Environment != "" {
						where = printable(l.Environment)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(l.Registry), where, printable(l.Username), moment(l.SetAt), printable(l.SetBy))
				}
			})
		},
	}
}

// loginRegistries are the registries that there is a login at.
func (c *cli) loginRegistries(ctx context.Context) []cobra.Completion {
	client, env, err := c.client()
	if err != nil {
		return nil
	}
	res, err := client.ListRegistryLogins(ctx, connect.NewRequest(&pinnacev1.ListRegistryLoginsRequest{Environment: env}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, l := range res.Msg.Logins {
		words = append(words, l.Registry)
	}
	return words
}
