package firecracker_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker/firecrackertest"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// guestUID is no user of the host.
const guestUID = 870000

// cgroupParent is the cgroup above those of the tests' machines.
const cgroupParent = "pinnace-firecracker-test"

// TestMain is also the stand-in for Firecracker and its jailer, when it is started by their names.
func TestMain(m *testing.M) {
	holder.Enter()
	code, isMonitor := firecrackertest.Main(map[string]firecrackertest.Guest{
		"suite": suiteGuest, "init": initGuest, "silent": silentGuest, "flood": floodGuest,
		"fails": func(context.Context, *firecrackertest.Machine) vmtest.End { return vmtest.End{Code: 148} },
	})
	if isMonitor {
		os.Exit(code)
	}
	if dir := os.Getenv(crashEnv); dir != "" {
		os.Exit(crash(dir))
	}
	os.Exit(m.Run())
}

// suiteGuest does what the conformance suite says.
func suiteGuest(_ context.Context, m *firecrackertest.Machine) vmtest.End {
	return vmtest.SuiteGuest{
		Control: m.Stream(guest.ControlPort), Logs: m.Stream(guest.LogsPort), Console: m.Console, Disks: m.Disks,
	}.Play()
}

// initGuest speaks pinnace-init's protocol.
func initGuest(ctx context.Context, m *firecrackertest.Machine) vmtest.End {
	workload := guesttest.Workload{Run: func(ctx context.Context, p *guesttest.Process) int {
		for i := range 100 {
			if err := p.Log(guest.StreamStdout, fmt.Sprint("line ", i)); err != nil {
				return 1
			}
		}
		<-ctx.Done()
		return 7
	}}
	return vmtest.End{Panic: workload.Boot(ctx, guesttest.Machine{
		Control: m.Stream(guest.ControlPort), Logs: m.Stream(guest.LogsPort), Console: m.Console, MemoryBytes: m.MemoryBytes,
	})}
}

func silentGuest(context.Context, *firecrackertest.Machine) vmtest.End {
	select {}
}

// floodGuest writes to its console and connects to the host as often as it can, until a connection that it keeps is
// told to stop.
func floodGuest(_ context.Context, m *firecrackertest.Machine) vmtest.End {
	for !hasConnected(m) {
		time.Sleep(time.Millisecond)
	}
	go func() {
		line := []byte(strings.Repeat("flood ", 1000) + "\r\n")
		for {
			m.Console.Write(line)
		}
	}()
	for range 4 {
		go func() {
			for {
				hasConnected(m)
			}
		}()
	}
	bufio.NewReader(m.Stream(guest.LogsPort)).ReadString('\n')
	return vmtest.End{}
}

func hasConnected(m *firecrackertest.Machine) bool {
	conn, err := m.Dial(guest.ControlPort)
	if err == nil {
		fmt.Fprintln(conn, "noise")
		conn.Close()
	}
	return err == nil
}

// options are those of a driver that runs the stand-in, all of it in a directory of the test.
func options(t *testing.T, guestName string) firecracker.Options {
	t.Helper()
	dir := vmtest.Dir(t)
	o := firecracker.Options{
		JailDir: filepath.Join(dir, "jails"), CacheDir: filepath.Join(dir, "cache"),
		Kernel: filepath.Join(dir, "vmlinux"), Initramfs: filepath.Join(dir, "initramfs"),
	}
	o.Binary, o.Jailer = firecrackertest.Install(t)
	for path, content := range map[string][]byte{o.Kernel: firecrackertest.Kernel(), o.Initramfs: firecrackertest.Initramfs(guestName)} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func newDriver(t *testing.T, o firecracker.Options) *firecracker.Driver {
	t.Helper()
	d, err := firecracker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return d.WithoutKVM()
}

// newSpec returns a spec for a machine that boots what o names, beside the jails.
func newSpec(t *testing.T, kernel, initramfs string) vm.Spec {
	t.Helper()
	dir := filepath.Join(vmtest.Dir(t), "m")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	spec := vm.Spec{
		ID: "app-x." + filepath.Base(filepath.Dir(dir)), Dir: dir, Kernel: kernel, Initramfs: initramfs,
		VCPUs: 1, MemoryMiB: 128, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
	}
	if os.Geteuid() == 0 {
		spec.UID, spec.GID = guestUID, guestUID
		if _, err := cgroup.Find(); err == nil && canMakeCgroups() {
			spec.Cgroup = fmt.Sprintf("%s/%d", cgroupParent, time.Now().UnixNano())
		}
	}
	return spec
}

// canMakeCgroups tells whether root is allowed to do so here, which it is not in some containers.
func canMakeCgroups() bool {
	h, err := cgroup.Find()
	if err != nil {
		return false
	}
	return os.MkdirAll(filepath.Join(h.Mount, cgroupParent), 0o750) == nil
}

func removeCgroupParent(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if h, err := cgroup.Find(); err == nil && os.Geteuid() == 0 {
			if err := h.Remove(cgroupParent); err != nil {
				t.Error(err)
			}
		}
	})
}

func end(t *testing.T, m vm.Machine) vm.Exit {
	t.Helper()
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	return wait(t, m)
}

func wait(t *testing.T, m vm.Machine) vm.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	exit, err := m.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

// wantNoJails fails when a jail is left.
func wantNoJails(t *testing.T, dir string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("jails are left: %v, %v", left, err)
	}
}
