package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
)

// TestRunOutcome: the exit status of a one-off is that of its command, and never a success that it was not.
func TestRunOutcome(t *testing.T) {
	stopped := &pinnacev1.RunDetails{StoppedBecause: "asked to"}
	late := &pinnacev1.RunDetails{StoppedBecause: "its time was over", TimedOut: true}
	for _, c := range []struct {
		name   string
		run    *pinnacev1.RunDetails
		end    *pinnacev1.Cause
		status int
	}{
		{"done", nil, &pinnacev1.Cause{Kind: "exited"}, 0},
		{"failed", nil, &pinnacev1.Cause{Kind: "exited", Code: 3}, 3},
		{"killed", nil, &pinnacev1.Cause{Kind: "signalled", Signal: "SIGKILL"}, 137},
		{"stopped with its own status", stopped, &pinnacev1.Cause{Kind: "exited", Code: 3, Planned: true}, 3},
		{"stopped and content with it", stopped, &pinnacev1.Cause{Kind: "exited", Planned: true}, 143},
		{"stopped by a signal", stopped, &pinnacev1.Cause{Kind: "signalled", Signal: "SIGTERM", Planned: true}, 143},
		{"stopped before it began", stopped, &pinnacev1.Cause{Kind: "start_failed", Planned: true}, 143},
		{"too late", late, &pinnacev1.Cause{Kind: "exited", Planned: true}, 124},
		{"too late to begin", late, &pinnacev1.Cause{Kind: "start_failed", Planned: true}, 124},
		{"out of memory", nil, &pinnacev1.Cause{Kind: "guest_oom", Signal: "SIGKILL"}, 137},
		{"not there", nil, &pinnacev1.Cause{Kind: "start_failed", Stage: "exec", Code: 127, Detail: "no such file"}, 127},
		{"not to be executed", nil, &pinnacev1.Cause{Kind: "start_failed", Stage: "exec", Code: 126}, 126},
		{"no image", nil, &pinnacev1.Cause{Kind: "start_failed", Stage: "pull"}, 125},
		{"no sign of it", nil, &pinnacev1.Cause{Kind: "lost"}, 125},
		{"no sign of it after it was to stop", stopped, &pinnacev1.Cause{Kind: "lost"}, 125},
		{"panic", nil, &pinnacev1.Cause{Kind: "kernel_panic"}, 125},
		{"nobody knows", nil, nil, 125},
	} {
		cli := &cli{stdout: io.Discard, stderr: io.Discard}
		err := cli.execStatus(runOutcome(&pinnacev1.Instance{Id: "api-1", Run: c.run, LastEnd: c.end}))
		if got := exitStatus(io.Discard, err); got != c.status {
			t.Errorf("%s: status %d, want %d (%v)", c.name, got, c.status, err)
		}
	}
}

// TestAway: what a call ends with whose server is killed is no answer, and what is one is not asked for again.
func TestAway(t *testing.T) {
	for _, err := range []error{
		connect.NewError(connect.CodeUnavailable, errors.New("x")), connect.NewError(connect.CodeCanceled, context.Canceled),
		io.ErrUnexpectedEOF, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("incomplete envelope: %w", io.ErrUnexpectedEOF)), unreachable("http://127.0.0.1:1"),
	} {
		if !away(err) {
			t.Errorf("%v is taken for an answer", err)
		}
	}
	for _, err := range []error{
		connect.NewError(connect.CodeNotFound, errors.New("x")), connect.NewError(connect.CodeUnauthenticated, errors.New("x")),
		fail(exitInternal, "", "write: %w", io.ErrClosedPipe), connect.NewError(connect.CodeInvalidArgument, errors.New("x")),
	} {
		if away(err) {
			t.Errorf("%v is asked for again", err)
		}
	}
}
