package fleet

import (
	"errors"
	"fmt"
	"time"
)

// ErrExists means that what an event creates is there already, ErrNotFound that what it speaks of is not.
var (
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("not found")
	// ErrConflict means that a decision was made on what has changed since.
	ErrConflict = errors.New("changed in the meantime")
	// ErrFull means that there are as many of something as there may be.
	ErrFull = errors.New("no more are kept")
	// ErrLastAdmin means that nobody would be left who may do everything.
	ErrLastAdmin = errors.New("it is the last admin token for all environments: create another one first")
)

// BusyError means that a deployment of the app runs in the environment.
type BusyError struct{ Active *Deployment }

func (e *BusyError) Error() string {
	state := string(e.Active.State)
	if !e.Active.PausedAt.IsZero() {
		state = "paused"
	}
	return fmt.Sprintf("deployment %s of %s in %s is %s; one at a time", e.Active.ID, e.Active.App, e.Active.Environment, state)
}

// StaleError means that a decision was made when another deployment was live.
type StaleError struct{ Want, Have string }

func (e *StaleError) Error() string {
	return fmt.Sprintf("decided when deployment %q was live, but now %q is", e.Want, e.Have)
}

// PortConflictError means that another app, or another port of the same one, holds a public port or a host name.
type PortConflictError struct {
	// PortName is the name of the port in the manifest that asks for it.
	PortName, Protocol string
	PublicPort         int
	// HostName is what is asked for; empty when it is the port.
	HostName string
	// Environment and App hold it; both are empty for who may not know.
	Environment, App string
}

func (e *PortConflictError) Error() string {
	holder := fmt.Sprintf("app %s in environment %s", e.App, e.Environment)
	if e.Environment == "" {
		holder = "an app in another environment"
	}
	if e.HostName != "" {
		return fmt.Sprintf("ports.%s: the host name %s is held by %s", e.PortName, e.HostName, holder)
	}
	return fmt.Sprintf("ports.%s: public port %d (%s) is held by %s", e.PortName, e.PublicPort, e.Protocol, holder)
}

// NoRouteError means that a port is told apart by host names, and has none.
type NoRouteError struct{ Environment, App, PortName string }

func (e *NoRouteError) Error() string {
	return fmt.Sprintf("ports.%s of %s has edge = \"sni\", and environment %s has no host name for it", e.PortName, e.App, e.Environment)
}

// SecretInUseError means that a version of a bundle cannot be revoked.
type SecretInUseError struct {
	Bundle          string
	Version         uint64
	App, Deployment string
}

func (e *SecretInUseError) Error() string {
	return fmt.Sprintf("version %d of bundle %s is what %s has in deployment %s", e.Version, e.Bundle, e.App, e.Deployment)
}

// SecretRevokedError means that the values of a version are gone.
type SecretRevokedError struct {
	Environment, Bundle string
	Version             uint64
	By                  string
	At                  time.Time
}

func (e *SecretRevokedError) Error() string {
	return fmt.Sprintf("version %d of secret bundle %s of %s was revoked by %s on %s", e.Version, e.Bundle, e.Environment, e.By, e.At.Format(time.DateOnly))
}
