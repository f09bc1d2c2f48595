package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newTop() *cobra.Command {
	var (
		watch    bool
		interval time.Duration
	)
	cmd := &cobra.Command{
		Use:   "top [APP]",
		Short: "Show what instances use",
		Long: `Top shows what the workloads of instances use: CPU since they were asked last, memory with the page cache
that is charged to them, processes, and the disk of their root file system. The guests are asked every
15 seconds. With --watch it shows them again and again; with --json that is a document for each time.`,
		Example: "  pinnace top\n  pinnace top api --watch",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < 100*time.Millisecond {
				return fail(exitInvalid, "--interval 2s", "an interval of %s is too short", interval)
			}
			for {
				if err := c.showUsage(cmd.Context(), strings.Join(args, ""), watch); err != nil || !watch {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(interval):
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until Ctrl-C")
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "how often, with --watch")
	return cmd
}

func (c *cli) showUsage(ctx context.Context, app string, again bool) error {
	client, env, err := c.clientIn()
	if err != nil {
		return err
	}
	res, err := client.ListUsage(ctx, connect.NewRequest(&pinnacev1.ListUsageRequest{Environment: env, App: app}))
	if err != nil {
		return err
	}
	if c.json {
		return c.printProto(res.Msg)
	}
	if again && onTerminal(c.stdout, c.getenv) {
		_, _ = fmt.Fprint(c.stdout, "\x1b[H\x1b[2J") // what follows tells
	}
	return c.table("INSTANCE\tAPP\tHOST\tSTATE\tCPU\tMEMORY\tPEAK\tPROCESSES\tDISK\tAGE", func(w io.Writer) {
		for _, i := range res.Msg.Instances {
			fmt.Fprintf(w, "%s\t%s/%d\t%s\t%s\t%s\n", printable(i.Instance), printable(i.App), i.Ordinal, printable(i.Host), printable(i.State), usageText(i))
		}
	})
}

// usageText are the columns of what an instance uses.
func usageText(i *pinnacev1.InstanceUsage) string {
	u := i.Usage
	if u == nil {
		return "-\t-\t-\t-\t-\t-"
	}
	cpu := "-"
	if u.CpuMilli >= 0 {
		cpu = fmt.Sprintf("%.2f of %g", float64(u.CpuMilli)/1000, float64(i.CpuRequestedMilli)/1000)
	}
	return fmt.Sprintf("%s\t%s of %s\t%s\t%d\t%s of %s\t%s", cpu, sizeText(u.MemoryBytes), sizeText(u.MemoryMaxBytes), sizeText(u.MemoryPeakBytes),
		u.Pids, sizeText(u.DiskUsedBytes), sizeText(u.DiskBytes), time.Since(u.At.AsTime()).Round(time.Second))
}
