package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Let people and scripts in",
		Long: `A token lets somebody call the API, with a role:
  viewer    sees what there is, logs included
  deployer  changes what runs: deploys, rolls back, scales, sets variables and secrets, runs commands
  admin     decides what there is at all, and who may do what
It is for all environments, or for some: whoever has it sees nothing of the others. Hosts and new
environments take a token for all.

The server keeps the hash of a token only. A token comes to the command line by PINNACE_TOKEN or a
context (pinnace context add), and need not be an argument, where others can see it.`,
	}
	cmd.AddCommand(c.newTokenCreate(), c.newTokenList(), c.newTokenRevoke())
	return cmd
}

func (c *cli) newTokenCreate() *cobra.Command {
	req := &pinnacev1.CreateTokenRequest{}
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a token",
		Long: `Create prints a new token, once: it is kept nowhere. It allows at most what the token allows that
makes it. A name is free again when its token was revoked or has expired.`,
		Example: `  pinnace token create ci --role deployer --for staging --expires 720h > ci.token
  pinnace token create ada --role admin --all`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.AllEnvironments == (len(req.Environments) > 0) {
				return fail(exitInvalid, "--for staging, or --all", "say for which environments it is")
			}
			if expires < 0 || expires%time.Second != 0 {
				return fail(exitInvalid, "it looks like 720h", "--expires %s is not a number of whole seconds", expires)
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			req.Name, req.ExpiresInSeconds, req.IdempotencyKey = args[0], int64(expires/time.Second), newKey()
			res, err := client.CreateToken(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.print("%s", res.Msg.Secret)
			c.say("token %s (%s): %s for %s, %s. It is not shown again", res.Msg.Token.Name, res.Msg.Token.Id, res.Msg.Token.Role,
				tokenScope(res.Msg.Token), tokenEnd(res.Msg.Token))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&req.Role, "role", "viewer", "viewer, deployer or admin")
	flags.StringSliceVar(&req.Environments, "for", nil, "an environment that it is for (repeat it)")
	flags.BoolVar(&req.AllEnvironments, "all", false, "it is for all environments")
	flags.DurationVar(&expires, "expires", 0, "for how long it is good (default: until it is revoked)")
	c.completeFlag(cmd, "role", func(context.Context) []cobra.Completion { return []cobra.Completion{"viewer", "deployer", "admin"} })
	c.completeFlag(cmd, "for", c.environments)
	return cmd
}

// completeFlag completes a flag with the words that there are.
func (c *cli) completeFlag(cmd *cobra.Command, flag string, words func(context.Context) []cobra.Completion) {
	// It fails only when there is no such flag, and there is.
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return c.complete(words)(cmd, nil, word)
	})
}

func (c *cli) newTokenList() *cobra.Command {
	req := &pinnacev1.ListTokensRequest{}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List tokens",
		Long: `List shows the tokens for environments that yours is for. When one was used last is known
to the minute: a server that is killed forgets what it had not saved yet, and what another server of the
same database has seen shows within two minutes.`,
		Example: "  pinnace token list --all",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.ListTokens(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "NAME\tID\tROLE\tFOR\tSTATE\tLAST USED\tMADE BY", func(w io.Writer) {
				for _, t := range res.Msg.Tokens {
					used := "-"
					if t.LastUsedAt != nil {
						used = clock(t.LastUsedAt)
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", printable(t.Name), printable(t.Id), printable(t.Role), printable(tokenScope(t)),
						tokenEnd(t), used, printable(t.CreatedBy))
				}
			})
		},
	}
	cmd.Flags().BoolVar(&req.All, "all", false, "also those that were revoked or have expired")
	return cmd
}

func (c *cli) newTokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke TOKEN",
		Short: "End a token, by its name or id",
		Long: `Revoke ends a token at once, and within seconds what is being done with it. The last admin token for
all environments cannot be revoked.`,
		Example: "  pinnace token revoke ci",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.tokens),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.RevokeToken(cmd.Context(), connect.NewRequest(&pinnacev1.RevokeTokenRequest{Token: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("revoked token %s (%s)", res.Msg.Token.Name, res.Msg.Token.Id)
			return nil
		},
	}
}

func tokenScope(t *pinnacev1.Token) string {
	if t.AllEnvironments {
		return "all environments"
	}
	return strings.Join(t.Environments, ",")
}

func tokenEnd(t *pinnacev1.Token) string {
	switch {
	case t.RevokedAt != nil:
		return "revoked " + day(t.RevokedAt)
	case t.ExpiresAt == nil:
		return "does not expire"
	case t.ExpiresAt.AsTime().Before(time.Now()):
		return "expired " + day(t.ExpiresAt)
	}
	return "expires " + day(t.ExpiresAt)
}

func day(t *timestamppb.Timestamp) string { return t.AsTime().UTC().Format("2006-01-02 15:04Z") }

// tokens are the tokens that can be revoked.
func (c *cli) tokens(ctx context.Context) []cobra.Completion {
	client, _, err := c.client()
	if err != nil {
		return nil
	}
	res, err := client.ListTokens(ctx, connect.NewRequest(&pinnacev1.ListTokensRequest{}))
	if err != nil {
		return nil
	}
	var words []cobra.Completion
	for _, t := range res.Msg.Tokens {
		words = append(words, cobra.CompletionWithDesc(t.Name, t.Role+" for "+tokenScope(t)))
	}
	return words
}
