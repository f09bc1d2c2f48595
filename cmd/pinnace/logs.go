package main

import (
	"bytes"
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

func (c *cli) newLogs() *cobra.Command {
	var follow, times bool
	var tail uint32
	cmd := &cobra.Command{
		Use:   "logs APP|INSTANCE",
		Short: "Print the output of an app's instances",
		Long: `Logs prints what the processes of an app, or of one instance, wrote to stdout and stderr. Each
line is preceded by its instance when an app is named. Logs are kept for 7 days after an
instance has ended, 50 MiB for each.`,
		Example: "  pinnace logs hello -f\n  pinnace logs hello-4f2a91c0d7e3 --tail 100",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.appsAndInstances),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			stream, err := client.StreamLogs(cmd.Context(), connect.NewRequest(&pinnacev1.StreamLogsRequest{
				Environment: env, Target: args[0], Follow: follow, Tail: tail,
			}))
			if err != nil {
				return err
			}
			for stream.Receive() {
				if err := c.printLog(stream.Msg(), stream.Msg().Instance != args[0], times); err != nil {
					return errors.Join(err, stream.Close())
				}
			}
			if err := stream.Err(); err != nil && !errors.Is(cmd.Context().Err(), context.Canceled) {
				return errors.Join(err, stream.Close())
			}
			return stream.Close()
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().BoolVarP(&times, "timestamps", "t", false, "print when each line was written")
	cmd.Flags().Uint32Var(&tail, "tail", 0, "only the last lines of each instance; 0 means all")
	return cmd
}

// logLine is a line as --json shows it.
type logLine struct {
	Instance string    `json:"instance"`
	Attempt  uint32    `json:"attempt"`
	Seq      uint64    `json:"seq"`
	Stream   string    `json:"stream"`
	At       time.Time `json:"at"`
	Line     string    `json:"line"`
}

func (c *cli) printLog(m *pinnacev1.StreamLogsResponse, named, times bool) error {
	text := string(bytes.ToValidUTF8(m.Line, []byte("\uFFFD")))
	if c.json {
		return c.printJSON(logLine{m.Instance, m.Attempt, m.Seq, m.Stream, m.At.AsTime().UTC(), text})
	}
	prefix := ""
	if times {
		prefix = m.At.AsTime().UTC().Format("2006-01-02T15:04:05.000Z") + " "
	}
	if named {
		prefix += m.Instance + " "
	}
	if m.Stream == "platform" {
		prefix += "-- "
	}
	c.print("%s%s", prefix, printable(text))
	return nil
}
