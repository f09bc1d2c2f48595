package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// fitHost is a host that has everything, as doctor sees it.
func fitHost(t *testing.T) hostView {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return hostView{
		tun:       write("tun", ""),
		mountinfo: write("mountinfo", "30 25 0:26 / /cg rw - cgroup cgroup rw,memory,cpu,blkio,pids\n"),
		meminfo:   write("meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n"),
		lookPath:  func(name string) (string, error) { return "/usr/bin/" + name, nil },
		pidfd:     func() error { return nil },
		network:   func(context.Context, string) error { return nil },
		freeBytes: func(string) (int64, error) { return 100 << 30, nil },
		clones:    func(string) (bool, error) { return true, nil },
	}
}

// TestDoctorHost: everything that can be missing on a host is found, and each line names what to do.
func TestDoctorHost(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil  func(*hostView)
		line   string // of the only line that is not ok
		needed bool
		detail string
		fix    string
	}{
		"fit":        {func(*hostView) {}, "", true, "", ""},
		"not root":   {func(h *hostView) { h.euid = 1000 }, "user", true, "not root", "sudo"},
		"no tun":     {func(h *hostView) { h.tun += "x" }, "tun", true, "no such file", "modprobe tun"},
		"no mkfs":    {func(h *hostView) { h.lookPath = func(string) (string, error) { return "", errors.New("no") } }, "mkfs.ext4", true, "scratch disks", "apt-get install e2fsprogs"},
		"old Linux":  {func(h *hostView) { h.pidfd = func() error { return errors.New("not implemented") } }, "outliving", true, "not implemented", "5.10"},
		"no cgroups": {func(h *hostView) { h.mountinfo = h.meminfo }, "cgroups", false, "without a bound", "cgroup version 2"},
		"half of the cgroups": {func(h *hostView) {
			_ = os.WriteFile(h.mountinfo, []byte("30 25 0:26 / /cg rw - cgroup cgroup rw,memory\n"), 0o600)
		}, "cgroups", false, "version 1, with memory; shares of the processors are not weighed", "missing controllers"},
		"no nftables": {func(h *hostView) { h.network = func(context.Context, string) error { return errors.New("no tables") } }, "network", true, "no tables", "modprobe"},
		"no memory": {func(h *hostView) {
			_ = os.WriteFile(h.meminfo, []byte("MemTotal: 400000 kB\nMemAvailable: 1000 kB\n"), 0o600)
		}, "memory", true, "390.6 MiB", "free some"},
		"no meminfo": {func(h *hostView) { h.meminfo = h.tun }, "memory", true, "MemTotal", "/proc"},
		"full disk":  {func(h *hostView) { h.freeBytes = func(string) (int64, error) { return 1 << 30, nil } }, "disk", true, "1.0 GiB free", "make room"},
		"no disk":    {func(h *hostView) { h.freeBytes = func(string) (int64, error) { return 0, errors.New("gone") } }, "disk", true, "gone", "--data-dir"},
		"no clones":  {func(h *hostView) { h.clones = func(string) (bool, error) { return false, nil } }, "reflink", false, "sparsely", "XFS"},
	} {
		t.Run(name, func(t *testing.T) {
			h := fitHost(t)
			tt.spoil(&h)
			data := filepath.Join(t.TempDir(), "not", "there")
			findings := append([]finding{
				h.examineUser(), h.examineTun(), h.examineProgram("mkfs.ext4", "makes scratch disks", "apt-get install e2fsprogs"),
				h.examineOutliving(), h.examineCgroups(), h.examineNetwork(t.Context(), filepath.Join(t.TempDir(), "n")), h.examineMemory(),
			}, h.examineDisk(data)...)
			found := false
			for _, f := range findings {
				if f.OK {
					continue
				}
				found = true
				if f.Name != tt.line || f.Needed != tt.needed || !strings.Contains(f.Detail, tt.detail) || !strings.Contains(f.Fix, tt.fix) {
					t.Errorf("got %+v, want %s (needed: %v) with %q and the fix %q", f, tt.line, tt.needed, tt.detail, tt.fix)
				}
			}
			if found != (tt.line != "") {
				t.Errorf("got %+v", findings)
			}
		})
	}
}

// TestDoctorDrivers: each driver has its line, and one that works is enough.
func TestDoctorDrivers(t *testing.T) {
	lines := func(findings []finding) map[string]finding {
		m := map[string]finding{}
		for _, f := range findings {
			m[f.Name] = f
		}
		return m
	}
	t.Run("none", func(t *testing.T) {
		f, b := standIn(t)
		f.firecracker = "firecracker-nonexistent"
		got := lines(f.examine(t.Context(), b))
		if d := got["driver"]; d.OK || !d.Needed || !strings.Contains(d.Fix, "apt-get install qemu-system-x86") {
			t.Errorf("driver: %+v", d)
		}
		if d := got["firecracker"]; d.OK || d.Needed || !strings.Contains(d.Fix, "github.com/firecracker-microvm") {
			t.Errorf("firecracker: %+v", d)
		}
	})
	t.Run("Firecracker", func(t *testing.T) {
		needKVM(t)
		f, b := standIn(t)
		got := lines(f.examine(t.Context(), b))
		if !got["firecracker"].OK || got["qemu"].OK || got["qemu"].Needed || !got["driver"].OK || !got["accelerator"].OK {
			t.Errorf("got %+v", got)
		}
		f.name = driverQEMU
		if d := lines(f.examine(t.Context(), b))["driver"]; d.OK || !d.Needed || !strings.Contains(d.Detail, "--driver") {
			t.Errorf("with --driver qemu: %+v", d)
		}
	})
	t.Run("QEMU", func(t *testing.T) {
		vmtest.NeedQEMU(t)
		f, b := standIn(t)
		f.qemu, f.accel = "qemu-system-x86_64", "tcg"
		found := f.examine(t.Context(), b)
		got := lines(found)
		if got["firecracker"].OK || !got["qemu"].OK || !got["driver"].OK || got["accelerator"].OK || got["accelerator"].Needed {
			t.Errorf("got %+v", got)
		}
		if len(got) != len(found) {
			t.Errorf("a name is there twice: %+v", found)
		}
	})
}

// TestDoctorWithoutKernel: what is missing is one line among all, and the exit status tells.
func TestDoctorWithoutKernel(t *testing.T) {
	var out bytes.Buffer
	c := &cli{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: func(string) string { return "" }, json: true}
	r := agentRole{dirs: directories{data: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	findings, err := c.examine(t.Context(), &r, fitHost(t))
	if err != nil {
		t.Fatal(err)
	}
	var missing []string
	for _, f := range findings {
		if !f.OK && f.Needed {
			missing = append(missing, f.Name+" -> "+f.Fix)
		}
	}
	if left, err := os.ReadDir(r.dirs.data); err != nil || len(left) > 0 {
		t.Errorf("left in the data directory: %v, %v", left, err)
	}
	if len(missing) != 1 || !strings.HasPrefix(missing[0], "kernel -> ") || !strings.Contains(missing[0], "get-kernel.sh") {
		t.Errorf("missing: %q", missing)
	}
	if b, err := json.Marshal(findings[1]); err != nil || !strings.HasPrefix(string(b), `{"name":"kernel","ok":false,"needed":true,"detail":`) {
		t.Errorf("got %s, %v", b, err)
	}
}
