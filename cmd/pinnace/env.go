package main

import (
	"crypto/rand"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newEnv() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "env",
		Short: "Create, list, bound and destroy environments",
		Long: `An environment is the isolation domain: its own private network, and settings of its own. No
microVM, namespace, secret or volume is ever shared between two.`,
	}
	create := &cobra.Command{
		Use:     "create NAME",
		Short:   "Create an environment",
		Example: "  pinnace env create staging",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.CreateEnvironment(cmd.Context(), connect.NewRequest(
				&pinnacev1.CreateEnvironmentRequest{Name: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg.Environment)
			}
			c.say("created environment %s", res.Msg.Environment.Name)
			return nil
		},
	}
	list := &cobra.Command{
		Use:   "list",
		Short: "List environments",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.ListEnvironments(cmd.Context(), connect.NewRequest(&pinnacev1.ListEnvironmentsRequest{}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			for _, e := range res.Msg.Environments {
				c.print("%s  created %s", e.Name, e.CreatedAt.AsTime().UTC().Format(time.DateTime))
			}
			return nil
		},
	}
	cmd.AddCommand(create, list, c.newEnvQuota(), c.newEnvDestroy())
	return cmd
}

// newKey makes the idempotency key of one command: a call that is repeated because its answer was lost
// carries the same one and takes effect once.
func newKey() string { return rand.Text() }
