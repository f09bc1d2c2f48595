package firecracker_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestConversation lets a guest that speaks pinnace-init's protocol live through a whole life, over vsock.
func TestConversation(t *testing.T) {
	removeCgroupParent(t)
	o := options(t, "suite")
	d := newDriver(t, o)
	spec := newSpec(t, o.Kernel, writeInitramfs(t, o, "init"))
	m, err := d.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, m)
	control, err := m.Dial(t.Context(), vm.Control)
	if err != nil {
		t.Fatal(err)
	}
	logs, err := m.Dial(t.Context(), vm.Logs)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	host := guest.NewHost(control, logs, guest.Options{Logs: func(batch []guest.Line) error {
		for _, l := range batch {
			lines = append(lines, string(l.Data))
		}
		return nil
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() {
		if err := host.Run(ctx); errors.Is(err, guest.ErrProtocol) {
			t.Error(err)
		}
	})
	if _, err := host.Configure(ctx, guest.Config{Hostname: "x", Process: guest.Process{Entrypoint: []string{"/bin/x"}}}); err != nil {
		t.Fatal(err)
	}
	if err := host.Stop(ctx, "SIGTERM", time.Second); err != nil {
		t.Fatal(err)
	}
	report := <-host.Exit()
	if err := host.AckExit(ctx); err != nil {
		t.Fatal(err)
	}
	exit := wait(t, m)
	running.Wait()
	if report.Code != 7 || !report.Stopped || exit.Code != 0 || exit.Killed {
		t.Errorf("got report %+v, exit %v", report, exit)
	}
	if len(lines) != 100 || lines[99] != "line 99" {
		t.Errorf("got %d lines", len(lines))
	}
}

// writeInitramfs makes an initramfs for another guest than the driver's probe boots.
func writeInitramfs(t *testing.T, o firecracker.Options, guestName string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(o.Initramfs), guestName)
	if err := os.WriteFile(path, fmt.Appendf(nil, "guest %s\n", guestName), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMonitorFails: what the monitor says of its end is in the exit.
func TestMonitorFails(t *testing.T) {
	removeCgroupParent(t)
	o := options(t, "suite")
	m, err := newDriver(t, o).Start(t.Context(), newSpec(t, o.Kernel, writeInitramfs(t, o, "fails")))
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, m); exit.Code != 148 || !strings.Contains(exit.Stderr, "exit_code=148") {
		t.Errorf("got %+v", exit)
	}
}

// TestStartFails: every failure is told in the monitor's words, and nothing is left.
func TestStartFails(t *testing.T) {
	o := options(t, "suite")
	d := newDriver(t, o)
	removeCgroupParent(t)
	for name, tt := range map[string]struct {
		spoil func(*vm.Spec)
		want  string
	}{
		"a guest that is none":  {func(s *vm.Spec) { s.Initramfs = writeInitramfs(t, o, "nobody") }, "no guest \"nobody\""},
		"kernel in a bzImage":   {func(s *vm.Spec) { s.Kernel = o.Initramfs }, "no uncompressed ELF kernel"},
		"a network of nobody's": {func(s *vm.Spec) { s.Netns = "/nonexistent" }, "network namespace"},
		"more processors":       {func(s *vm.Spec) { s.VCPUs = 33 }, "33 are more than the 32"},
		"root":                  {func(s *vm.Spec) { s.UID = 0 }, "UID"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "root" && os.Geteuid() != 0 {
				t.Skip("needs root: otherwise it is somebody else's identity, like any other")
			}
			spec := newSpec(t, o.Kernel, o.Initramfs)
			tt.spoil(&spec)
			m, err := d.Start(t.Context(), spec)
			if err == nil {
				end(t, m)
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want something with %q", err, tt.want)
			}
			if left, err := os.ReadDir(spec.Dir); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
			wantNoJails(t, o.JailDir)
		})
	}
}

