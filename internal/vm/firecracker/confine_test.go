package firecracker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

const tapName = "fctest0"

// namespace makes a network namespace with a tap device of the guests' identity and returns its path.
func namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("fctest-%d", os.Getpid())
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in the namespace now
		handle, err := netns.NewNamed(name)
		if err == nil {
			defer handle.Close()
			err = netlink.LinkAdd(&netlink.Tuntap{
				LinkAttrs: netlink.LinkAttrs{Name: tapName}, Mode: netlink.TUNTAP_MODE_TAP, Owner: guestUID, Group: guestUID,
				Flags: netlink.TUNTAP_VNET_HDR | netlink.TUNTAP_NO_PI,
			})
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

// TestMonitorIsConfined looks at the process from outside. What is its own by the jailer is the jailer's; that it is
// told so, and that a machine works there, is the driver's.
func TestMonitorIsConfined(t *testing.T) {
	vmtest.NeedRoot(t)
	removeCgroupParent(t)
	o := options(t, "suite")
	spec := newSpec(t, o.Kernel, o.Initramfs)
	spec.Netns = namespace(t)
	spec.NIC = &vm.NIC{Tap: tapName, MAC: "02:70:69:6e:00:01"}
	disk := filepath.Join(filepath.Dir(spec.Dir), "disk")
	if err := os.WriteFile(disk, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	spec.Disks = []vm.Disk{{ID: "scratch", Path: disk}}
	d := newDriver(t, o)
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, m)
	can, err := d.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proc := fmt.Sprintf("/proc/%d", m.PID())
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", guestUID), fmt.Sprintf("Gid:\t%d\t%[1]d\t%[1]d\t%[1]d\n", guestUID),
		"CapEff:\t0000000000000000\n", "Groups:\t \n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status has no %q:\n%s", want, status)
		}
	}
	entries, err := os.ReadDir(proc + "/root")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	want := []string{"console", "dev", "disk0", "firecracker", "firecracker.pid", "initramfs", "kernel", "log", "metrics", "run"}
	if !slices.Equal(names, want) {
		t.Errorf("the monitor sees %q, want %q", names, want)
	}
	for _, pair := range [][2]string{{proc + "/root/disk0", disk}, {proc + "/root/kernel", o.Kernel}} {
		a, errA := os.Stat(pair[0])
		b, errB := os.Stat(pair[1])
		if errA != nil || errB != nil || !os.SameFile(a, b) {
			t.Errorf("%s is not %s: %v, %v", pair[0], pair[1], errA, errB)
		}
	}
	if h, err := cgroup.Find(); err == nil && spec.Cgroup != "" {
		pids, err := os.ReadFile(filepath.Join(h.Mount, spec.Cgroup, "cgroup.procs"))
		if err != nil || !slices.Equal(strings.Fields(string(pids)), []string{fmt.Sprint(m.Record().PID), fmt.Sprint(m.PID())}) {
			t.Errorf("cgroup holds %q, %v, want the holder %d and the monitor %d", pids, err, m.Record().PID, m.PID())
		}
	}
	limits, err := os.ReadFile(proc + "/limits")
	limited := strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 1 1")
	if told := strings.Contains(strings.Join(can.Weaknesses, "\n"), "CAP_SYS_RESOURCE"); err != nil || (!limited && !told) {
		t.Errorf("limits: %v\n%s", err, limits)
	}
}

// TestTapMustBeItsOwn: a machine gets no device that is another identity's, or none.
func TestTapMustBeItsOwn(t *testing.T) {
	vmtest.NeedRoot(t)
	removeCgroupParent(t)
	o := options(t, "suite")
	d := newDriver(t, o)
	path := namespace(t)
	for name, change := range map[string]func(*vm.Spec){
		"another's":     func(s *vm.Spec) { s.UID++ },
		"there is none": func(s *vm.Spec) { s.NIC.Tap = "fctest9" },
	} {
		spec := newSpec(t, o.Kernel, o.Initramfs)
		spec.Netns, spec.NIC = path, &vm.NIC{Tap: tapName, MAC: "02:70:69:6e:00:01"}
		change(&spec)
		m, err := d.Start(t.Context(), spec)
		if err == nil {
			end(t, m)
			t.Errorf("%s: started", name)
			continue
		}
		if !strings.Contains(err.Error(), "PUT /network-interfaces/eth0: Network config error") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
