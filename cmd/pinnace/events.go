package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
)

func (c *cli) newEvents() *cobra.Command {
	var follow bool
	var after uint64
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print the event log",
		Long: `Events prints what people and the platform decided, and how instances ended, in order. With
--json each line holds everything that the event's hash covers. "pinnace audit export" writes the log
for keeping and checking.`,
		Example: "  pinnace events -f\n  pinnace events --after 1000 --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			return readEvents(cmd.Context(), client, after, follow, c.printEvent)
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is appended from now on")
	cmd.Flags().Uint64Var(&after, "after", 0, "start behind the event with this sequence number")
	return cmd
}

// readEvents gives the events behind after to emit, in order.
func readEvents(ctx context.Context, client pinnacev1connect.ControlServiceClient, after uint64, follow bool, emit func(*pinnacev1.Event) error) error {
	stream, err := client.ReadEvents(ctx, connect.NewRequest(&pinnacev1.ReadEventsRequest{After: after, Follow: follow}))
	if err != nil {
		return err
	}
	for stream.Receive() {
		for _, e := range stream.Msg().Events {
			if err := emit(e); err != nil {
				return errors.Join(err, stream.Close())
			}
		}
	}
	if err := stream.Err(); err != nil && ctx.Err() == nil {
		return errors.Join(err, stream.Close())
	}
	return stream.Close()
}

// exportedEvent is an event as --json shows it: everything that its hash covers.
type exportedEvent struct {
	Seq            uint64          `json:"seq"`
	Stream         string          `json:"stream"`
	Version        uint64          `json:"version"`
	Type           string          `json:"type"`
	TypeVersion    uint16          `json:"type_version"`
	Time           int64           `json:"time_unix_nano"`
	Actor          string          `json:"actor"`
	IdempotencyKey string          `json:"idempotency_key"`
	Payload        []byte          `json:"payload_base64"`
	Hash           string          `json:"hash"`
	Content        json.RawMessage `json:"payload,omitempty"` // the same for people; not read back
}

func (c *cli) printEvent(e *pinnacev1.Event) error {
	if c.json {
		x := exportedEvent{
			Seq: e.Seq, Stream: e.Stream, Version: e.Version, Type: e.Type, TypeVersion: uint16(e.TypeVersion),
			Time: e.TimeUnixNano, Actor: e.Actor, IdempotencyKey: e.IdempotencyKey, Payload: e.Payload, Hash: fmt.Sprintf("%x", e.Hash),
		}
		if json.Valid(e.Payload) {
			x.Content = e.Payload
		}
		return c.printJSON(x)
	}
	c.print("%6d  %s  %-20s  %s", e.Seq, time.Unix(0, e.TimeUnixNano).UTC().Format("2006-01-02 15:04:05.000"),
		printable(e.Type), shorten(summary(e.Payload)))
	return nil
}

// longDigest is a digest in a text for people.
var longDigest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// shorten cuts the digests in a line to what people compare.
func shorten(line string) string {
	return longDigest.ReplaceAllStringFunc(line, shortDigest)
}

// summary shows the short values of a payload, and leaves out what is long.
func summary(payload []byte) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal(payload, &fields) != nil {
		return fmt.Sprintf("%d bytes", len(payload))
	}
	var line strings.Builder
	for _, name := range []string{
		"deployment", "id", "name", "kind", "environment", "app", "release", "instance", "attempt", "outcome", "reason",
		"cause", "start", "stop", "count",
	} {
		value, ok := fields[name]
		if !ok || len(value) > 200 {
			continue
		}
		fmt.Fprintf(&line, "%s=%s ", name, printable(string(value)))
	}
	return line.String()
}

func toLogEvent(e *pinnacev1.Event) (eventlog.Event, error) {
	out := eventlog.Event{
		Seq: e.Seq, Stream: e.Stream, Version: e.Version, Type: e.Type, TypeVersion: uint16(e.TypeVersion),
		Time: e.TimeUnixNano, Actor: e.Actor, IdempotencyKey: e.IdempotencyKey, Payload: e.Payload,
	}
	if len(e.Hash) == 0 {
		return eventlog.Event{}, fail(exitDenied, "use a token for all environments", "event %d comes without its hash: your token sees the events of some environments only, which prove nothing", e.Seq)
	}
	if len(e.Hash) != len(out.Hash) || uint32(out.TypeVersion) != e.TypeVersion {
		return eventlog.Event{}, fmt.Errorf("event %d is malformed", e.Seq)
	}
	copy(out.Hash[:], e.Hash)
	return out, nil
}
