package qemu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// patience is for a guest that is emulated on a host that does other things too.
const patience = 90 * time.Second

// guestUID is no user of the host.
const guestUID = 870000

// specs returns a maker of specs that boot the suite's guest.
func specs(t *testing.T) func(*testing.T) vm.Spec {
	source := vmtest.NeedGuests(t)
	k := vmtest.Prepare(t, source, vmtest.Build(t, vmtest.GuestInit))
	return func(t *testing.T) vm.Spec {
		dir := filepath.Join(vmtest.Dir(t), "m")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		spec := vm.Spec{
			ID: "test-" + filepath.Base(filepath.Dir(dir)), Dir: dir,
			Kernel: k.Path, Initramfs: k.Initramfs, VCPUs: 1, MemoryMiB: 128,
			UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		}
		if os.Geteuid() == 0 {
			spec.UID, spec.GID = guestUID, guestUID
			spec.Cgroup = fmt.Sprintf("pinnace-test/%d", time.Now().UnixNano())
		}
		return spec
	}
}

func driver(t *testing.T, accel qemu.Accel) *qemu.Driver {
	t.Helper()
	d, err := qemu.New(qemu.Options{Accel: accel})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConformance(t *testing.T) {
	spec := specs(t)
	vmtest.Suite{Driver: driver(t, qemu.TCG), Spec: spec, Patience: patience, Processes: true}.Run(t)
}
