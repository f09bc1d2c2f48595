package cgroup_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// mountinfo writes a list of mounts as /proc/self/mountinfo has it, and returns its path.
func mountinfo(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func v1(controllers string) string {
	return "30 25 0:26 / /sys/fs/cgroup/" + controllers + " rw,relatime shared:9 - cgroup cgroup rw," + controllers
}

// v2 makes the root of a hierarchy of version 2 with those controllers, and returns its line.
func v2(t *testing.T, controllers string) (dir, line string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.controllers"), []byte(controllers+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, "31 25 0:27 / " + dir + " rw,relatime - cgroup2 cgroup2 rw"
}

func TestFind(t *testing.T) {
	_, empty := v2(t, "hugetlb")
	_, io := v2(t, "io hugetlb")
	unified, all := v2(t, "cpuset cpu io memory hugetlb pids rdma misc")
	for name, tt := range map[string]struct {
		mounts  []string
		version int // 0: unsupported
		mount   string
		missing []cgroup.Controller
	}{
		"version 2":                {[]string{all}, 2, unified, nil},
		"version 1":                {[]string{v1("cpu,cpuacct"), v1("memory"), v1("blkio"), v1("pids"), empty}, 1, "/sys/fs/cgroup/memory", nil},
		"both":                     {[]string{v1("cpu"), v1("memory"), io}, 1, "/sys/fs/cgroup/memory", []cgroup.Controller{cgroup.PIDs}},
		"a chroot has them too":    {[]string{v1("cpu"), v1("memory"), v1("blkio"), v1("pids"), strings.Replace(v1("memory"), "/sys", "/chroot/sys", 1)}, 1, "/sys/fs/cgroup/memory", nil},
		"version 1 without memory": {[]string{v1("cpu"), empty}, 0, "", nil},
		"version 2 without memory": {[]string{empty}, 0, "", nil},
		"none":                     {[]string{"22 1 8:1 / / rw - ext4 /dev/sda1 rw"}, 0, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := cgroup.FindIn(mountinfo(t, tt.mounts...))
			if tt.version == 0 {
				if !errors.Is(err, cgroup.ErrUnsupported) {
					t.Errorf("got %+v, %v", h, err)
				}
				return
			}
			if err != nil || h.Version != tt.version || h.Mount != tt.mount || !slices.Equal(h.Missing(), tt.missing) {
				t.Errorf("got %+v, missing %v, %v", h, h.Missing(), err)
			}
			if (h.Weakness() != "") != (len(tt.missing) > 0) {
				t.Errorf("weakness %q", h.Weakness())
			}
		})
	}
}

