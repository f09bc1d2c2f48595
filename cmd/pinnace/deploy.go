package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/release"
)

// deployFlags are what deploy and plan share.
type deployFlags struct {
	file, image string
}

func (f *deployFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.file, "file", "f", manifestName, "the manifest, with --image")
	cmd.Flags().StringVar(&f.image, "image", "", "create the Release of this image first")
}

// release is the Release that the arguments name, made first when an image was given.
func (f *deployFlags) release(ctx context.Context, c *cli, args []string) (string, error) {
	switch {
	case len(args) == 1 && f.image != "":
		return "", fail(exitInvalid, "", "name a Release or an --image, not both")
	case len(args) == 1:
		return args[0], nil
	case f.image == "":
		return "", fail(exitInvalid, "pinnace deploy REL, or pinnace deploy --image registry.example.com/name:tag", "deploy what?")
	}
	res, err := c.createRelease(ctx, f.file, f.image)
	if err != nil {
		return "", err
	}
	return res.Release.Id, nil
}

func (c *cli) newDeploy() *cobra.Command {
	var flags deployFlags
	var plan string
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "deploy [RELEASE | --image REFERENCE [-f FILE]]",
		Short: "Run a Release in an environment",
		Long: `Deploy replaces what runs of the app with a Release, instance by instance, as the manifest's
[rollout] says, and prints one line for every transition. When an instance of the new Release
fails, the previous one is restored, unless the manifest says on_failure = "pause".

Interrupting this command does not stop the rollout; the server goes on.

Exit status: 0 it serves, 5 another deployment is running, 7 it failed and the previous
Release serves, 8 it failed and nothing could be restored, 9 the wait timed out.`,
		Example: `  pinnace deploy --image 127.0.0.1:5000/hello:v1
  pinnace deploy rel-0123456789ab -e staging`,
		Args: cobra.MaximumNArgs(1),

		ValidArgsFunction: c.complete(c.releases),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			rel, err := flags.release(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			res, err := client.Deploy(cmd.Context(), connect.NewRequest(&pinnacev1.DeployRequest{
				Environment: env, Release: rel, PlanToken: plan, IdempotencyKey: newKey(),
			}))
			if err != nil {
				return err
			}
			if res.Msg.Unchanged {
				c.say("nothing to do: %s is live in %s", release.ID(res.Msg.Deployment.Release).Short(), env)
				if c.json {
					return c.printProto(res.Msg.Deployment)
				}
				return nil
			}
			return wait.follow(cmd.Context(), c, client, res.Msg.Deployment)
		},
	}
	flags.add(cmd)
	wait.add(cmd)
	cmd.Flags().StringVar(&plan, "plan", "", "deploy only if this plan's token is still current")
	return cmd
}

