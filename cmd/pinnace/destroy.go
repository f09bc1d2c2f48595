package main

import (
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newApp() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "app",
		Short: "List apps, and destroy one",
		Long:  `An app is a named workload: the name in its manifest. It is in each environment that it was deployed to.`,
	}
	cmd.AddCommand(c.newAppList(), c.newAppDestroy())
	return cmd
}

func (c *cli) newAppList() *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the apps of an environment",
		Example: "  pinnace app list -e staging",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			res, err := client.GetStatus(cmd.Context(), connect.NewRequest(&pinnacev1.GetStatusRequest{Environment: env}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			for _, a := range res.Msg.Apps {
				c.print("%s  %d of %d ready", printable(a.App), a.Ready, a.Count)
			}
			return nil
		},
	}
}

const destroyHelp = `It says what goes, and asks for the name. What stays are the event log with all that has happened, the
releases, and the records of the deployments. While a deployment is under way it is refused (status
5). What runs on a host that is away ends when that is back.`

func (c *cli) newAppDestroy() *cobra.Command {
	var confirm string
	cmd := &cobra.Command{
		Use:     "destroy APP",
		Short:   "End an app in an environment, with its volumes and settings",
		Long:    "Destroy stops all instances of an app in an environment, and removes its volumes, routes and placement.\n" + destroyHelp,
		Example: "  pinnace app destroy api -e staging\n  pinnace app destroy api -e staging --confirm api",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			req := &pinnacev1.DestroyAppRequest{Environment: env, App: args[0]}
			would, err := client.DestroyApp(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			c.sayDestruction(would.Msg.Destruction)
			if err := c.confirm("this destroys "+args[0]+" in "+env, args[0], confirm); err != nil {
				return err
			}
			req.Confirm, req.IdempotencyKey = args[0], newKey()
			res, err := client.DestroyApp(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("%s is being destroyed in %s", args[0], env)
			return nil
		},
	}
	cmd.Flags().StringVar(&confirm, "confirm", "", "the app's name, in place of being asked for it")
	return cmd
}

func (c *cli) newEnvDestroy() *cobra.Command {
	var confirm string
	cmd := &cobra.Command{
		Use:     "destroy ENV",
		Short:   "End an environment with all that is in it",
		Long:    "Destroy stops all instances of an environment, and removes its volumes, secrets, variables, routes and logins.\n" + destroyHelp,
		Example: "  pinnace env destroy staging\n  pinnace env destroy staging --confirm staging",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			req := &pinnacev1.DestroyEnvironmentRequest{Environment: args[0]}
			would, err := client.DestroyEnvironment(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			c.sayDestruction(would.Msg.Destruction)
			if err := c.confirm("this destroys environment "+args[0], args[0], confirm); err != nil {
				return err
			}
			req.Confirm, req.IdempotencyKey = args[0], newKey()
			res, err := client.DestroyEnvironment(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			c.say("environment %s is being destroyed", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&confirm, "confirm", "", "the environment's name, in place of being asked for it")
	return cmd
}

// sayDestruction says what goes and what stays.
func (c *cli) sayDestruction(d *pinnacev1.Destruction) {
	volumes := make([]string, 0, len(d.Volumes))
	for _, v := range d.Volumes {
		volumes = append(volumes, fmt.Sprintf("%s (%s on %s, %s)", v.Id, volumePlace(v), v.Host, sizeText(v.SizeBytes)))
	}
	c.say("what goes:")
	for _, part := range []struct {
		name  string
		items []string
	}{{"apps", d.Apps}, {"instances", d.Instances}, {"volumes, with all that is in them", volumes}, {"settings", d.Settings}} {
		if len(part.items) > 0 {
			c.say("  %s: %s", part.name, printable(strings.Join(part.items, ", ")))
		}
	}
	c.say("what stays: %s", printable(strings.Join(d.Kept, ", ")))
}
