package main

import (
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newHostJoinToken() *cobra.Command {
	var expires time.Duration
	cmd := &cobra.Command{
		Use:   "join-token [HOST]",
		Short: "Let one host join",
		Long: `Join-token prints a secret with which one agent joins, once. The agent makes a key, and gets a
certificate for it.

With the name of a host it is for that host alone, also when it is known already: the host gets a new
identity, and the one that it had ends. That is for a machine that was installed anew, or revoked.
Without, it is for any host that is not known yet.`,
		Example: `  pinnace host join-token > join.token
  pinnace host join-token h2 --expires 10m`,
		Args: cobra.MaximumNArgs(1),

		ValidArgsFunction: c.complete(c.hosts),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			req := &pinnacev1.CreateJoinTokenRequest{ExpiresInSeconds: int64(expires / time.Second), IdempotencyKey: newKey()}
			if len(args) > 0 {
				req.Host = args[0]
			}
			res, err := client.CreateJoinToken(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.print("%s", res.Msg.Secret)
			c.say("it lets one host join, until %s: pinnace agent --agent-server https://SERVER:7401 --token-file FILE", clock(res.Msg.ExpiresAt))
			return nil
		},
	}
	cmd.Flags().DurationVar(&expires, "expires", time.Hour, "for how long it is good, a week at most")
	return cmd
}

func (c *cli) newHostRevoke() *cobra.Command {
	var confirm string
	cmd := &cobra.Command{
		Use:   "revoke HOST",
		Short: "End the identity of a host",
		Long: `Revoke ends what a host may do, within seconds, also while it is connected. It stays known, and what
it ran is started elsewhere as when it is away; instances with volumes wait. "pinnace host join-token
HOST" lets it in again, "pinnace host remove HOST" forgets it.`,
		Example: "  pinnace host revoke h2 --confirm h2",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.hosts),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			if err := c.confirm("this cuts host "+args[0]+" off", args[0], confirm); err != nil {
				return err
			}
			_, err = client.RevokeHost(cmd.Context(), connect.NewRequest(&pinnacev1.RevokeHostRequest{Host: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			c.say("host %s is not admitted any more", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&confirm, "confirm", "", "the host's name, in place of being asked for it")
	return cmd
}
