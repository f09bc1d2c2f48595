package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/identity"
)

func (c *cli) newContext() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Choose the server to talk to",
		Long: `A context is a server with a token for it, in ~/.config/pinnace/config.toml, which only you can read.
PINNACE_SERVER, PINNACE_TOKEN and PINNACE_ENV go before it.

A server with TLS is known by the fingerprint of its authority, which its tokens carry; or by the
fingerprint or file (PEM) in PINNACE_CA, or in the context with --ca; or by what the system trusts.`,
	}
	cmd.AddCommand(c.newContextAdd(), c.newContextList(), c.newContextUse(), c.newContextRemove())
	return cmd
}

func (c *cli) newContextAdd() *cobra.Command {
	var tokenFile, ca string
	cmd := &cobra.Command{
		Use:   "add NAME --server URL",
		Short: "Add a server and use it from now on",
		Long: `Add asks the server whether the token is good, and keeps both. The token comes from --token-file
("-" is stdin) or PINNACE_TOKEN. A context of the same name is replaced.`,
		Example: `  pinnace context add prod --server https://pinnace.example:7400 --token-file ci.token -e production
  pinnace token create ada --role admin --all | pinnace context add ada --server https://10.0.0.1:7400 --token-file -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := c.configPath()
			if err != nil {
				return fail(exitInvalid, "", "%w", err)
			}
			if c.server == "" {
				return fail(exitInvalid, "it looks like https://pinnace.example:7400", "--server is required")
			}
			given, err := c.givenToken(tokenFile)
			if err != nil {
				return err
			}
			if ca != "" {
				if _, err := identity.ParseFingerprint(ca); err != nil {
					if ca, err = filepath.Abs(ca); err != nil {
						return err
					}
				}
			}
			entry := userContext{Server: c.server, Token: given, Environment: c.environment, CA: ca}
			if err := c.tryContext(cmd.Context(), entry); err != nil {
				return err
			}
			if err := saveContext(path, args[0], entry, nil); err != nil {
				return err
			}
			c.say("using %s: %s", args[0], c.server)
			return nil
		},
	}
	cmd.Flags().StringVar(&tokenFile, "token-file", "", `file with the token; "-" is stdin (default: PINNACE_TOKEN)`)
	cmd.Flags().StringVar(&ca, "ca", "", "fingerprint or file (PEM) of the authority of the server's certificate, when the token has none")
	return cmd
}

// givenToken reads a token for a context.
func (c *cli) givenToken(file string) (string, error) {
	text := c.token
	switch {
	case file == "-":
		b, err := io.ReadAll(io.LimitReader(c.stdin, 4096))
		if err != nil {
			return "", err
		}
		text = string(b)
	case file != "":
		b, err := os.ReadFile(file)
		if err != nil {
			return "", fail(exitInvalid, "", "read the token: %w", err)
		}
		text = string(b)
	case text == "":
		text = c.getenv("PINNACE_TOKEN")
	}
	secret, pin, err := identity.ParseSecret(text)
	if err != nil {
		return "", fail(exitInvalid, "give it with --token-file FILE, or PINNACE_TOKEN", "no token was given: %w", err)
	}
	return secret.WithPin(pin), nil
}

// tryContext asks the server of a context for a sign of life.
func (c *cli) tryContext(ctx context.Context, entry userContext) error {
	env := map[string]string{"PINNACE_CA": entry.CA}
	tried := *c
	tried.server, tried.token = entry.Server, entry.Token
	tried.getenv = func(name string) string {
		if value, ok := env[name]; ok && value != "" {
			return value
		}
		return c.getenv(name)
	}
	client, _, err := tried.client()
	if err != nil {
		return err
	}
	_, err = client.GetServerInfo(ctx, connect.NewRequest(&pinnacev1.GetServerInfoRequest{}))
	return err
}

func (c *cli) newContextList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the servers that you know",
		RunE: func(*cobra.Command, []string) error {
			_, cfg, err := c.contexts()
			if err != nil {
				return err
			}
			names := slices.Sorted(maps.Keys(cfg.Contexts))
			if c.json {
				out := []map[string]any{}
				for _, name := range names {
					entry := cfg.Contexts[name]
					out = append(out, map[string]any{"name": name, "server": entry.Server, "environment": entry.Environment, "current": name == cfg.Current})
				}
				return c.printJSON(map[string]any{"contexts": out})
			}
			w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "\tNAME\tSERVER\tENVIRONMENT")
			for _, name := range names {
				mark := ""
				if name == cfg.Current {
					mark = "*"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, printable(name), printable(cfg.Contexts[name].Server), printable(cfg.Contexts[name].Environment))
			}
			return w.Flush()
		},
	}
}

func (c *cli) newContextUse() *cobra.Command {
	return &cobra.Command{
		Use:     "use NAME",
		Short:   "Use another server from now on",
		Example: "  pinnace context use prod",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.contextNames),
		RunE: func(_ *cobra.Command, args []string) error {
			path, cfg, err := c.contexts()
			if err != nil {
				return err
			}
			if _, ok := cfg.Contexts[args[0]]; !ok {
				return fail(exitNotFound, "pinnace context list shows those that there are", "there is no context %q", args[0])
			}
			cfg.Current = args[0]
			return writeConfig(path, cfg, nil)
		},
	}
}

func (c *cli) newContextRemove() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Forget a server and the token for it",
		Long:  `Remove forgets a context. The token is good until it is revoked (pinnace token revoke).`,
		Args:  cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.contextNames),
		RunE: func(_ *cobra.Command, args []string) error {
			path, cfg, err := c.contexts()
			if err != nil {
				return err
			}
			if _, ok := cfg.Contexts[args[0]]; !ok {
				return fail(exitNotFound, "pinnace context list shows those that there are", "there is no context %q", args[0])
			}
			delete(cfg.Contexts, args[0])
			if cfg.Current == args[0] {
				cfg.Current = ""
			}
			return writeConfig(path, cfg, nil)
		},
	}
}

func (c *cli) contexts() (string, userConfig, error) {
	path, err := c.configPath()
	if err != nil {
		return "", userConfig{}, fail(exitInvalid, "", "%w", err)
	}
	cfg, err := readConfig(path)
	return path, cfg, err
}

func (c *cli) contextNames(context.Context) []cobra.Completion {
	_, cfg, err := c.contexts()
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for name, entry := range cfg.Contexts {
		words = append(words, cobra.CompletionWithDesc(name, entry.Server))
	}
	return words
}
