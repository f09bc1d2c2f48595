package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
)

func (c *cli) newAudit() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Prove that the event log was not edited",
	}
	cmd.AddCommand(c.newAuditVerify(), c.newAuditExport())
	return cmd
}

// exportHeader is the first line of an export.
type exportHeader struct {
	Log string `json:"pinnace_event_log"` // the log's id, which its chain begins with
}

func (c *cli) newAuditVerify() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "verify [--file EXPORT]",
		Short: "Compute the event log's hash chain again",
		Long: `Verify reads every event and computes the hash chain from the beginning: an event that was
changed, removed, added or moved is named. Without --file it reads from the server; with it, it
reads an export and needs no server.

Exit status: 0 when the chain holds, 1 when it does not.`,
		Example: "  pinnace audit verify\n  pinnace audit export > log.ndjson && pinnace audit verify --file log.ndjson",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			var head eventlog.Head
			var err error
			if file != "" {
				head, err = c.verifyExport(ctx, file)
			} else {
				head, err = c.verifyServer(ctx)
			}
			if broken, ok := errors.AsType[*eventlog.VerifyError](err); ok {
				if c.json {
					if err := c.printJSON(map[string]any{"ok": false, "seq": broken.Seq, "reason": broken.Reason}); err != nil {
						return err
					}
				}
				return fail(exitInternal, "the events before it are as they were; keep a copy of the log before anything else",
					"the event log was tampered with or is damaged: %w", broken)
			}
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(map[string]any{"ok": true, "events": head.Seq, "head": head.Hash.String()})
			}
			c.print("ok %d events, head %s", head.Seq, head.Hash)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", "", `an export to read instead of asking the server; "-" is stdin`)
	return cmd
}

// verifyServer verifies the log of the server, and that the server's own idea of its head agrees.
func (c *cli) verifyServer(ctx context.Context) (eventlog.Head, error) {
	client, _, err := c.client()
	if err != nil {
		return eventlog.Head{}, err
	}
	info, err := client.GetServerInfo(ctx, connect.NewRequest(&pinnacev1.GetServerInfoRequest{}))
	if err != nil {
		return eventlog.Head{}, err
	}
	genesis, err := genesisOf(info.Msg.ClusterId)
	if err != nil {
		return eventlog.Head{}, err
	}
	defer c.progress(ctx, "verifying")()
	head, err := eventlog.Verify(ctx, serverEvents(ctx, client), genesis)
	if err == nil && head.Seq < info.Msg.HeadSeq {
		err = &eventlog.VerifyError{Seq: head.Seq + 1, Reason: fmt.Sprintf("missing: the server said that its log has %d events", info.Msg.HeadSeq)}
	}
	return head, err
}

func serverEvents(ctx context.Context, client pinnacev1connect.ControlServiceClient) iter.Seq2[eventlog.Event, error] {
	return func(yield func(eventlog.Event, error) bool) {
		stopped := errors.New("stopped")
		err := readEvents(ctx, client, 0, false, func(e *pinnacev1.Event) error {
			event, err := toLogEvent(e)
			if !yield(event, err) || err != nil {
				return stopped
			}
			return nil
		})
		if err != nil && !errors.Is(err, stopped) {
			yield(eventlog.Event{}, err)
		}
	}
}

func genesisOf(id string) (eventlog.Hash, error) {
	b, err := hex.DecodeString(id)
	var logID eventlog.LogID
	if err != nil || len(b) != len(logID) {
		return eventlog.Hash{}, fmt.Errorf("%q is not the id of an event log", id)
	}
	copy(logID[:], b)
	return eventlog.Genesis(logID), nil
}

// verifyExport verifies what audit export wrote.
func (c *cli) verifyExport(ctx context.Context, file string) (eventlog.Head, error) {
	r := c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return eventlog.Head{}, fail(exitNotFound, "pinnace audit export writes one", "%w", err)
		}
		defer f.Close()
		r = f
	}
	lines := bufio.NewScanner(r)
	// A payload of the largest size in base64, twice (see exportedEvent), and what goes around it.
	lines.Buffer(nil, 4*eventlog.MaxPayload)
	var header exportHeader
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &header) != nil || header.Log == "" {
		return eventlog.Head{}, fail(exitInvalid, "pinnace audit export writes one", "%s is not an export of an event log", file)
	}
	genesis, err := genesisOf(header.Log)
	if err != nil {
		return eventlog.Head{}, fail(exitInvalid, "", "%s: %w", file, err)
	}
	return eventlog.Verify(ctx, exportedEvents(lines), genesis)
}

func exportedEvents(lines *bufio.Scanner) iter.Seq2[eventlog.Event, error] {
	return func(yield func(eventlog.Event, error) bool) {
		for n := 2; lines.Scan(); n++ {
			var x exportedEvent
			err := json.Unmarshal(lines.Bytes(), &x)
			var hash []byte
			if err == nil {
				hash, err = hex.DecodeString(x.Hash)
			}
			e := eventlog.Event{
				Seq: x.Seq, Stream: x.Stream, Version: x.Version, Type: x.Type, TypeVersion: x.TypeVersion,
				Time: x.Time, Actor: x.Actor, IdempotencyKey: x.IdempotencyKey, Payload: x.Payload,
			}
			if err == nil && copy(e.Hash[:], hash) != len(hash) || len(hash) != len(e.Hash) {
				err = errors.Join(err, errors.New("not a SHA-256"))
			}
			if err != nil {
				err = fail(exitInvalid, "", "line %d of the export: %w", n, err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(eventlog.Event{}, fail(exitInvalid, "", "read the export: %w", err))
		}
	}
}

func (c *cli) newAuditExport() *cobra.Command {
	return &cobra.Command{
		Use:     "export",
		Short:   "Write the whole event log to stdout, for audit verify --file",
		Example: "  pinnace audit export > log.ndjson",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, _, err := c.client()
			if err != nil {
				return err
			}
			info, err := client.GetServerInfo(cmd.Context(), connect.NewRequest(&pinnacev1.GetServerInfoRequest{}))
			if err != nil {
				return err
			}
			if err := c.printJSON(exportHeader{Log: info.Msg.ClusterId}); err != nil {
				return err
			}
			c.json = true
			return readEvents(cmd.Context(), client, 0, false, c.printEvent)
		},
	}
}
