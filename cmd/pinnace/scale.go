package main

import (
	"context"
	"strconv"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

func (c *cli) newScale() *cobra.Command {
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "scale APP COUNT",
		Short: "Change how many instances an app has",
		Long: `Scale starts instances of what is live, or stops those with the highest ordinals. What runs, runs
on. Like a deployment it is gated: when the new instances don't become ready, they go again and the
count stays what it was. Later deployments have the new count.`,
		Example: "  pinnace scale api 3",
		Args:    cobra.ExactArgs(2),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			count, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return fail(exitInvalid, "pinnace scale "+args[0]+" 3", "%q is not a number of instances", args[1])
			}
			return c.rollout(cmd, &wait, func(ctx context.Context, client pinnacev1connect.ControlServiceClient, env string) (*pinnacev1.Deployment, error) {
				res, err := client.Scale(ctx, connect.NewRequest(&pinnacev1.ScaleRequest{
					Environment: env, App: args[0], Count: uint32(count), IdempotencyKey: newKey(),
				}))
				switch {
				case err != nil:
					return nil, err
				case !res.Msg.Unchanged:
					return res.Msg.Deployment, nil
				}
				c.say("nothing to do: %s has %s", args[0], plural(int(count), "instance"))
				if c.json {
					return nil, c.printProto(res.Msg.Deployment)
				}
				return nil, nil //nolint:nilnil // nothing was started
			})
		},
	}
	wait.add(cmd)
	return cmd
}
