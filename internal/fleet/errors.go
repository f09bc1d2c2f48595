package fleet

import (
	"errors"
	"fmt"
)

// ErrExists means that what an event creates is there already, ErrNotFound that what it speaks of is not.
var (
	ErrExists   = errors.New("exists already")
	ErrNotFound = errors.New("not found")
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

// PortConflictError means that another app holds a public port.
type PortConflictError struct {
	// PortName is the name of the port in the manifest that asks for it.
	PortName, Protocol string
	PublicPort         int
	Environment, App   string
}

func (e *PortConflictError) Error() string {
	return fmt.Sprintf("ports.%s: public port %d (%s) is held by app %s in environment %s", e.PortName, e.PublicPort, e.Protocol, e.App, e.Environment)
}
