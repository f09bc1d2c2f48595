package main

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newDeployments() *cobra.Command {
	var last uint32
	cmd := &cobra.Command{
		Use:   "deployments [APP]",
		Short: "List what was deployed, the newest first",
		Long: `Deployments lists what was deployed to an environment, by whom, and how it ended. Each can be gone back
to: pinnace rollback APP --to DEPLOYMENT.`,
		Example: "  pinnace deployments\n  pinnace deployments hello --last 5",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			req := &pinnacev1.ListDeploymentsRequest{Environment: env, PageSize: last}
			if len(args) == 1 {
				req.App = args[0]
			}
			res, err := client.ListDeployments(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if c.json {
				res.Msg.NextPageToken = ""
				return c.printProto(res.Msg)
			}
			if len(res.Msg.Deployments) == 0 {
				c.say("nothing was deployed to %s", env)
				return nil
			}
			return c.table("DEPLOYMENT\tAPP\tKIND\tRELEASE\tCOUNT\tSTATE\tSTARTED\tBY\tREASON", func(w io.Writer) {
				for _, d := range res.Msg.Deployments {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", d.Id, d.App, d.Kind, shortRelease(d.Release), d.Count, d.State,
						clock(d.StartedAt), printable(d.Actor), printable(d.Reason))
				}
			})
		},
	}
	cmd.Flags().Uint32Var(&last, "last", 0, "only the last ones, 1000 at most; 0 is all")
	return cmd
}
