package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
)

func (c *cli) newLogs() *cobra.Command {
	var follow, times bool
	var tail uint32
	var since string
	cmd := &cobra.Command{
		Use:   "logs APP|INSTANCE",
		Short: "Print the output of an app's instances",
		Long: `Logs prints what the processes of an app, or of one instance, wrote to stdout and stderr. Each
line is preceded by its instance when an app is named; those of several instances come as they
were written, and with -f new instances join. When an instance was started again, a line says where the
next attempt begins. Logs are kept for 7 days after an instance has ended, 50 MiB for each.`,
		Example: "  pinnace logs hello -f\n  pinnace logs hello-4f2a91c0d7e3 --tail 100\n  pinnace logs hello --since 10m --timestamps",
		Args:    cobra.ExactArgs(1),

		ValidArgsFunction: c.complete(c.appsAndInstances),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, env, err := c.clientIn()
			if err != nil {
				return err
			}
			from, err := sinceTime(since, time.Now())
			if err != nil {
				return err
			}
			p := logPrinter{cli: c, target: args[0], times: times, attempts: map[string]uint32{}, last: map[string]*pinnacev1.LogPosition{}}
			return p.stream(cmd.Context(), client, &pinnacev1.StreamLogsRequest{
				Environment: env, Target: args[0], Follow: follow, Tail: tail, Since: from,
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written from now on")
	cmd.Flags().BoolVarP(&times, "timestamps", "t", false, "print when each line was written")
	cmd.Flags().StringVar(&since, "since", "", "only lines written since: 10m ago, or a time such as 2026-01-31T12:00:00Z")
	cmd.Flags().Uint32Var(&tail, "tail", 0, "only the last lines of each instance; 0 means all")
	return cmd
}

// sinceTime reads --since: a time, or how long before now.
func sinceTime(text string, now time.Time) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no bound
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return timestamppb.New(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", time.DateTime, time.DateOnly} {
		if at, err := time.Parse(layout, text); err == nil { // without a zone it is UTC, as logs show times
			return timestamppb.New(at), nil
		}
	}
	return nil, fail(exitInvalid, "it looks like 90s, 10m, 24h, 2026-01-31 or 2026-01-31T12:00:00Z; without a zone it is UTC", "--since %q is neither a duration nor a time", text)
}

// logPrinter prints lines in the order in which they come.
type logPrinter struct {
	cli    *cli
	target string
	times  bool
	// attempts and last are of the last line of each instance.
	attempts map[string]uint32
	last     map[string]*pinnacev1.LogPosition
}

// stream prints what the server sends. While somebody follows, a connection that breaks is made again, behind the last
// line of each instance.
func (p *logPrinter) stream(ctx context.Context, client pinnacev1connect.ControlServiceClient, req *pinnacev1.StreamLogsRequest) error {
	for broken := 0; ; {
		stream, err := client.StreamLogs(ctx, connect.NewRequest(req))
		for err == nil && stream.Receive() {
			broken = 0
			if err := p.print(stream.Msg()); err != nil {
				return errors.Join(err, stream.Close())
			}
		}
		if stream != nil {
			err = cmp.Or(err, stream.Err(), stream.Close())
		}
		switch {
		case err == nil, errors.Is(ctx.Err(), context.Canceled):
			return nil
		case !req.Follow || !breaks(err) || broken == 20:
			return err
		}
		broken++
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
		req.After = slices.Collect(maps.Values(p.last))
	}
}

// breaks tells whether an error is one of the connection, which may come back.
func breaks(err error) bool {
	return connect.CodeOf(err) == connect.CodeUnavailable || errors.Is(err, io.ErrUnexpectedEOF)
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

func (p *logPrinter) print(m *pinnacev1.StreamLogsResponse) error {
	c := p.cli
	if m.Seq != 0 {
		p.last[m.Instance] = &pinnacev1.LogPosition{Instance: m.Instance, Attempt: m.Attempt, Seq: m.Seq}
	}
	text := string(bytes.ToValidUTF8(m.Line, []byte("\uFFFD")))
	if c.json {
		return c.printJSON(logLine{m.Instance, m.Attempt, m.Seq, m.Stream, m.At.AsTime().UTC(), text})
	}
	prefix := ""
	if p.times {
		prefix = m.At.AsTime().UTC().Format("2006-01-02T15:04:05.000Z") + " "
	}
	if m.Instance != p.target {
		prefix += m.Instance + " "
	}
	if before := p.attempts[m.Instance]; before != 0 && m.Attempt > before {
		c.print("%s-- attempt %d begins: the instance was started again", prefix, m.Attempt)
	}
	if m.Attempt != 0 {
		p.attempts[m.Instance] = m.Attempt
	}
	if m.Stream == "platform" {
		prefix += "-- "
	}
	c.print("%s%s", prefix, printable(text))
	return nil
}
