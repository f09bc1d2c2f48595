package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *cli) newPause() *cobra.Command {
	return c.steering("pause APP", "Leave a deployment that is under way as it is", `Pause has the server start and stop nothing for the deployment of an app until it is resumed or aborted. What
runs goes on, and no deadline passes.`, pinnacev1.Steering_STEERING_PAUSE, "paused")
}

func (c *cli) newResume() *cobra.Command {
	return c.steering("resume APP", "Go on with a paused deployment", "", pinnacev1.Steering_STEERING_RESUME, "goes on")
}

func (c *cli) newAbort() *cobra.Command {
	return c.steering("abort APP", "Turn a deployment that is under way back", `Abort turns the deployment of an app back to what served before, as a failure would. The deploy that
waits for it ends with status 7.`, pinnacev1.Steering_STEERING_ABORT, "is turned back")
}

// steering is a command that intervenes in an app's deployment.
func (c *cli) steering(use, short, long string, what pinnacev1.Steering, done string) *cobra.Command {
	name := use[:len(use)-len(" APP")]
	return &cobra.Command{
		Use:     use,
		Short:   short,
		Long:    long,
		Example: "  pinnace " + name + " api",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.Steer(cmd.Context(), connect.NewRequest(&pinnacev1.SteerRequest{Environment: env, App: args[0], Steering: what, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg.Deployment)
			}
			c.say("deployment %s of %s %s", res.Msg.Deployment.Id, args[0], done)
			return nil
		},
	}
}

func (c *cli) newRestart() *cobra.Command {
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:     "restart APP",
		Short:   "Replace all instances of what is live",
		Long:    `Restart deploys what is live once more, with the same variables, by the manifest's strategy.`,
		Example: "  pinnace restart api",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.rollout(cmd, &wait, func(ctx context.Context, client pinnacev1connect.ControlServiceClient, env string) (*pinnacev1.Deployment, error) {
				res, err := client.Restart(ctx, connect.NewRequest(&pinnacev1.RestartRequest{Environment: env, App: args[0], IdempotencyKey: newKey()}))
				if err != nil {
					return nil, err
				}
				return res.Msg.Deployment, nil
			})
		},
	}
	wait.add(cmd)
	return cmd
}

func (c *cli) newWait() *cobra.Command {
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "wait APP",
		Short: "Wait until no deployment of an app is under way",
		Long: `Wait follows the deployment of an app that is under way, and ends with the status that deploy would. When
none is, the last one counts.`,
		Example: "  pinnace deploy --no-wait …; pinnace wait api --timeout 5m",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.GetStatus(cmd.Context(), connect.NewRequest(&pinnacev1.GetStatusRequest{Environment: env, App: args[0]}))
			if err != nil {
				return err
			}
			app := res.Msg.Apps[0]
			if app.Active != nil {
				return wait.follow(cmd.Context(), c, client, app.Active)
			}
			if c.json {
				if err := c.printProto(app.Latest); err != nil {
					return err
				}
			}
			return c.outcome(app.Latest)
		},
	}
	cmd.Flags().DurationVar(&wait.timeout, "timeout", 0, "how long to wait at most; 0 is as long as it takes")
	return cmd
}

func (c *cli) newPromote() *cobra.Command {
	var from, to string
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "promote APP --from ENV --to ENV",
		Short: "Deploy what is live in one environment to another",
		Long: `Promote deploys the Release that is live in one environment to another one, unchanged: the same image and
the same manifest, with the count, variables and secrets of the environment that it goes to.`,
		Example: "  pinnace promote api --from staging --to prod",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			if from == "" || to == "" {
				return fail(exitInvalid, "pinnace promote "+args[0]+" --from staging --to prod", "--from and --to are required")
			}
			client, _, err := c.client()
			if err != nil {
				return err
			}
			rel, err := c.liveIn(cmd.Context(), from, args[0])
			if err != nil {
				return err
			}
			c.say("%s is live in %s", release.ID(rel).Short(), from)
			res, err := client.Deploy(cmd.Context(), connect.NewRequest(&pinnacev1.DeployRequest{Environment: to, Release: rel, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if res.Msg.Unchanged {
				c.say("nothing to do: %s is live in %s, too", release.ID(rel).Short(), to)
				if c.json {
					return c.printProto(res.Msg.Deployment)
				}
				return nil
			}
			return wait.follow(cmd.Context(), c, client, res.Msg.Deployment)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "`environment` whose live Release is meant (required)")
	cmd.Flags().StringVar(&to, "to", "", "`environment` that it is deployed to (required)")
	wait.add(cmd)
	return cmd
}

// liveIn is the Release of an app that is live in an environment.
func (c *cli) liveIn(ctx context.Context, environment, app string) (string, error) {
	client, _, err := c.client()
	if err != nil {
		return "", err
	}
	res, err := client.GetStatus(ctx, connect.NewRequest(&pinnacev1.GetStatusRequest{Environment: environment, App: app}))
	if err != nil {
		return "", err
	}
	if rel := res.Msg.Apps[0].Release; rel != "" {
		return rel, nil
	}
	return "", fail(exitConflict, fmt.Sprintf("pinnace status -e %s", environment), "nothing of %s is live in %s", app, environment)
}
