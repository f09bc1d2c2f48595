package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	// runPatience is for how long the server of a one-off may be away: long enough for it to be started anew.
	runPatience = 2 * time.Minute
	// runLook is how often it is asked how a one-off is.
	runLook = 300 * time.Millisecond
	// runRest is how long the last lines of a one-off may take to come. Those of a lost host do not come.
	runRest = 15 * time.Second
	// exitStopped is the status of what was asked to stop and ended well: not what it would have been.
	exitStopped = 128 + int(unix.SIGTERM)
)

// followRun prints what a one-off writes until it has ended, and says how. It is the server's: what breaks here does not
// touch it.
func (c *cli) followRun(ctx context.Context, client pinnacev1connect.ControlServiceClient, i *pinnacev1.Instance) (*execOutcome, error) {
	c.say("one-off %s of %s on %s", i.Id, shortRelease(i.Release), i.Host)
	// Ctrl-C is for the one-off, and does not end this process.
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	go c.stopOnSignal(ctx, cancel, client, i)
	out := runOutput{cli: c, last: map[string]*pinnacev1.LogPosition{}}
	following, end := context.WithCancel(ctx)
	printed := make(chan error, 1)
	go func() { printed <- out.follow(following, client, i) }()
	last, err := c.awaitRun(ctx, client, i)
	end()
	err = errors.Join(err, <-printed)
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, err
	}
	out.rest(ctx, client, last)
	return runOutcome(last)
}

// stopOnSignal asks the one-off to stop when this process is asked to; the second time it gives up waiting for that.
func (c *cli) stopOnSignal(ctx context.Context, cancel context.CancelCauseFunc, client pinnacev1connect.ControlServiceClient, i *pinnacev1.Instance) {
	names := signals(ctx, func() {
		cancel(fail(exitInternal, "pinnace run attach "+i.Id+" follows it", "interrupted; one-off %s goes on until it has stopped", i.Id))
	})
	key := newKey()
	for {
		select {
		case <-names:
			c.say("asking %s to stop; once more leaves it alone with that", i.Id)
			_, err := client.StopRun(ctx, connect.NewRequest(&pinnacev1.StopRunRequest{Environment: i.Environment, Instance: i.Id, IdempotencyKey: key}))
			if err != nil && ctx.Err() == nil {
				_, message, _ := describe(err)
				c.say("it could not be asked to stop: %s", message)
			}
		case <-ctx.Done():
			return
		}
	}
}

// away tells whether an error says that nobody answers there now, or that who did was cut off: a server that is killed
// in the middle of a call looks like a call that was cancelled, or like nothing that is known.
func away(err error) bool {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status == exitUnreachable
	}
	code := connect.CodeOf(err)
	return code == connect.CodeCanceled || code == connect.CodeUnknown || breaks(err)
}

