package vmtest_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// suiteGuest does what testdata/init does.
func suiteGuest(_ context.Context, g *vmtest.FakeGuest) vmtest.End {
	guest := vmtest.SuiteGuest{Control: g.Control, Logs: g.Logs, Console: g.Console}
	for _, d := range g.Spec.Disks {
		guest.Disks = append(guest.Disks, vmtest.SuiteDisk{Serial: d.ID, Path: d.Path, ReadOnly: d.ReadOnly})
	}
	return guest.Play()
}

func fakeSpec(t *testing.T) vm.Spec {
	t.Helper()
	spec, err := vmtest.FakeSpec(t.TempDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestFakeConforms(t *testing.T) {
	vmtest.Suite{Driver: vmtest.NewFake(suiteGuest), Spec: fakeSpec, Patience: 10 * time.Second}.Run(t)
}

func TestFakeSpecIsAlone(t *testing.T) {
	dir := t.TempDir()
	a, err := vmtest.FakeSpec(dir, "a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := vmtest.FakeSpec(dir, "b")
	if err != nil {
		t.Fatal(err)
	}
	if a.Dir == b.Dir || filepath.Dir(a.Dir) != dir {
		t.Errorf("got %s and %s", a.Dir, b.Dir)
	}
}
