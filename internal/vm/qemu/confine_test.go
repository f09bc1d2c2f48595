package qemu_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
	"github.com/pinnacehq/pinnace/internal/vm/qemu"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

const tapName = "vmtest0"

// namespace makes a network namespace with a tap device and returns its path.
func namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("vmtest-%d", os.Getpid())
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the namespace now
		handle, err := netns.NewNamed(name)
		if err == nil {
			defer handle.Close()
			err = netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP})
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.DeleteNamed(name); err != nil {
			t.Error(err)
		}
	})
	return "/run/netns/" + name
}

// TestMonitorIsConfined looks at the process from outside: it must have nothing of the host.
func TestMonitorIsConfined(t *testing.T) {
	vmtest.NeedRoot(t)
	spec := specs(t)(t)
	spec.Netns = namespace(t)
	spec.NIC = &vm.NIC{Tap: tapName, MAC: "02:70:69:6e:00:01"}
	m, err := driver(t, qemu.TCG).Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	conn, err := m.Dial(t.Context(), vm.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(conn)
	fmt.Fprintln(conn, "macs")
	for _, want := range []string{"hello\n", spec.NIC.MAC + "\n"} {
		if got, err := in.ReadString('\n'); got != want {
			t.Errorf("guest: got %q, %v, want %q", got, err, want)
		}
	}

	proc := fmt.Sprintf("/proc/%d", m.PID())
	status := read(t, proc+"/status")
	uid := fmt.Sprintf("%d\t%[1]d\t%[1]d\t%[1]d", guestUID)
	for field, want := range map[string]string{
		"Uid": uid, "Gid": uid, "Groups": "", "NoNewPrivs": "1", "Seccomp": "2",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapAmb": "0000000000000000",
	} {
		if got := fieldOf(status, field); got != want {
			t.Errorf("%s: got %q, want %q", field, got, want)
		}
	}
	wantSameFile(t, "network namespace", proc+"/ns/net", spec.Netns)
	entries, err := os.ReadDir(proc + "/root")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{"usr", "bin", "lib", "lib64", "dev", "kernel", "initramfs", "holder"}, e.Name()) {
			t.Errorf("the monitor sees /%s", e.Name())
		}
	}
	if err := os.WriteFile(proc+"/root/usr/pinnace-test", nil, 0o600); err == nil {
		os.Remove(proc + "/root/usr/pinnace-test")
		t.Error("the monitor's /usr can be written to")
	}
	if h, err := cgroup.Find(); err == nil {
		if pids := read(t, filepath.Join(h.Mount, spec.Cgroup, "cgroup.procs")); !slices.Equal(strings.Fields(pids), []string{fmt.Sprint(m.Record().PID), fmt.Sprint(m.PID())}) {
			t.Errorf("cgroup holds %q, want the holder %d and the monitor %d", pids, m.Record().PID, m.PID())
		}
	}
	for _, secret := range []string{spec.ID, spec.Dir} {
		if strings.Contains(read(t, proc+"/cmdline"), secret) {
			t.Errorf("the command line tells %q", secret)
		}
	}
}

// TestTapMustExist: the kernel would make a device that leads nowhere.
func TestTapMustExist(t *testing.T) {
	vmtest.NeedRoot(t)
	spec := specs(t)(t)
	spec.Netns = namespace(t)
	spec.NIC = &vm.NIC{Tap: "vmtest-none", MAC: "02:70:69:6e:00:01"}
	m, err := driver(t, qemu.TCG).Start(t.Context(), spec)
	if err == nil {
		end(t, m)
		t.Fatal("started")
	}
	if !strings.Contains(err.Error(), "vmtest-none") {
		t.Errorf("got %v", err)
	}
}

// TestRootIsRefused: a monitor never runs as root.
func TestRootIsRefused(t *testing.T) {
	vmtest.NeedRoot(t)
	spec := specs(t)(t)
	spec.UID = 0
	if m, err := driver(t, qemu.TCG).Start(t.Context(), spec); err == nil {
		end(t, m)
		t.Error("started")
	}
}

