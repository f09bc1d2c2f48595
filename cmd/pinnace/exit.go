package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/registry"
)

// The exit statuses are part of the interface: scripts branch on them.
const (
	exitOK           = 0
	exitInternal     = 1
	exitInvalid      = 2
	exitDenied       = 3
	exitNotFound     = 4
	exitConflict     = 5
	exitUnreachable  = 6
	exitRolledBack   = 7
	exitNotRestored  = 8
	exitWaitTimedOut = 9
	exitChanges      = 10
)

const exitStatusHelp = `Exit statuses:
  0  done, or nothing to do
  1  internal error
  2  invalid input
  3  not allowed
  4  not found
  5  conflict, or a stale plan
  6  unreachable; worth a retry
  7  the rollout failed, and the previous release serves
  8  the rollout failed, and no earlier release could be restored
  9  the wait timed out; it is still running
  10 changes are pending`

// A failure is an error with what a person can do about it and the status that a script sees.
type failure struct {
	status int
	err    error
	hint   string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// fail makes a failure from a format, as fmt.Errorf does.
func fail(status int, hint, format string, args ...any) error {
	return &failure{status: status, err: fmt.Errorf(format, args...), hint: hint}
}

// errReported stands for a failure that the user has been told of in full already.
type errReported struct{ status int }

func (e errReported) Error() string { return fmt.Sprintf("exit status %d", e.status) }

// exitStatus tells the user of err and returns the status to exit with.
func exitStatus(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	if reported, ok := errors.AsType[errReported](err); ok {
		return reported.status
	}
	status, message, hint := describe(err)
	fmt.Fprintln(stderr, "error: "+message)
	if hint != "" {
		fmt.Fprintln(stderr, "hint: "+hint)
	}
	return status
}

// describe says of an error what to print and which status it has.
func describe(err error) (status int, message, hint string) {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.status, err.Error(), f.hint
	}
	if c, ok := errors.AsType[*connect.Error](err); ok {
		return describeRPC(c)
	}
	if r, ok := errors.AsType[*registry.Error](err); ok {
		return registryStatus(r), err.Error(), r.Hint
	}
	if errors.Is(err, fleet.ErrNewer) {
		return exitConflict, err.Error(), "start the version that wrote it; the way back is a backup from before the upgrade (docs/operate/upgrade.md)"
	}
	if errors.Is(err, context.Canceled) {
		return exitInternal, "interrupted", ""
	}
	return exitInternal, err.Error(), ""
}

// describeRPC turns what the server answered into a status. A server's message may carry its hint behind
// the first line.
func describeRPC(c *connect.Error) (status int, message, hint string) {
	message, hint, _ = strings.Cut(c.Message(), "\nhint: ")
	switch c.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange, connect.CodeResourceExhausted:
		status = exitInvalid
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		status = exitDenied
		if hint == "" {
			hint = "check the token: --token, PINNACE_TOKEN, or the current context"
		}
	case connect.CodeNotFound:
		status = exitNotFound
	case connect.CodeFailedPrecondition, connect.CodeAborted, connect.CodeAlreadyExists:
		status = exitConflict
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded:
		status = exitUnreachable
		if hint == "" {
			hint = "is the server running? --server or PINNACE_SERVER says where it is"
		}
	case connect.CodeCanceled:
		status, message = exitInternal, "interrupted"
	default:
		status = exitInternal
	}
	return status, message, hint
}

// registryStatus is the status of what a registry said.
func registryStatus(err error) int {
	switch {
	case errors.Is(err, registry.ErrNotFound):
		return exitNotFound
	case errors.Is(err, registry.ErrUnauthorized):
		return exitDenied
	case errors.Is(err, registry.ErrUnreachable):
		return exitUnreachable
	}
	return exitInvalid
}