// TestStartIsBounded: a monitor that never answers is given up and ended.
func TestStartIsBounded(t *testing.T) {
	removeCgroupParent(t)
	o := options(t, "suite")
	o.Jailer = script(t, `case "$1" in --version) echo "Jailer v1.15.1";; *) exec sleep 60;; esac`)
	o.StartTimeout = 300 * time.Millisecond
	_, err := newDriver(t, o).Start(t.Context(), newSpec(t, o.Kernel, o.Initramfs))
	if err == nil || !strings.Contains(err.Error(), "not running after 300ms") {
		t.Errorf("got %v", err)
	}
	wantNoJails(t, o.JailDir)
}

// script makes a program of the shell.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "firecracker-script")
	// A process that is started by another test meanwhile would have the file open for a moment, and what is open for
	// writing cannot be run (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbeRefuses(t *testing.T) {
	says := func(line string) string { return script(t, "echo '"+line+"'") }
	for name, tt := range map[string]struct {
		change func(*firecracker.Options)
		want   string
	}{
		"no Firecracker":    {func(o *firecracker.Options) { o.Binary = "firecracker-nonexistent" }, "github.com/firecracker-microvm"},
		"no jailer":         {func(o *firecracker.Options) { o.Jailer = "/nonexistent/jailer" }, "github.com/firecracker-microvm"},
		"an old one":        {func(o *firecracker.Options) { o.Binary = says("Firecracker v1.14.0") }, "CVE-2026-5747"},
		"two versions":      {func(o *firecracker.Options) { o.Binary = says("Firecracker v1.16.0") }, "of one release"},
		"something else":    {func(o *firecracker.Options) { o.Binary = says("1.16.0") }, "does not look like"},
		"one that fails":    {func(o *firecracker.Options) { o.Binary = script(t, "exit 3") }, "exit status 3"},
		"a silent guest":    {func(o *firecracker.Options) { o.Initramfs = writeInitramfs(t, *o, "silent") }, "did not come up within 5s"},
		"a guest that ends": {func(o *firecracker.Options) { o.Initramfs = writeInitramfs(t, *o, "fails") }, "status 148"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options(t, "suite")
			tt.change(&o)
			can, err := newDriver(t, o).Probe(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %+v, %v, want an error with %q", can, err, tt.want)
			}
			if left, err := filepath.Glob(filepath.Join(o.CacheDir, "probe-*")); err != nil || len(left) != 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestProbeIsRemembered: the next driver needs no boot.
func TestProbeIsRemembered(t *testing.T) {
	o := options(t, "suite")
	if _, err := newDriver(t, o).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	can, err := newDriver(t, o).Probe(t.Context())
	if err != nil || can.Accelerator != "kvm" || can.Version != "1.15.1" || can.MaxDisks < 12 {
		t.Errorf("got %+v, %v", can, err)
	}
	if log.Len() != 0 {
		t.Errorf("it was tried again: %s", &log)
	}
}

func TestNewRefuses(t *testing.T) {
	good := firecracker.Options{JailDir: "/j", Kernel: "/k", Initramfs: "/i", CacheDir: "/c"}
	for name, spoil := range map[string]func(*firecracker.Options){
		"no directory for jails":  func(o *firecracker.Options) { o.JailDir = "" },
		"a relative one":          func(o *firecracker.Options) { o.JailDir = "jails" },
		"nothing to probe with":   func(o *firecracker.Options) { o.Kernel = "" },
		"nowhere to remember":     func(o *firecracker.Options) { o.CacheDir = "" },
		"a time before the start": func(o *firecracker.Options) { o.StartTimeout = -1 },
	} {
		o := good
		spoil(&o)
		if _, err := firecracker.New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// crashEnv tells the test program to be a process that starts a machine and is killed; it holds a directory with what
// the machine boots.
const crashEnv = "FIRECRACKER_TEST_CRASH"

// crash starts a machine, tells its process and waits to be killed.
func crash(dir string) int {
	d, err := firecracker.New(firecracker.Options{
		Binary: os.Args[1], Jailer: os.Args[2], JailDir: filepath.Join(dir, "jails"), CacheDir: filepath.Join(dir, "cache"),
		Kernel: filepath.Join(dir, "vmlinux"), Initramfs: filepath.Join(dir, "initramfs"),
	})
	if err == nil {
		spec := vm.Spec{
			ID: "orphan", Dir: os.Args[3], Kernel: filepath.Join(dir, "vmlinux"), Initramfs: filepath.Join(dir, "initramfs"),
			VCPUs: 1, MemoryMiB: 128, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		}
		if os.Geteuid() == 0 {
			spec.UID, spec.GID = guestUID, guestUID
		}
		var m vm.Machine
		if m, err = d.WithoutKVM().Start(context.Background(), spec); err == nil {
			fmt.Println(m.PID())
			_, err = m.Wait(context.Background())
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// TestSweep: what a killed process leaves is ended and removed, with a record of it and without; what a living one owns
// is left alone.
func TestSweep(t *testing.T) {
	for name, recorded := range map[string]bool{"with a record": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			if !recorded {
				vmtest.NeedRoot(t) // or the stand-in has no root directory of its own to be found by
			}
			o := options(t, "suite")
			d := newDriver(t, o)
			mine, err := d.Start(t.Context(), newSpec(t, o.Kernel, o.Initramfs))
			if err != nil {
				t.Fatal(err)
			}
			defer end(t, mine)
			removeCgroupParent(t)
			pid, dir := leaveOrphan(t, o)
			if recorded {
				killed, err := vm.Sweep(t.Context(), filepath.Dir(dir))
				if err != nil || len(killed) != 1 || killed[0].ID != "orphan" {
					t.Errorf("vm.Sweep: got %+v, %v", killed, err)
				}
			}
			if !recorded {
				if err := os.Remove(filepath.Join(dir, vm.RecordName)); err != nil {
					t.Fatal(err)
				}
			}
			n, err := d.Sweep(t.Context(), filepath.Dir(dir))
			if err != nil || n != 1 {
				t.Errorf("Sweep: got %d, %v, want 1", n, err)
			}
			if alive(pid) {
				t.Errorf("process %d lives", pid)
			}
			if left, _ := filepath.Glob(filepath.Join(o.JailDir, "*", "*")); len(left) != 1 {
				t.Errorf("jails: %v, want that of the living machine", left)
			}
			if exit := end(t, mine); !exit.Killed {
				t.Errorf("the living machine ended: %v", exit)
			}
		})
	}
}

// leaveOrphan lets a process start a machine and die.
func leaveOrphan(t *testing.T, o firecracker.Options) (pid int, dir string) {
	t.Helper()
	dir = filepath.Join(vmtest.Dir(t), "m")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	parent := exec.CommandContext(t.Context(), os.Args[0], o.Binary, o.Jailer, dir)
	parent.Env = append(os.Environ(), crashEnv+"="+filepath.Dir(o.Kernel))
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
	if !alive(pid) {
		t.Fatal("the monitor did not outlive its parent")
	}
	return pid, dir
}

// alive tells whether a process runs; a zombie that nobody reaps does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for in := bufio.NewScanner(bytes.NewReader(b)); in.Scan(); {
		if state, ok := strings.CutPrefix(in.Text(), "State:"); ok {
			return !strings.HasPrefix(strings.TrimSpace(state), "Z")
		}
	}
	return false
}

// TestFlood: a guest that connects and writes without end costs the host little, and can still be talked to and ended.
func TestFlood(t *testing.T) {
	removeCgroupParent(t)
	o := options(t, "suite")
	spec := newSpec(t, o.Kernel, writeInitramfs(t, o, "flood"))
	m, err := newDriver(t, o).Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer end(t, m)
	conn, err := m.Dial(t.Context(), vm.Logs)
	if err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if now := descriptors(t); now > before+8 {
			t.Fatalf("%d descriptors are open, %d were before", now, before)
		}
	}
	if _, err := fmt.Fprintln(conn, "stop"); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, m); exit.Code != 0 || len(exit.ConsoleTail) != vm.ConsoleLimit {
		t.Errorf("got %v with %d bytes of console", exit, len(exit.ConsoleTail))
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
