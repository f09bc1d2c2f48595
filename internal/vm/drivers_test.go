package vm_test

import (
	"context"
	"errors"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// namedDriver remembers what it was asked for.
type namedDriver struct {
	vm.Driver // nothing else is called

	name    string
	adopted []string
	swept   []string
	fails   error
}

func (d *namedDriver) Name() string { return d.name }

func (d *namedDriver) Adopt(_ context.Context, r vm.Record) (vm.Machine, error) {
	d.adopted = append(d.adopted, r.ID)
	return nil, d.fails
}

func (d *namedDriver) Sweep(_ context.Context, root string) (int, error) {
	d.swept = append(d.swept, root)
	return 2, d.fails
}

// unswept hides Sweep.
type unswept struct{ vm.Driver }

func TestDrivers(t *testing.T) {
	broken := errors.New("broken")
	newer, older, other := &namedDriver{name: "new"}, &namedDriver{name: "old", fails: broken}, &namedDriver{name: "other"}
	d := vm.NewDrivers(newer, older, unswept{other})
	if d.Name() != "new" {
		t.Errorf("its name is %q", d.Name())
	}
	if _, err := d.Adopt(t.Context(), vm.Record{ID: "a", Driver: "new"}); err != nil {
		t.Error(err)
	}
	if _, err := d.Adopt(t.Context(), vm.Record{ID: "b", Driver: "old"}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := d.Adopt(t.Context(), vm.Record{ID: "c", Driver: "unheard-of"}); err == nil || errors.Is(err, vm.ErrNotOurs) {
		t.Errorf("got %v", err)
	}
	if len(newer.adopted) != 1 || newer.adopted[0] != "a" || len(older.adopted) != 1 || older.adopted[0] != "b" || other.adopted != nil {
		t.Errorf("adopted: %v, %v, %v", newer.adopted, older.adopted, other.adopted)
	}
	n, err := d.Sweep(t.Context(), "/root")
	if n != 4 || !errors.Is(err, broken) || len(newer.swept) != 1 || len(older.swept) != 1 || other.swept != nil {
		t.Errorf("Sweep: got %d, %v; swept %v, %v, %v", n, err, newer.swept, older.swept, other.swept)
	}
}
