package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/release"
)

func (c *cli) newStatus() *cobra.Command {
	return &cobra.Command{
		Use:     "status [APP]",
		Short:   "Show what runs in an environment, and where it answers",
		Example: "  pinnace status\n  pinnace status hello --json",
		Args:    cobra.MaximumNArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			req := &pinnacev1.GetStatusRequest{Environment: env}
			if len(args) == 1 {
				req.App = args[0]
			}
			res, err := client.GetStatus(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg)
			}
			if len(res.Msg.Apps) == 0 {
				c.say("nothing is deployed in %s", env)
				return nil
			}
			w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "APP\tREADY\tRELEASE\tDEPLOYMENT\tANSWERS AT")
			for _, a := range res.Msg.Apps {
				fmt.Fprintf(w, "%s\t%d/%d\t%s\t%s\t%s\n", a.App, a.Ready, a.Count,
					shortRelease(a.Release), deploymentLine(a), endpointsLine(a))
			}
			if err := w.Flush(); err != nil {
				return err
			}
			for _, a := range res.Msg.Apps {
				for _, reason := range a.Waits {
					c.print("%s: %s", a.App, printable(reason))
				}
			}
			return nil
		},
	}
}

func shortRelease(id string) string {
	if id == "" {
		return "-"
	}
	return release.ID(id).Short()
}

func deploymentLine(a *pinnacev1.AppStatus) string {
	if a.Active != nil {
		return fmt.Sprintf("%s (%s, %s)", a.Active.Id, a.Active.Kind, a.Active.State)
	}
	if a.Live != nil {
		return a.Live.Id
	}
	return "-"
}

func endpointsLine(a *pinnacev1.AppStatus) string {
	line := ""
	for _, e := range a.Endpoints {
		if line != "" {
			line += ", "
		}
		address := e.Address
		if strings.HasPrefix(address, ":") {
			address = "*" + address // every address of every host that takes public traffic
		}
		line += fmt.Sprintf("%s %s %s", e.PortName, e.Protocol, address)
		if e.Expose == "internal" {
			line += " (internal)"
		}
	}
	if line == "" {
		return "-"
	}
	return line
}

func (c *cli) newInstances() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "instances [APP]",
		Short:   "List instances, where they run and what they do",
		Example: "  pinnace instances\n  pinnace instances hello --all",
		Args:    cobra.MaximumNArgs(1),

		ValidArgsFunction: c.complete(c.apps),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			req := &pinnacev1.ListInstancesRequest{Environment: env, All: all}
			if len(args) == 1 {
				req.App = args[0]
			}
			res, err := client.ListInstances(cmd.Context(), connect.NewRequest(req))
			if err != nil {
				return err
			}
			return c.list(res.Msg, "INSTANCE\tORDINAL\tSTATE\tATTEMPT\tRELEASE\tHOST\tADDRESS\tPLACED\tMESSAGE", func(w io.Writer) {
				for _, i := range res.Msg.Instances {
					ordinal := strconv.Itoa(int(i.Ordinal))
					switch {
					case i.Run != nil:
						ordinal = "run"
					case i.Task:
						ordinal = "before"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\n", i.Id, ordinal, i.State, i.Attempt,
						shortRelease(i.Release), i.Host, printable(i.Address), clock(i.PlacedAt), printable(i.Message))
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that have ended")
	return cmd
}

func clock(t *timestamppb.Timestamp) string {
	if t == nil {
		return "-"
	}
	return t.AsTime().UTC().Format(time.DateTime)
}

func (c *cli) newWhy() *cobra.Command {
	return &cobra.Command{
		Use:   "why INSTANCE",
		Short: "Show what an instance went through, stage by stage, and why it ended",
		Long: `Why prints the stages of an instance's latest attempt with the time that each took, exactly
what was booted, and, when it has ended, the proven cause. INSTANCE is an id, the beginning of
one, or APP/ORDINAL.`,
		Example: "  pinnace why hello/0\n  pinnace why hello-4f2a",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.instances),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.client()
			if err != nil {
				return err
			}
			res, err := client.GetInstance(cmd.Context(), connect.NewRequest(
				&pinnacev1.GetInstanceRequest{Instance: args[0], Environment: env}))
			if err != nil {
				return err
			}
			if c.json {
				return c.printProto(res.Msg.Instance)
			}
			i := res.Msg.Instance
			c.printWhy(i)
			// A server of the version before does not tell, and then there is nothing to add.
			app, err := client.GetStatus(cmd.Context(), connect.NewRequest(&pinnacev1.GetStatusRequest{Environment: i.Environment, App: i.App}))
			if err != nil {
				return err
			}
			for _, a := range app.Msg.Apps {
				for _, reason := range a.Waits {
					c.print("%s: %s", a.App, printable(reason))
				}
			}
			return nil
		},
	}
}

func (c *cli) printWhy(i *pinnacev1.Instance) {
	c.print("%s is %s (attempt %d, %s %s, host %s)", i.Id, i.State, i.Attempt, i.Environment,
		shortRelease(i.Release), i.Host)
	if i.Message != "" {
		c.print("  %s", printable(i.Message))
	}
	c.print("placed at %s", clock(i.PlacedAt))
	c.printRun(i.Run)
	var total int64
	for _, s := range i.Stages {
		total += s.DurationMs
		c.print("  %-10s %8.3f s  %s", printable(s.Name), float64(s.DurationMs)/1000, printable(s.Detail))
	}
	if len(i.Stages) > 0 {
		c.print("  %-10s %8.3f s", "total", float64(total)/1000)
	}
	if b := i.Booted; b != nil {
		c.print("booted image %s, root file system %s (%s), kernel %s, %s %s (%s)", shortDigest(b.ImageManifestDigest),
			shortDigest("sha256:"+b.RootfsSha256), printable(b.Converter), printable(b.KernelVersion),
			printable(b.Driver), printable(b.DriverVersion), printable(b.Accelerator))
	}
	if e := i.LastEnd; e != nil {
		c.print("%s", causeLine(e))
		for _, line := range e.LogTail {
			c.print("  | %s", printable(line))
		}
	}
}

func causeLine(e *pinnacev1.Cause) string { return "ended at " + clock(e.At) + ": " + causeText(e) }

// causeText says why something ended.
func causeText(e *pinnacev1.Cause) string {
	line := ""
	switch e.Kind {
	case "exited":
		line = fmt.Sprintf("the process exited with status %d", e.Code)
	case "signalled":
		line = "the process was ended by " + printable(e.Signal)
	case "guest_oom":
		line = "the workload ran out of memory; its cap is resources.memory"
	case "vmm_oom":
		line = "the VM's monitor ran out of the memory that the host allows it"
	case "kernel_panic":
		line = "the guest's kernel panicked"
	case "start_failed":
		line = "it could not be started, at the stage " + printable(e.Stage)
	case "lost":
		line = "the VM ended without a report from its init"
	default:
		line = printable(e.Kind)
	}
	if e.Planned {
		line += ", as planned"
	}
	if e.Detail != "" {
		line += ": " + printable(e.Detail)
	}
	return line
}