// TestLimitsOfVersion2 looks at what is written to a hierarchy of version 2. Its files are plain ones here, which keep what
// was written last.
func TestLimitsOfVersion2(t *testing.T) {
	root, line := v2(t, "cpu io memory pids")
	h, err := cgroup.FindIn(mountinfo(t, line))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", "pinnace", "pinnace/x"} {
		for _, file := range []string{
			"cgroup.subtree_control", "cgroup.procs", "memory.max", "memory.swap.max", "cpu.weight", "pids.max", "io.max",
		} {
			path := filepath.Join(root, dir, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
	}
	g, err := h.Create("pinnace/x", cgroup.Limits{
		Memory: 256 << 20, CPUMilli: 500, PIDs: 100, IO: cgroup.IORate{Bytes: 1 << 20, Operations: 50}, Devices: []cgroup.Device{{8, 16}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if fd, ok := g.FD(); !ok || fd < 3 {
		t.Errorf("got descriptor %d, %v", fd, ok)
	}
	if err := g.Add(4711); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"memory.max": "268435456", "memory.swap.max": "0", "cpu.weight": "20", "pids.max": "100", "cgroup.procs": "4711",
		"io.max": "8:16 rbps=1048576 wbps=1048576 riops=50 wiops=50", "cgroup.subtree_control": "",
		"../memory.max": "", "../cpu.weight": strconv.Itoa(1 + (runtime.NumCPU()*1024-2)*9999/262142),
	} {
		b, err := os.ReadFile(filepath.Join(root, "pinnace/x", file))
		if err != nil || string(b) != want {
			t.Errorf("%s: got %q, %v, want %q", file, b, err, want)
		}
	}
	for _, dir := range []string{"", "pinnace"} {
		b, err := os.ReadFile(filepath.Join(root, dir, "cgroup.subtree_control"))
		if err != nil || !strings.HasPrefix(string(b), "+") {
			t.Errorf("%q hands down %q, %v", dir, b, err)
		}
	}
}

// TestLimits sets all limits on this host's hierarchies, reads them back, and runs into that of processes.
func TestLimits(t *testing.T) {
	h := find(t)
	if missing := h.Missing(); len(missing) > 0 {
		t.Skipf("needs the controllers %v", missing)
	}
	dir := t.TempDir()
	devices, err := cgroup.DevicesOf([]string{dir, dir})
	if err != nil {
		t.Skipf("needs a disk under %s: %v", dir, err)
	}
	if len(devices) != 1 {
		t.Errorf("one directory is on the disks %v", devices)
	}
	name := filepath.Join(parent, "limits")
	const pids = 5
	g, err := h.Create(name, cgroup.Limits{
		Memory: 64 << 20, CPUMilli: 250, PIDs: pids, IO: cgroup.IORate{Bytes: 10 << 20, Operations: 1000}, Devices: devices,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := devices[0]
	want := map[string]string{"memory.max": "67108864", "cpu.weight": "10", "pids.max": "5", "io.max": fmt.Sprintf("%v rbps=10485760 wbps=10485760 riops=1000 wiops=1000", d)}
	if h.Version == 1 {
		want = map[string]string{
			"memory/memory.limit_in_bytes": "67108864", "cpu/cpu.shares": "256", "pids/pids.max": "5",
			"blkio/blkio.throttle.read_bps_device": fmt.Sprintf("%v 10485760", d), "blkio/blkio.throttle.write_iops_device": fmt.Sprintf("%v 1000", d),
		}
	}
	for _, file := range slices.Sorted(maps.Keys(want)) {
		path := filepath.Join(h.Mount, name, file)
		if controller, base, ok := strings.Cut(file, "/"); ok {
			path = filepath.Join(filepath.Dir(h.Mount), controller, name, base)
		}
		if b, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(b)) != want[file] {
			t.Errorf("%s: got %q, %v, want %q", file, b, err, want[file])
		}
	}
	// The shell waits until it is in the group; then it may start some processes, and not ten.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "read x; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 100 2>/dev/null & done; wait")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints strings.Builder
	cmd.Stderr = &complaints
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(stdin, "go")
	if err := cmd.Wait(); err == nil || !strings.Contains(complaints.String(), "fork") {
		t.Errorf("the shell ended with %v and said %q", err, &complaints)
	}
	if err := h.Kill(t.Context(), name); err != nil {
		t.Error(err)
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{h.Mount, filepath.Join(filepath.Dir(h.Mount), "pids")} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("the group is still in %s", dir)
		}
	}
}

// TestCreateUndoesItself: a limit that the kernel refuses leaves no group.
func TestCreateUndoesItself(t *testing.T) {
	h := find(t)
	if slices.Contains(h.Missing(), cgroup.IO) {
		t.Skip("needs an IO controller")
	}
	name := filepath.Join(parent, "undone")
	_, err := h.Create(name, cgroup.Limits{Memory: 1 << 20, IO: cgroup.IORate{Bytes: 1}, Devices: []cgroup.Device{{4000, 4000}}})
	if err == nil || !strings.Contains(err.Error(), "4000:4000") {
		t.Errorf("got %v", err)
	}
	if _, err := h.Open(name); err == nil {
		t.Error("the group is there")
	}
}

func TestWholeDisk(t *testing.T) {
	sys := t.TempDir()
	for path, content := range map[string]string{
		"devices/pci/block/sda/dev": "8:0\n", "devices/pci/block/sda/sda1/dev": "8:1\n", "devices/pci/block/sda/sda1/partition": "1\n",
	} {
		path = filepath.Join(sys, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(sys, "dev/block"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"8:0": "../../devices/pci/block/sda", "8:1": "../../devices/pci/block/sda/sda1"} {
		if err := os.Symlink(target, filepath.Join(sys, "dev/block", name)); err != nil {
			t.Fatal(err)
		}
	}
	for minor := range uint32(2) {
		if d, err := cgroup.WholeDisk(sys, cgroup.Device{8, minor}); err != nil || d != (cgroup.Device{8, 0}) {
			t.Errorf("8:%d: got %v, %v", minor, d, err)
		}
	}
	if d, err := cgroup.WholeDisk(sys, cgroup.Device{0, 42}); err == nil || !strings.Contains(err.Error(), "0:42 is no disk") {
		t.Errorf("got %v, %v", d, err)
	}
}
