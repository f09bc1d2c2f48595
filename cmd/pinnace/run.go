package main

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

// runStatusHelp is the contract of the commands that end as a one-off does.
const runStatusHelp = `The exit status is that of the command:
  0-255  what the command ended with; 128+n after signal n, 137 when it ran out of memory
  124    --timeout was over
  125    Pinnace itself failed: there is no place for it, its image cannot be had, its host was lost.
         stderr says what; with --json as {"error", "hint", "status"}, status being one of those in
         pinnace --help
  126    the command cannot be executed
  127    the command is not there
  143    it was asked to stop, and ended with 0
With --json the last line of stderr is a document with instance, attempt, host, code, signal, timed_out
and error.`

// runOptions are what to run, and how long to stay.
type runOptions struct {
	app, release string
	timeout      time.Duration
	detach       bool
}

func (c *cli) newRun() *cobra.Command {
	var opts runOptions
	cmd := &cobra.Command{
		Use:   "run -a APP [--release RELEASE] -- COMMAND [ARG...]",
		Short: "Run a command once, in a microVM of its own",
		Long: `Run starts a one-off: a command in a microVM of its own, with the image, the memory and the network of an app,
and with the variables and secrets that the app runs with. It has no ports, no health checks and no
volumes; nothing is led to it, and deployments pass it by. --release takes another Release of the app, with
the variables and secrets that a deployment of it would have now.

A one-off runs at most once. When its host is lost, or starts anew, it ends as lost, however far it
came; it is never started a second time. When there is no place for it now, it is refused.

What it writes is printed, stdout and stderr apart. Ctrl-C asks it to stop, with the signal and the time
of the manifest; a second one leaves it alone with that. A broken connection and a restart of the server
do not touch it: the command that waits finds it again, and "run attach" does after that command was ended.

The event log keeps who ran which program of which Release. The arguments are not in it: they are
sealed like a secret, and destroyed when the one-off has ended.

` + runStatusHelp,
		Example: `  pinnace run -a api -- /app/server migrate
  pinnace run -a api --release rel-5211230e71c9 --timeout 10m -- /app/server check
  pinnace run -a api --detach -- /app/server reindex
  pinnace run attach api-4f2a91c0d7e3`,
		Args: cobra.ArbitraryArgs, // it tells of its own, with its own status
		RunE: func(cmd *cobra.Command, args []string) error {
			outcome, err := c.runOnce(cmd.Context(), opts, args)
			if outcome == nil && err == nil {
				return nil // it runs on by itself
			}
			return c.execStatus(outcome, err)
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.StringVarP(&opts.app, "app", "a", "", "`app` that it is run of (required)")
	flags.StringVar(&opts.release, "release", "", "another `release` of the app than the live one")
	flags.DurationVar(&opts.timeout, "timeout", 0, "stop it after so long, the start included: 1s to 24h (default 1h)")
	flags.BoolVar(&opts.detach, "detach", false, "print its instance and return when it is placed")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return c.execStatus(nil, fail(exitInvalid, cmd.CommandPath()+" --help lists the flags", "%w", err))
	})
	cmd.AddCommand(c.newRunAttach(), c.newRunStop())
	return cmd
}

func (c *cli) newRunAttach() *cobra.Command {
	return &cobra.Command{
		Use:   "attach INSTANCE",
		Short: "Follow a one-off to its end",
		Long: `Attach prints all that a one-off has written, and writes, until it has ended, as run does that started it.

` + runStatusHelp,
		Example: "  pinnace run attach api-4f2a91c0d7e3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.execStatus(c.attach(cmd.Context(), args[0]))
		},
	}
}

func (c *cli) newRunStop() *cobra.Command {
	return &cobra.Command{
		Use:     "stop INSTANCE",
		Short:   "Ask a one-off to stop",
		Long:    "Stop has a one-off stop, with the signal and the time of its manifest, and does not wait for its end.",
		Example: "  pinnace run stop api-4f2a91c0d7e3",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.StopRun(cmd.Context(), connect.NewRequest(&pinnacev1.StopRunRequest{Environment: env, Instance: args[0], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg.Instance)
			}
			c.say("one-off %s is %s", res.Msg.Instance.Id, res.Msg.Instance.State)
			return nil
		},
	}
}

// runOnce starts a one-off and follows it. Of one that is to be left alone the outcome is nil.
func (c *cli) runOnce(ctx context.Context, opts runOptions, argv []string) (*execOutcome, error) {
	const usage = "pinnace run -a APP -- COMMAND [ARG...]"
	switch {
	case opts.app == "":
		return nil, fail(exitInvalid, usage, "no app was named")
	case len(argv) == 0 || argv[0] == "":
		return nil, fail(exitInvalid, usage, "there is no command to run")
	case opts.timeout < 0 || opts.timeout > 0 && opts.timeout < time.Second:
		return nil, fail(exitInvalid, "1s to 24h", "--timeout %s: it is too short", opts.timeout)
	}
	client, env, err := c.clientIn()
	if err != nil {
		return nil, err
	}
	req := &pinnacev1.StartRunRequest{
		Environment: env, App: opts.app, Release: opts.release, Argv: argv, TimeoutMs: opts.timeout.Milliseconds(), IdempotencyKey: newKey(),
	}
	var i *pinnacev1.Instance
	// With the same key it is started once, however often it is asked for.
	err = persist(ctx, 10*time.Second, breaks, func() error {
		res, err := client.StartRun(ctx, connect.NewRequest(req))
		if err == nil {
			i = res.Msg.Instance
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if opts.detach {
		if c.json {
			return nil, c.printProto(i)
		}
		c.say("one-off of %s on %s; pinnace run attach %s follows it", shortRelease(i.Release), i.Host, i.Id)
		c.print("%s", i.Id)
		return nil, nil //nolint:nilnil // there is no outcome yet
	}
	return c.followRun(ctx, client, i)
}

// attach follows a one-off that somebody has started.
func (c *cli) attach(ctx context.Context, instance string) (*execOutcome, error) {
	client, env, err := c.clientIn()
	if err != nil {
		return nil, err
	}
	i, err := getInstance(ctx, client, env, instance, breaks)
	if err != nil {
		return nil, err
	}
	if i.Run == nil {
		return nil, fail(exitConflict, "pinnace logs -f "+i.Id, "instance %s is not a one-off", i.Id)
	}
	return c.followRun(ctx, client, i)
}

// getInstance asks for an instance, again and again while the error is one for which again says so.
func getInstance(ctx context.Context, client pinnacev1connect.ControlServiceClient, env, instance string, again func(error) bool) (i *pinnacev1.Instance, err error) {
	err = persist(ctx, runPatience, again, func() error {
		res, err := client.GetInstance(ctx, connect.NewRequest(&pinnacev1.GetInstanceRequest{Environment: env, Instance: instance}))
		if err == nil {
			i = res.Msg.Instance
		}
		return err
	})
	return i, err
}

// persist makes a call until it is answered, for at most patience, as long as the error is one for which again says so.
func persist(ctx context.Context, patience time.Duration, again func(error) bool, call func() error) error {
	late := time.Now().Add(patience)
	for {
		err := call()
		if err == nil || !again(err) || time.Now().After(late) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(500 * time.Millisecond):
		}
	}
}
