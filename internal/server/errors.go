package server

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

// refuse makes an error that the caller sees as it is.
func refuse(code connect.Code, format string, args ...any) error {
	return connect.NewError(code, fmt.Errorf(format, args...))
}

func portAdvice(p *fleet.PortConflictError) string {
	if p.HostName != "" {
		return "Choose another name, or take it from that app: pinnace routes set"
	}
	return "Choose another public_port, in the manifest or with pinnace routes set, or stop that app"
}

// onWire gives an error the code that stands for it. What nobody foresaw is logged, and the caller learns
// only that it happened.
func (s *Server) onWire(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if known, ok := errors.AsType[*connect.Error](err); ok {
		return known
	}
	// The fold refuses an event in more words than a caller needs.
	if rejected, ok := errors.AsType[*eventlog.RejectedError](err); ok {
		err = rejected.Cause
	}
	var (
		busy    *fleet.BusyError
		stale   *fleet.StaleError
		port    *fleet.PortConflictError
		route   *fleet.NoRouteError
		used    *fleet.SecretInUseError
		revoked *fleet.SecretRevokedError
		place   *scheduler.Refusal
		regress *eventlog.RegressionError
		volumes *volumeError
		held    *fleet.HeldError
		gone    *fleet.DestroyedError
	)
	switch {
	case errors.As(err, &busy):
		return refuse(connect.CodeAborted, "%w. Wait for it: pinnace status -e %s", busy, busy.Active.Environment)
	case errors.As(err, &stale):
		return refuse(connect.CodeAborted, "somebody else deployed at the same time: %w. Look at what is live and try again", stale)
	case errors.As(err, &port):
		return refuse(connect.CodeFailedPrecondition, "%w. %s", holderFor(ctx, port), portAdvice(port))
	case errors.As(err, &route):
		return refuse(connect.CodeFailedPrecondition, "%w. Give it one: pinnace routes set -e %s %s %s --name HOST", route, route.Environment, route.App, route.PortName)
	case errors.As(err, &used):
		return refuse(connect.CodeFailedPrecondition, "%w. Put a new version first: pinnace secrets put %s", used, used.Bundle)
	case errors.As(err, &revoked):
		return connect.NewError(connect.CodeFailedPrecondition, revoked)
	case errors.Is(err, fleet.ErrConflict):
		return refuse(connect.CodeAborted, "%w. Look at it and try again", err)
	case errors.Is(err, fleet.ErrFull):
		return connect.NewError(connect.CodeResourceExhausted, err)
	case errors.As(err, &place):
		if place.Hosts == 0 {
			return connect.NewError(connect.CodeUnavailable, place)
		}
		if place.NotConnected == place.Hosts {
			return refuse(connect.CodeUnavailable, "%w. Is `pinnace agent` running there?", place)
		}
		return refuse(connect.CodeFailedPrecondition, "%w", place)
	case errors.As(err, &volumes):
		return connect.NewError(connect.CodeFailedPrecondition, volumes)
	case errors.As(err, &held):
		return refuse(connect.CodeFailedPrecondition, "%w\nhint: stop it first: pinnace stop %s -e %s, or scale it down", held, held.Volume.App, held.Volume.Environment)
	case errors.As(err, &gone):
		return connect.NewError(connect.CodeAborted, gone)
	case errors.As(err, &regress):
		return refuse(connect.CodeFailedPrecondition, "%w", regress)
	case errors.Is(err, fleet.ErrNotFound):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, fleet.ErrExists):
		return connect.NewError(connect.CodeAlreadyExists, err)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeCanceled, err)
	case errors.Is(err, eventlog.ErrFollowing):
		return refuse(connect.CodeUnavailable, "%w\nhint: send changes to the server that leads", err)
	case errors.Is(err, eventlog.ErrNoKey):
		return connect.NewError(connect.CodeFailedPrecondition, err)
	case errors.Is(err, eventlog.ErrNotCommitted), errors.Is(err, eventlog.ErrUnknown), errors.Is(err, eventlog.ErrFailed), errors.Is(err, eventlog.ErrClosed):
		s.log.ErrorContext(ctx, "append to the event log", "error", err)
		return refuse(connect.CodeUnavailable, "the server could not write its log; nothing is lost, look at its log and try again")
	default:
		s.log.ErrorContext(ctx, "request failed", "error", err)
		return refuse(connect.CodeInternal, "internal error; the server's log says more")
	}
}
