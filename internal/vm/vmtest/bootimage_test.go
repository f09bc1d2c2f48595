package vmtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestBootImage proves the layout of an image's disks where it counts, in a guest: an image of more layers than
// get drives of their own is pulled, attached, mounted by pinnace-init and read by a program that it holds, file
// by file; and the program's exit status comes back.
func TestBootImage(t *testing.T) {
	source := vmtest.NeedGuests(t)
	k := vmtest.Prepare(t, source, vmtest.Build(t, "github.com/pinnacehq/pinnace/cmd/pinnace-init"))
	program, err := os.ReadFile(vmtest.Build(t, "./testdata/tree"))
	if err != nil {
		t.Fatal(err)
	}
	driver, err := qemu.New(qemu.Options{Accel: qemu.TCG})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ layers, drives int }{
		"with a pack disk": {image.LayerDrives + 12, image.LayerDrives},
		"without":          {9, 9},
		"of 127 layers":    {127, image.LayerDrives},
	} {
		t.Run(name, func(t *testing.T) {
			all := layers(tt.layers, program)
			set, uuid := pull(t, all, tt.drives)
			spec, config := imageSpec(t, set, uuid)
			spec.Kernel, spec.Initramfs = k.Path, k.Initramfs
			got, exit := runImage(t, driver, spec, config)
			if exit.Code != 42 {
				t.Errorf("exit: got %+v, want code 42", exit)
			}
			want := append([]string{"size of / is over 19 GiB: true"}, merge(all)...)
			if !slices.Equal(got, want) {
				t.Errorf("the guest saw\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// pull puts an image of the layers into a store and returns its disks, at most so many of them layers' own.
func pull(t *testing.T, layers [][]imagetest.Entry, drives int) (set image.DiskSet, uuid string) {
	t.Helper()
	b := imagetest.New()
	for _, entries := range layers {
		b.Layer(entries...)
	}
	built := b.Build()
	store, err := image.Open(vmtest.Dir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	img, err := store.Pull(t.Context(), built, built.ManifestDigest, built.Manifest, built.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	set, err = store.Disks(img, drives)
	if err != nil {
		t.Fatal(err)
	}
	return set, img.UUID
}

// imageSpec attaches the disks and tells the guest about them.
func imageSpec(t *testing.T, set image.DiskSet, uuid string) (vm.Spec, guest.Config) {
	t.Helper()
	dir := vmtest.Dir(t)
	scratch := filepath.Join(dir, "scratch.ext4")
	if err := vm.NewScratch(filepath.Join(dir, "templates")).Make(t.Context(), scratch, 20<<30); err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{
		ID: "boot-image", Dir: dir, VCPUs: 1, MemoryMiB: 192, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		Disks: []vm.Disk{{ID: "meta", Path: set.Metadata, ReadOnly: true}},
	}
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = 870001, 870001
	}
	config := guest.Config{
		Hostname: "tree", Process: guest.Process{Entrypoint: []string{"/bin/tree"}},
		Disks: []guest.Disk{{Role: guest.RoleRootMeta, Serial: "meta", UUID: uuid}},
	}
	for i, d := range set.Drives {
		serial, role := fmt.Sprintf("layer%d", i), guest.RoleLayer
		if d.Pack {
			serial, role = "pack", guest.RolePack
		}
		spec.Disks = append(spec.Disks, vm.Disk{ID: serial, Path: d.Path, ReadOnly: true})
		config.Disks = append(config.Disks, guest.Disk{Role: role, Serial: serial, Order: i + 1})
	}
	for _, l := range set.Layers {
		config.LayerSlots = append(config.LayerSlots, guest.LayerSlot{Disk: l.Drive + 1, Partition: l.Partition})
	}
	spec.Disks = append(spec.Disks, vm.Disk{ID: "scratch", Path: scratch})
	config.Disks = append(config.Disks, guest.Disk{Role: guest.RoleScratch, Serial: "scratch", Order: len(config.Disks)})
	return spec, config
}

// runImage runs the machine to its end and returns what its workload printed and reported.
func runImage(t *testing.T, driver vm.Driver, spec vm.Spec, config guest.Config) (lines []string, report guest.Exit) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // emulated, on a machine that may have other work
	defer cancel()
	m, err := driver.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		exit, err := m.Wait(context.WithoutCancel(ctx))
		if err != nil || exit.Killed || exit.Code != 0 {
			t.Errorf("machine ended: %v, %v; console:\n%q", exit, err, exit.ConsoleTail)
		}
	}()
	control, err := m.Dial(ctx, vm.Control)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := m.Dial(ctx, vm.Logs)
	if err != nil {
		t.Fatal(err)
	}
	host := guest.NewHost(control, logs, guest.Options{Logs: func(batch []guest.Line) error {
		for _, l := range batch {
			lines = append(lines, string(l.Data))
		}
		return nil
	}})
	var running sync.WaitGroup
	defer running.Wait() // lines are complete then
	running.Go(func() {
		if err := host.Run(ctx); errors.Is(err, guest.ErrProtocol) {
			t.Error(err)
		}
	})
	started, err := host.Configure(ctx, config)
	if err != nil {
		cancel()
		t.Fatalf("configure: %v", err)
	}
	t.Logf("marks: %+v", started.Marks)
	select {
	case report = <-host.Exit():
	case <-host.Done():
		t.Fatal("the session ended without a report")
	}
	if err := host.AckExit(ctx); err != nil {
		t.Error(err)
	}
	if _, err := m.Wait(ctx); err != nil {
		t.Error(err)
	}
	<-host.Done()
	return lines, report
}
