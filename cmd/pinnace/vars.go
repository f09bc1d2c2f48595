package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newVars() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vars",
		Short: "Set, unset and list an environment's variables",
		Long: `Variables are settings of an environment that are no secrets. An app gets those that its manifest names
in vars, and no others. A deployment keeps the values that it was made with, and a rollback to it
brings them back.`,
	}
	cmd.AddCommand(c.newVarsList(), c.newVarsSet(), c.newVarsUnset())
	return cmd
}

func (c *cli) newVarsList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the variables and their values",
		Example: "  pinnace vars list -e prod",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.ListVars(cmd.Context(), connect.NewRequest(&pinnacev1.ListVarsRequest{Environment: env}))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "", func(w io.Writer) {
				for _, name := range slices.Sorted(maps.Keys(res.Msg.Vars)) {
					fmt.Fprintf(w, "%s\t%s\n", name, printable(res.Msg.Vars[name]))
				}
			})
		},
	}
}

func (c *cli) newVarsSet() *cobra.Command {
	var later bool
	var wait rolloutWait
	cmd := &cobra.Command{
		Use:   "set NAME=VALUE…",
		Short: "Set variables, and deploy them to what is live",
		Long: `Set changes variables. Each live app that names one of them gets a deployment with the new values,
which is gated and turns back like any other; the variables stay as they were set. With --later they
get them with their next deployment. Values are shown in events: what is secret belongs in a secret.`,
		Example: "  pinnace vars set -e prod PUBLIC_URL=https://shop.example\n  pinnace vars set LOG_LEVEL=debug --later",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pinnacev1.SetVarsRequest{Set: map[string]string{}, NoDeploy: later}
			for _, arg := range args {
				name, value, ok := strings.Cut(arg, "=")
				if _, twice := req.Set[name]; !ok || twice {
					return fail(exitInvalid, "pinnace vars set NAME=VALUE", "%q is not a NAME=VALUE, or one that comes twice", arg)
				}
				req.Set[name] = value
			}
			return c.changeVars(cmd.Context(), req, &wait)
		},
	}
	cmd.Flags().BoolVar(&later, "later", false, "leave what runs as it is until its next deployment")
	wait.add(cmd)
	return cmd
}

func (c *cli) newVarsUnset() *cobra.Command {
	var wait rolloutWait
	return &cobra.Command{
		Use:     "unset NAME…",
		Short:   "Unset variables that nothing live needs",
		Example: "  pinnace vars unset OLD_URL",
		Args:    cobra.MinimumNArgs(1),

		ValidArgsFunction: c.complete(c.varNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.changeVars(cmd.Context(), &pinnacev1.SetVarsRequest{Unset: args}, &wait)
		},
	}
}

// changeVars makes a change and follows the deployments that it brings, one after the other. When several fail, the
// error is that of the first.
func (c *cli) changeVars(ctx context.Context, req *pinnacev1.SetVarsRequest, wait *rolloutWait) error {
	client, env, err := c.clientIn()
	if err != nil {
		return err
	}
	req.Environment, req.IdempotencyKey = env, newKey()
	res, err := client.SetVars(ctx, connect.NewRequest(req))
	if err != nil {
		return err
	}
	if res.Msg.Unchanged {
		c.say("nothing to do: that is how they are")
	}
	for _, app := range res.Msg.Pending {
		c.say("%s runs with the old values until it is deployed", app)
	}
	return wait.followAll(ctx, c, client, res.Msg, res.Msg.Deployments)
}

// varNames are the names of the environment's variables.
func (c *cli) varNames(ctx context.Context) []cobra.Completion {
	client, env, err := c.clientIn()
	if err != nil {
		return nil
	}
	res, err := client.ListVars(ctx, connect.NewRequest(&pinnacev1.ListVarsRequest{Environment: env}))
	if err != nil {
		return nil
	}
	return slices.Sorted(maps.Keys(res.Msg.Vars))
}
