package qemu_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// patience is for a guest that is emulated on a host that does other things too.
const patience = 90 * time.Second

// guestUID is no user of the host.
const guestUID = 870000

// cgroupParent is the cgroup above those of the tests' machines.
const cgroupParent = "pinnace-qemu-test"

// specs returns a maker of specs that boot the suite's guest.
func specs(t *testing.T) func(*testing.T) vm.Spec {
	source := vmtest.NeedGuests(t)
	k := vmtest.Prepare(t, source, vmtest.Build(t, vmtest.GuestInit))
	t.Cleanup(func() {
		if h, err := cgroup.Find(); err == nil && os.Geteuid() == 0 {
			if err := h.Remove(cgroupParent); err != nil {
				t.Error(err)
			}
		}
	})
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
			spec.Cgroup = fmt.Sprintf("%s/%d", cgroupParent, time.Now().UnixNano())
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

// TestProbeKVM holds on every host: where KVM works it must be found, and where it is missing, fails or hangs
// the answer must be TCG with the reason, in bounded time. There are hosts where the one model of a processor
// fails and the other hangs.
func TestProbeKVM(t *testing.T) {
	spec := specs(t)(t)
	for _, cpu := range []string{qemu.DefaultCPU, "qemu64"} {
		t.Run(cpu, func(t *testing.T) { testProbeKVM(t, spec, cpu) })
	}
}

func testProbeKVM(t *testing.T, spec vm.Spec, cpu string) {
	cache := filepath.Join(vmtest.Dir(t), "cache")
	probe := func() (vm.Capabilities, time.Duration) {
		t.Helper()
		d, err := qemu.New(qemu.Options{CPU: cpu, Kernel: spec.Kernel, Initramfs: spec.Initramfs, CacheDir: cache})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		can, err := d.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return can, time.Since(start)
	}
	first, took := probe()
	t.Logf("%s after %v: %s", first.Accelerator, took, first.Reason)
	if (first.Accelerator == "kvm") != (first.Reason == "") || took > 15*time.Second {
		t.Errorf("got %q because %q, after %v", first.Accelerator, first.Reason, took)
	}
	second, took := probe()
	if second.Accelerator != first.Accelerator || second.Reason != first.Reason || took > 2*time.Second {
		t.Errorf("second probe: got %q (%q) after %v, want the remembered answer", second.Accelerator, second.Reason, took)
	}
	left, err := filepath.Glob(filepath.Join(cache, "probe-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left in the cache: %v, %v", left, err)
	}
}

func TestMissingQEMU(t *testing.T) {
	d, err := qemu.New(qemu.Options{Binary: "qemu-system-nonexistent", Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	for name, try := range map[string]func() error{
		"Probe": func() error { _, err := d.Probe(t.Context()); return err },
		"Start": func() error { _, err := d.Start(t.Context(), vm.Spec{}); return err },
	} {
		err := try()
		var missing *vm.MissingError
		if !errors.As(err, &missing) || missing.Package != "qemu-system-x86" {
			t.Errorf("%s: got %v, want a MissingError that names the package", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, opts := range map[string]qemu.Options{
		"unknown accelerator": {Accel: "hax"},
		"auto with no kernel": {Accel: qemu.Auto, Initramfs: "/i", CacheDir: "/c"},
		"CPU with a space":    {Accel: qemu.TCG, CPU: "max -snapshot"},
		"negative cache":      {Accel: qemu.TCG, TranslationCacheMiB: -1},
	} {
		if _, err := qemu.New(opts); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
