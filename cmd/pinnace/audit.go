package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
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
	cmd.AddCommand(c.newAuditVerify(), c.newAuditExport(), c.newAuditForget())
	return cmd
}

func (c *cli) newAuditVerify() *cobra.Command {
	var file, key, stored string
	cmd := &cobra.Command{
		Use:   "verify [--file EXPORT | --log PLACE]",
		Short: "Compute the event log's hash chain again",
		Long: `Verify reads every event and computes the hash chain from the beginning: an event that was
changed, removed, added or moved is named. It reads from the server, or offline from an export or
backup (--file), or where the log is stored (--log sqlite:DIR or postgres://…).

An export has to end in a signed checkpoint; the key that signed it is printed, and compared with
--key when you know which one it should be. The log has to hold the last event that you have seen
of it before.

Exit status: 0 when the chain holds, 1 when it does not.`,
		Example: "  pinnace audit verify\n  pinnace audit export > log.ndjson && pinnace audit verify --file log.ndjson\n  pinnace audit verify --log sqlite:/var/lib/pinnace/server/log",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var checked audited
			var err error
			switch {
			case file != "" && stored != "":
				return fail(exitInvalid, "", "--file and --log exclude each other")
			case file != "":
				checked, err = c.verifyExport(cmd.Context(), file)
			case stored != "":
				checked, err = c.verifyStored(cmd.Context(), stored)
			default:
				checked, err = c.verifyServer(cmd.Context())
			}
			if err != nil {
				return broken(c, err)
			}
			if key != "" && key != checked.key {
				return fail(exitInternal, "ask for an export from the server itself", "the log is signed by the key %q, not by %s", checked.key, key)
			}
			if c.json {
				return c.printJSON(map[string]any{"ok": true, "log": checked.log.String(), "events": checked.head.Seq, "head": checked.head.Hash.String(), "key": checked.key})
			}
			c.print("ok %d events, head %s", checked.head.Seq, checked.head.Hash)
			if checked.key != "" {
				c.print("signed by %s", checked.key)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "file", "", `an export to read instead of asking the server; "-" is stdin`)
	cmd.Flags().StringVar(&stored, "log", "", "where the log is stored: sqlite:DIR or postgres://…")
	cmd.Flags().StringVar(&key, "key", "", "the public key that must have signed it, in hexadecimal")
	return cmd
}

// audited is a log that holds.
type audited struct {
	log  eventlog.LogID
	head eventlog.Head
	key  string // that signed it, in hexadecimal; empty when nothing is signed
}

// broken explains an error of a log that does not hold, also to scripts.
func broken(c *cli, err error) error {
	bad, ok := errors.AsType[*eventlog.VerifyError](err)
	var regression *eventlog.RegressionError
	if !ok && !errors.As(err, &regression) {
		return err
	}
	if c.json {
		report := map[string]any{"ok": false, "reason": err.Error()}
		if bad != nil {
			report["seq"], report["reason"] = bad.Seq, bad.Reason
		}
		if err := c.printJSON(report); err != nil {
			return err
		}
	}
	if bad == nil {
		return fail(exitInternal, "keep a copy of the log before anything else", "%w", err)
	}
	return fail(exitInternal, "the events before it are as they were; keep a copy of the log before anything else",
		"the event log was tampered with or is damaged: %w", bad)
}

// verifyServer verifies the log of the server, and that the server's own idea of its head agrees.
func (c *cli) verifyServer(ctx context.Context) (audited, error) {
	client, _, err := c.client()
	if err != nil {
		return audited{}, err
	}
	info, err := client.GetServerInfo(ctx, connect.NewRequest(&pinnacev1.GetServerInfoRequest{}))
	if err != nil {
		return audited{}, err
	}
	var id eventlog.LogID
	if err := id.UnmarshalText([]byte(info.Msg.ClusterId)); err != nil {
		return audited{}, fmt.Errorf("the server's %q is not the id of an event log: %w", info.Msg.ClusterId, err)
	}
	defer c.progress(ctx, "verifying")()
	head, err := eventlog.Verify(ctx, serverEvents(ctx, client), eventlog.Genesis(id))
	if err == nil && head.Seq < info.Msg.HeadSeq {
		err = &eventlog.VerifyError{Seq: head.Seq + 1, Reason: fmt.Sprintf("missing: the server said that its log has %d events", info.Msg.HeadSeq)}
	}
	return audited{log: id, head: head, key: hex.EncodeToString(info.Msg.LogKey)}, err
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

// verifyStored verifies a log where it is stored, and its last checkpoint.
func (c *cli) verifyStored(ctx context.Context, text string) (out audited, err error) {
	place, err := parsePlace(text)
	if err != nil {
		return out, err
	}
	log, err := place.open(ctx)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, log.close()) }()
	seen, err := c.knownHead(log.id)
	if err != nil {
		return out, err
	}
	out.log = log.id
	out.head, err = eventlog.Verify(ctx, passing(log.events(ctx), seen, log.last.Head()), eventlog.Genesis(log.id))
	if err == nil && log.last.Seq > 0 {
		err = log.last.Verify(log.id)
		out.key = hex.EncodeToString(log.last.Key[:])
	}
	if err == nil {
		err = reaches(out.head, seen, log.last.Head())
	}
	return out, err
}

