package vm

import (
	"context"
	"errors"
	"fmt"
)

// Drivers start machines with one driver and look after those that others have started: a host whose driver was changed
// still has machines of the one before.
type Drivers struct {
	Driver // of new machines

	others []Driver
}

var _ Driver = (*Drivers)(nil)

// NewDrivers returns a driver that is the first, except that machines of the others can be adopted and what they left is
// removed. The others need not work on this host.
func NewDrivers(first Driver, others ...Driver) *Drivers {
	return &Drivers{Driver: first, others: others}
}

// Adopt implements Driver, with the driver that the record names. One that is not there is no proof of anything against
// the machine, so the error does not wrap ErrNotOurs.
func (d *Drivers) Adopt(ctx context.Context, r Record) (Machine, error) {
	for _, by := range append([]Driver{d.Driver}, d.others...) {
		if by.Name() == r.Driver {
			return by.Adopt(ctx, r)
		}
	}
	return nil, fmt.Errorf("adopt machine %s: it is of the driver %q, which this program does not have", r.ID, r.Driver)
}

// A Sweeper is a driver whose machines leave things that no record names.
type Sweeper interface {
	// Sweep removes what no living process owns, and ends the monitors of machines below root that have no record
	// by which anybody could adopt them. It returns how many machines it removed something of.
	Sweep(ctx context.Context, root string) (int, error)
}

// Sweep implements Sweeper, with all drivers that are one.
func (d *Drivers) Sweep(ctx context.Context, root string) (int, error) {
	removed := 0
	var errs []error
	for _, by := range append([]Driver{d.Driver}, d.others...) {
		if s, ok := by.(Sweeper); ok {
			n, err := s.Sweep(ctx, root)
			removed += n
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}