// awaitRun waits until a one-off has ended.
func (c *cli) awaitRun(ctx context.Context, client pinnacev1connect.ControlServiceClient, i *pinnacev1.Instance) (*pinnacev1.Instance, error) {
	said := ""
	for {
		now, err := getInstance(ctx, client, i.Environment, i.Id, away)
		if err != nil {
			return nil, err
		}
		if now.EndedAt != nil { // for good, and in the log
			return now, nil
		}
		if now.State != said && (now.State == "pulling" || now.State == "unknown") {
			c.say("%s: %s %s", i.Id, now.State, printable(now.Message))
		}
		said = now.State
		select {
		case <-time.After(runLook):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// runOutput prints the lines of a one-off where the one-off wrote them.
type runOutput struct {
	cli  *cli
	last map[string]*pinnacev1.LogPosition // of the line that was printed last
}

// follow prints lines as they come, until ctx is done.
func (o *runOutput) follow(ctx context.Context, client pinnacev1connect.ControlServiceClient, i *pinnacev1.Instance) error {
	for ctx.Err() == nil {
		err := o.stream(ctx, client, i, true)
		if err != nil && !away(err) {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// rest prints the lines that had not come when the one-off ended.
func (o *runOutput) rest(ctx context.Context, client pinnacev1connect.ControlServiceClient, i *pinnacev1.Instance) {
	ctx, cancel := context.WithTimeout(ctx, runRest)
	defer cancel()
	err := persist(ctx, runRest, away, func() error { return o.stream(ctx, client, i, false) })
	if err != nil {
		_, message, _ := describe(err)
		o.cli.say("its last lines may be missing: %s", message)
	}
}

func (o *runOutput) stream(ctx context.Context, client pinnacev1connect.ControlServiceClient, i *pinnacev1.Instance, follow bool) error {
	stream, err := client.StreamLogs(ctx, connect.NewRequest(&pinnacev1.StreamLogsRequest{
		Environment: i.Environment, Target: i.Id, Follow: follow, After: slices.Collect(maps.Values(o.last)),
	}))
	if err != nil {
		return err
	}
	for stream.Receive() {
		if err := o.print(stream.Msg()); err != nil {
			return errors.Join(err, stream.Close())
		}
	}
	return errors.Join(stream.Err(), stream.Close())
}

func (o *runOutput) print(m *pinnacev1.StreamLogsResponse) error {
	if m.Seq != 0 {
		o.last[m.Instance] = &pinnacev1.LogPosition{Instance: m.Instance, Attempt: m.Attempt, Seq: m.Seq}
	}
	to, line := o.cli.stdout, m.Line
	switch m.Stream {
	case guest.StreamStderr:
		to = o.cli.stderr
	case guest.StreamStdout:
	default: // the platform's
		to, line = o.cli.stderr, append([]byte("-- "), line...)
	}
	if shown(to) {
		line = []byte(printable(string(line)))
	}
	if _, err := to.Write(append(slices.Clip(line), '\n')); err != nil {
		return fail(exitInternal, "", "write what one-off %s wrote: %w", m.Instance, err)
	}
	return nil
}

// shown tells whether somebody sees what is written to w on a terminal, which text from elsewhere must not control.
func shown(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// runOutcome is how a one-off ended, as the status of its command. An end that says nothing of the command is an error.
func runOutcome(i *pinnacev1.Instance) (*execOutcome, error) {
	o := &execOutcome{Instance: i.Id, Attempt: i.Attempt, Host: i.Host, TimedOut: i.Run.GetTimedOut()}
	end := i.LastEnd
	stopped := i.Run.GetStoppedBecause() != ""
	switch kind := end.GetKind(); {
	case kind == "exited":
		o.Code = uint32(end.Code) & 0xff
		if o.Code == 0 && stopped {
			o.Code = uint32(exitStopped)
		}
	case kind == "signalled", kind == "guest_oom":
		if o.Signal = end.Signal; o.Signal == "" {
			o.Signal = "SIGKILL"
		}
		o.Code = 128 + uint32(unix.SignalNum(o.Signal))
		if kind == "guest_oom" {
			o.Error = causeText(end)
		}
	case kind == "start_failed" && (end.Code == 126 || end.Code == 127):
		o.Code, o.Error = uint32(end.Code), end.Detail
	case o.TimedOut, stopped && end.GetPlanned():
		o.Code = uint32(exitStopped) // before the command had begun
	default:
		why := "nobody said how"
		if end != nil {
			why = causeText(end)
		}
		return nil, fail(exitInternal, "pinnace why "+i.Id+" tells more", "one-off %s did not come to its end: %s", i.Id, why)
	}
	return o, nil
}

// printRun says of a one-off what why says of it beside the rest.
func (c *cli) printRun(r *pinnacev1.RunDetails) {
	if r == nil {
		return
	}
	arguments := ""
	if r.Arguments > 0 {
		arguments = fmt.Sprintf(" with %s", plural(int(r.Arguments), "argument"))
	}
	c.print("one-off of %s: %s%s, until %s at most", printable(r.Actor), printable(r.Program), arguments, clock(r.Deadline))
	if r.StoppedBecause != "" {
		c.print("asked to stop: %s", printable(r.StoppedBecause))
	}
}