func (c *cli) newPlan() *cobra.Command {
	var flags deployFlags
	var exitCode bool
	cmd := &cobra.Command{
		Use:   "plan [RELEASE | --image REFERENCE [-f FILE]]",
		Short: "Say what deploy would do, and do nothing",
		Args:  cobra.MaximumNArgs(1),

		ValidArgsFunction: c.complete(c.releases),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			rel, err := flags.release(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			res, err := client.Plan(cmd.Context(), connect.NewRequest(&pinnacev1.PlanRequest{
				Environment: env, Target: &pinnacev1.PlanRequest_Release{Release: rel},
			}))
			if err != nil {
				return err
			}
			if c.json {
				if err := c.printProto(res.Msg); err != nil {
					return err
				}
			} else {
				c.printPlan(res.Msg)
			}
			if exitCode && res.Msg.Changes {
				return errReported{exitChanges}
			}
			return nil
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 10 when there is something to do")
	return cmd
}

func (c *cli) printPlan(plan *pinnacev1.PlanResponse) {
	for _, w := range plan.Warnings {
		c.say("warning: %s", w)
	}
	if !plan.Changes {
		c.print("nothing to do: %s is live", release.ID(plan.Release).Short())
		return
	}
	live := "nothing"
	if plan.LiveRelease != "" {
		live = release.ID(plan.LiveRelease).Short()
	}
	c.print("%s replaces %s:", release.ID(plan.Release).Short(), live)
	for i, s := range plan.Steps {
		c.print("%3d. %s", i+1, s.Text)
	}
	c.print("plan %s", plan.Token)
}

func (c *cli) newRollback() *cobra.Command {
	var to string
	var secrets secretsOf
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "rollback APP",
		Short: "Run what an earlier deployment ran, exactly",
		Long: `Rollback starts a deployment with the Release and the variables of an earlier one: the last
good one before the live one, or the one named by --to. It needs no registry when the image is
still in the hosts' caches.

Secrets are those that the earlier deployment had, or the newest with --secrets=now, which is for when
those were revoked. The next deployment has the newest in any case.`,
		Example: "  pinnace rollback hello\n  pinnace rollback hello --to dep-0123456789ab",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.rollout(cmd, &wait, func(ctx context.Context, client pinnacev1connect.ControlServiceClient, env string) (*pinnacev1.Deployment, error) {
				res, err := client.Rollback(ctx, connect.NewRequest(&pinnacev1.RollbackRequest{
					Environment: env, App: args[0], Deployment: to, Secrets: string(secrets), IdempotencyKey: newKey(),
				}))
				if err != nil {
					return nil, err
				}
				return res.Msg.Deployment, nil
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the `deployment` to go back to")
	secrets.add(cmd)
	wait.add(cmd)
	return cmd
}

func (c *cli) newStop() *cobra.Command {
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:     "stop APP",
		Short:   "Stop all instances of an app; deploy or rollback start it again",
		Example: "  pinnace stop hello",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.rollout(cmd, &wait, func(ctx context.Context, client pinnacev1connect.ControlServiceClient, env string) (*pinnacev1.Deployment, error) {
				res, err := client.Stop(ctx, connect.NewRequest(&pinnacev1.StopRequest{
					Environment: env, App: args[0], IdempotencyKey: newKey(),
				}))
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

// rolloutWait is how long a command follows the deployment that it has started.
type rolloutWait struct {
	none    bool
	timeout time.Duration
}

func (w *rolloutWait) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.none, "no-wait", false, "return when the server has accepted it")
	cmd.Flags().DurationVar(&w.timeout, "timeout", 0, "how long to wait at most; 0 is as long as it takes")
}

// follow prints the transitions of a deployment until it has ended, and turns its end into an error.
func (w *rolloutWait) follow(ctx context.Context, c *cli, client pinnacev1connect.ControlServiceClient, d *pinnacev1.Deployment) error {
	last, err := w.toItsEnd(ctx, c, client, d)
	if err != nil {
		return err
	}
	if c.json {
		if err := c.printProto(last); err != nil {
			return err
		}
	}
	if w.none {
		return nil
	}
	return c.outcome(last)
}

// followAll follows the deployments that came of one request, one after the other. With --json it prints the answer to the
// request, in which they are, as they have ended: one document. When several fail, the error is that of the first.
func (w *rolloutWait) followAll(ctx context.Context, c *cli, client pinnacev1connect.ControlServiceClient, answer proto.Message, deployments []*pinnacev1.Deployment) error {
	var failed error
	for n, d := range deployments {
		last, err := w.toItsEnd(ctx, c, client, d)
		if err == nil && !w.none {
			err = c.outcome(last)
		}
		if last != nil {
			deployments[n] = last
		}
		failed = cmp.Or(failed, err)
	}
	if c.json {
		err := c.printProto(answer) // also of those that failed
		failed = cmp.Or(failed, err)
	}
	return failed
}

// toItsEnd prints the transitions of a deployment until it has ended, and returns it as it is then. Where nobody waits, it
// is as it was.
func (w *rolloutWait) toItsEnd(ctx context.Context, c *cli, client pinnacev1connect.ControlServiceClient, d *pinnacev1.Deployment) (*pinnacev1.Deployment, error) {
	c.say("deployment %s of %s: %s", d.Id, d.App, d.Kind)
	if w.none {
		if !c.json {
			c.print("%s", d.Id)
		}
		return d, nil
	}
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.timeout)
		defer cancel()
	}
	last, err := c.watch(ctx, client, d)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fail(exitWaitTimedOut, "pinnace status shows how far it is", "%s is still running after %s", d.Id, w.timeout)
	}
	return last, err
}

// watch prints the transitions and returns the deployment as it ended. A connection that breaks is made
// again: the rollout is the server's and goes on meanwhile.
func (c *cli) watch(ctx context.Context, client pinnacev1connect.ControlServiceClient, d *pinnacev1.Deployment) (*pinnacev1.Deployment, error) {
	broken, after := 0, ""
	for {
		stream, err := client.WatchDeployment(ctx, connect.NewRequest(&pinnacev1.WatchDeploymentRequest{Deployment: d.Id, After: after}))
		if err != nil {
			return nil, err
		}
		for stream.Receive() {
			msg := stream.Msg()
			if msg.Deployment != nil {
				d = msg.Deployment
			}
			if msg.Position != "" {
				after = msg.Position
			}
			if msg.Text != "" {
				c.showTransition(d, msg)
			}
		}
		err = stream.Err()
		if closeErr := stream.Close(); err == nil {
			err = closeErr
		}
		if ended(d) {
			return d, nil
		}
		broken++
		if ctx.Err() != nil || broken > 20 || (err != nil && !breaks(err)) {
			return nil, errors.Join(err, ctx.Err())
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c *cli) showTransition(d *pinnacev1.Deployment, msg *pinnacev1.WatchDeploymentResponse) {
	if c.quiet {
		return
	}
	elapsed := msg.At.AsTime().Sub(d.StartedAt.AsTime()).Seconds()
	fmt.Fprintf(c.stderr, "%7.1fs  %s\n", max(elapsed, 0), printable(msg.Text))
	for _, line := range msg.LogTail {
		fmt.Fprintf(c.stderr, "          | %s\n", printable(line))
	}
}

func ended(d *pinnacev1.Deployment) bool {
	switch d.State {
	case "running", "rolling-back", "":
		return false
	}
	return true
}

// outcome says what serves now, and makes an error of a rollout that failed.
func (c *cli) outcome(d *pinnacev1.Deployment) error {
	took := d.EndedAt.AsTime().Sub(d.StartedAt.AsTime()).Round(100 * time.Millisecond)
	switch d.State {
	case "succeeded":
		if d.Kind == "stop" {
			c.say("stopped %s in %s after %s", d.App, d.Environment, took)
			return nil
		}
		c.say("%s serves in %s after %s", release.ID(d.Release).Short(), d.Environment, took)
		return nil
	case "rolled-back":
		return fail(exitRolledBack, "pinnace instances --all and pinnace why show what happened",
			"%s failed: %s; the previous release serves", d.Id, printable(d.Reason))
	case "mixed":
		return fail(exitNotRestored, "pinnace instances shows what runs where; deploy or rollback when you know which you want",
			"%s failed: %s; old and new instances run side by side", d.Id, printable(d.Reason))
	}
	return fail(exitNotRestored, "pinnace instances --all and pinnace why show what happened",
		"%s failed: %s; there is no earlier release to restore", d.Id, printable(d.Reason))
}

// printProto prints an API message as one line of JSON, with the field names of the API description.
func (c *cli) printProto(m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	var line bytes.Buffer
	// protojson puts a space here and there, each build others, so that nobody depends on its bytes. Scripts do.
	if err := json.Compact(&line, b); err != nil {
		return err
	}
	line.WriteByte('\n')
	_, err = line.WriteTo(c.stdout)
	return err
}
