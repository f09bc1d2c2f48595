package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newRoutes() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "Say where public ports are reached in an environment",
		Long: `A route says at which address and port, and under which host names, a public port of an app is reached
in one environment. What it leaves out is as the manifest says. A port with edge = "sni" needs host names;
each of them is there once in all environments. A change reaches the hosts at once; what runs is not
touched.`,
	}
	cmd.AddCommand(c.newRoutesList(), c.newRoutesSet(), c.newRoutesUnset())
	return cmd
}

func (c *cli) newRoutesList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the routes",
		Example: "  pinnace routes list -e prod",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.ListRoutes(cmd.Context(), connect.NewRequest(&pinnacev1.ListRoutesRequest{Environment: env}))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "APP\tPORT\tADDRESS\tPUBLIC PORT\tHOST NAMES", func(w io.Writer) {
				for _, r := range res.Msg.Routes {
					address, port := "as the hosts say", "as the manifest says"
					if r.Address != "" {
						address = printable(r.Address)
					}
					if r.PublicPort != 0 {
						port = strconv.Itoa(int(r.PublicPort))
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", printable(r.App), printable(r.Port), address, port, printable(strings.Join(r.Names, ", ")))
				}
			})
		},
	}
}

func (c *cli) newRoutesSet() *cobra.Command {
	route := &pinnacev1.Route{}
	cmd := &cobra.Command{
		Use:   "set APP PORT",
		Short: "Set where a public port is reached",
		Long: `Set says where the port with that name in the app's manifest is reached, in place of what was set before.
The app need not have been deployed. A host name is in lower case; *.shop.example stands for the names one
level below. What another app has, here or in another environment, is refused.`,
		Example: `  pinnace routes set shop web -e prod --name shop.example --name '*.shop.example'
  pinnace routes set shop web -e staging --public-port 8080
  pinnace routes set mail smtp --address 192.0.2.10`,
		Args: cobra.ExactArgs(2),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			route.App, route.Port = args[0], args[1]
			res, err := client.SetRoute(cmd.Context(), connect.NewRequest(&pinnacev1.SetRouteRequest{Environment: env, Route: route, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			switch {
			case c.json:
				return c.printProto(res.Msg)
			case res.Msg.Unchanged:
				c.say("nothing to do: that is where it is")
			case res.Msg.Idle:
				c.say("set; nothing that runs in %s has a port %s of %s yet", printable(env), printable(route.Port), printable(route.App))
			default:
				c.say("set; the hosts lead there now")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&route.Address, "address", "", "the `address` of the hosts to listen on (default: the one that their agents listen on)")
	flags.Uint32Var(&route.PublicPort, "public-port", 0, "the `port` to listen on (default: the manifest's)")
	flags.StringArrayVar(&route.Names, "name", nil, "a `host` name that clients ask for, with edge = \"sni\"; may be repeated")
	return cmd
}

func (c *cli) newRoutesUnset() *cobra.Command {
	return &cobra.Command{
		Use:     "unset APP PORT",
		Short:   "Leave it to the manifest again",
		Example: "  pinnace routes unset shop web -e staging",
		Args:    cobra.ExactArgs(2),

		ValidArgsFunction: c.completeRoutes,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.UnsetRoute(cmd.Context(), connect.NewRequest(&pinnacev1.UnsetRouteRequest{Environment: env, App: args[0], Port: args[1], IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("unset; the manifest says where it is")
			return nil
		},
	}
}

// completeRoutes completes an app, and then its ports that have a route.
func (c *cli) completeRoutes(cmd *cobra.Command, args []string, word string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return c.complete(c.apps)(cmd, args, word)
	case 1:
	default:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.complete(func(ctx context.Context) []cobra.Completion {
		client, env, err := c.clientIn()
		if err != nil {
			return nil
		}
		res, err := client.ListRoutes(ctx, connect.NewRequest(&pinnacev1.ListRoutesRequest{Environment: env}))
		if err != nil {
			return nil
		}
		var words []cobra.Completion
		for _, r := range res.Msg.Routes {
			if args[0] == r.App {
				words = append(words, r.Port)
			}
		}
		return words
	})(cmd, nil, word)
}