// passing gives events on, and an error where one is not what somebody has seen.
func passing(events iter.Seq2[eventlog.Event, error], seen ...eventlog.Head) iter.Seq2[eventlog.Event, error] {
	return func(yield func(eventlog.Event, error) bool) {
		for e, err := range events {
			for _, s := range seen {
				if err == nil && s.Seq == e.Seq && s.Hash != e.Hash {
					err = &eventlog.RegressionError{Seen: s, Have: eventlog.Head{Seq: e.Seq, Hash: e.Hash}}
				}
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func reaches(head eventlog.Head, seen ...eventlog.Head) error {
	for _, s := range seen {
		if s.Seq > head.Seq {
			return &eventlog.RegressionError{Seen: s, Have: head}
		}
	}
	return nil
}

// verifyExport verifies what audit export wrote.
func (c *cli) verifyExport(ctx context.Context, file string) (audited, error) {
	r := c.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return audited{}, fail(exitNotFound, "pinnace audit export writes one", "%w", err)
		}
		defer f.Close()
		r = f
	}
	known, err := c.knownHeads()
	if err != nil {
		return audited{}, err
	}
	// Which log it is, is known at the end only, so all heads are looked for: two logs do not share a hash.
	found, err := eventlog.VerifyExport(ctx, r, nil)
	if err != nil {
		return audited{}, notExport(file, err)
	}
	seen := known[found.Log.String()].head()
	if seen.Seq > found.Checkpoint.Seq {
		c.say("the export ends at event %d; you have seen event %d of this log", found.Checkpoint.Seq, seen.Seq)
	}
	return audited{log: found.Log, head: found.Checkpoint.Head(), key: hex.EncodeToString(found.Checkpoint.Key[:])}, nil
}

// notExport gives what is wrong with a file its exit status: a file that is no export, or a cut one, is invalid
// input; a changed one is not.
func notExport(file string, err error) error {
	if errors.Is(err, eventlog.ErrNotExport) {
		return fail(exitInvalid, "pinnace audit export writes one", "%s: %w", file, err)
	}
	if _, ok := errors.AsType[*eventlog.VerifyError](err); ok {
		return err
	}
	return fail(exitInternal, "the export was changed or cut; the server has the log itself", "%s: %w", file, err)
}

func (c *cli) newAuditExport() *cobra.Command {
	var state statePlace
	var offline bool
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the whole event log to stdout, for audit verify --file",
		Long: `Export writes the event log, ending in a checkpoint that the server signs. With --offline it is read
where it is stored, and signed with the key in DATA_DIR/server/keys; without that key it ends in the
last checkpoint that the server has signed.`,
		Example: "  pinnace audit export > log.ndjson\n  pinnace audit export --offline --data-dir /var/lib/pinnace > log.ndjson",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !offline {
				return c.exportServer(cmd.Context(), c.stdout)
			}
			place, err := state.place(c)
			if err != nil {
				return err
			}
			key, err := state.key(c)
			if err != nil {
				return err
			}
			_, err = c.exportStored(cmd.Context(), place, key, "-")
			return err
		},
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "read the stored log instead of asking the server")
	state.add(cmd)
	return cmd
}

func (c *cli) exportServer(ctx context.Context, w io.Writer) error {
	client, _, err := c.client()
	if err != nil {
		return err
	}
	signed, err := client.SignCheckpoint(ctx, connect.NewRequest(&pinnacev1.SignCheckpointRequest{}))
	if err != nil {
		return err
	}
	m := signed.Msg
	var id eventlog.LogID
	check := eventlog.Checkpoint{Seq: m.Seq, Time: m.TimeUnixNano, StateVersion: m.StateVersion}
	if err := id.UnmarshalText([]byte(m.ClusterId)); err != nil {
		return fmt.Errorf("the server's %q is not the id of an event log: %w", m.ClusterId, err)
	}
	for _, f := range []struct{ to, from []byte }{
		{check.Hash[:], m.Hash}, {check.State[:], m.State}, {check.Key[:], m.Key}, {check.Signature[:], m.Signature},
	} {
		if len(f.to) != len(f.from) {
			return errors.New("the server's checkpoint is malformed")
		}
		copy(f.to, f.from)
	}
	return eventlog.Export(w, id, check, serverEvents(ctx, client))
}

func (c *cli) newAuditForget() *cobra.Command {
	return &cobra.Command{
		Use:   "forget",
		Short: "Forget which events of the server's log you have seen",
		Long: `Forget makes the command line accept the server's log as it is now. It is for the case that the log was
restored from a backup on purpose, after which every other command refuses it.`,
		RunE: func(*cobra.Command, []string) error {
			t, err := c.target()
			if err != nil {
				return err
			}
			return c.forgetHead(t.server)
		},
	}
}