// parentEnv tells the test program to be the parent of TestMachineOutlivesItsStarter; it holds the spec.
const parentEnv = "VMTEST_PARENT_SPEC"

// TestMain is also the holder of the tests' monitors, when it is started by that name.
func TestMain(m *testing.M) {
	holder.Enter()
	if dir := os.Getenv(parentEnv); dir != "" {
		os.Exit(beParent(dir))
	}
	os.Exit(m.Run())
}

// beParent starts a machine, says so, and waits to be killed.
func beParent(dir string) int {
	d, err := qemu.New(qemu.Options{Accel: qemu.TCG})
	if err == nil {
		spec := vm.Spec{ID: "orphan", Dir: dir, Kernel: os.Args[1], Initramfs: os.Args[2], VCPUs: 1, MemoryMiB: 128, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
		if os.Geteuid() == 0 {
			spec.UID, spec.GID = guestUID, guestUID
		}
		var m vm.Machine
		if m, err = d.Start(context.Background(), spec); err == nil {
			fmt.Println(m.PID())
			_, err = m.Wait(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// startedByAnother starts a machine from another process and kills that.
func startedByAnother(t *testing.T) (pid int, dir string) {
	t.Helper()
	spec := specs(t)(t)
	parent := exec.CommandContext(t.Context(), os.Args[0], spec.Kernel, spec.Initramfs)
	parent.Env = append(os.Environ(), parentEnv+"="+spec.Dir)
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	parent.Wait()
	return pid, spec.Dir
}

// TestMachineOutlivesItsStarter is the promise that a killed agent costs no machine: another process takes it over.
func TestMachineOutlivesItsStarter(t *testing.T) {
	pid, dir := startedByAnother(t)
	r, err := vm.ReadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := driver(t, qemu.TCG).Adopt(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	conn, err := m.Dial(t.Context(), vm.Control)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintln(conn, "echo alive")
	in := bufio.NewScanner(conn)
	for in.Scan() && in.Text() != "alive" {
	}
	if in.Text() != "alive" || m.PID() != pid || !alive(pid) {
		t.Errorf("got %q from process %d, want %d", in.Text(), m.PID(), pid)
	}
	for _, proc := range []int{pid, r.PID} {
		if sid := fieldOf(read(t, fmt.Sprintf("/proc/%d/status", proc)), "NSsid"); strings.HasSuffix(sid, fmt.Sprint(os.Getpid())) {
			t.Errorf("process %d is in our session", proc)
		}
	}
}

// TestSweepEndsMonitors: what nobody adopts is ended, the monitor with its holder.
func TestSweepEndsMonitors(t *testing.T) {
	pid, dir := startedByAnother(t)
	killed, err := vm.Sweep(t.Context(), filepath.Dir(dir))
	if err != nil || len(killed) != 1 || alive(pid) || alive(killed[0].PID) {
		t.Errorf("Sweep: got %+v, %v; alive: %v", killed, err, alive(pid))
	}
}

// TestHolderIsKilled: a monitor does not go on without somebody who sees its end.
func TestHolderIsKilled(t *testing.T) {
	m, err := driver(t, qemu.TCG).Start(t.Context(), specs(t)(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(t, m) })
	if err := syscall.Kill(m.Record().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if exit, err := m.Wait(ctx); err != nil || !exit.Unknown || exit.Killed || alive(m.PID()) {
		t.Errorf("got %+v, %v; alive: %v", exit, err, alive(m.PID()))
	}
}

// alive tells whether a process runs; a zombie that nobody reaps does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && !strings.HasPrefix(fieldOf(string(b), "State"), "Z")
}

func end(t *testing.T, m vm.Machine) {
	t.Helper()
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if _, err := m.Wait(ctx); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func fieldOf(status, name string) string {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return "missing"
}

func wantSameFile(t *testing.T, what, a, b string) {
	t.Helper()
	x, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(x, y) {
		t.Errorf("%s: %s and %s differ", what, a, b)
	}
}
