package main

import (
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newPlace() *cobra.Command {
	var anywhere bool
	cmd := &cobra.Command{
		Use:   "place [APP [LABEL=VALUE…]]",
		Short: "Say which labels a host must have to run an app",
		Long: `Place has an app run only on hosts that have all of the labels, which their agents are given with
--label. What runs elsewhere moves, successor first; where there is no room the command is refused.
Without labels it shows what is set, and with --anywhere every host will do again. The app need not
have been deployed.`,
		Example: "  pinnace place db disk=nvme zone=a\n  pinnace place db --anywhere\n  pinnace place",

		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) == 1 && !anywhere {
				return c.showPlacements(cmd, args)
			}
			labels := map[string]string{}
			for _, arg := range args[1:] {
				name, value, ok := strings.Cut(arg, "=")
				if _, twice := labels[name]; !ok || name == "" || twice || anywhere {
					return fail(exitInvalid, "pinnace place "+args[0]+" disk=nvme", "%q is not a LABEL=VALUE, or one too many", arg)
				}
				labels[name] = value
			}
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.SetPlacement(cmd.Context(), connect.NewRequest(&pinnacev1.SetPlacementRequest{Environment: env, App: args[0], Labels: labels, IdempotencyKey: newKey()}))
			if err != nil {
				return err
			}
			switch {
			case c.json:
				return c.printProto(res.Msg)
			case res.Msg.Unchanged:
				c.say("nothing to do: that is how %s is placed", args[0])
			case len(labels) == 0:
				c.say("%s may run on any host", args[0])
			default:
				c.say("%s runs on hosts with %s", args[0], labelText(labels))
			}
			if n := len(res.Msg.Moving); n > 0 {
				c.say("%s moving, successor first; pinnace instances %s shows how far it is", plural(n, "instance"), args[0])
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&anywhere, "anywhere", false, "let the app run on any host again")
	return cmd
}

// showPlacements shows the labels of an app, or of all that have some.
func (c *cli) showPlacements(cmd *cobra.Command, app []string) error {
	client, env, err := c.clientIn()
	if err != nil {
		return err
	}
	res, err := client.ListPlacements(cmd.Context(), connect.NewRequest(&pinnacev1.ListPlacementsRequest{Environment: env}))
	if err != nil {
		return err
	}
	out := &pinnacev1.ListPlacementsResponse{}
	for _, p := range res.Msg.Placements {
		if len(app) == 0 || p.App == app[0] {
			out.Placements = append(out.Placements, p)
		}
	}
	if c.json {
		return c.printProto(out)
	}
	if len(app) == 1 && len(out.Placements) == 0 {
		c.say("%s may run on any host", app[0])
	}
	return c.table("", func(w io.Writer) {
		for _, p := range out.Placements {
			fmt.Fprintf(w, "%s\t%s\n", printable(p.App), printable(labelText(p.Labels)))
		}
	})
}
