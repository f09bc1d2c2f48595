package vmtest_test

import (
	"bufio"
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
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// suiteGuest does what testdata/init does.
func suiteGuest(_ context.Context, g *vmtest.FakeGuest) vmtest.End {
	fmt.Fprintln(g.Control, "hello")
	for in := bufio.NewScanner(g.Control); in.Scan(); {
		verb, arg, _ := strings.Cut(in.Text(), " ")
		switch verb {
		case "echo":
			fmt.Fprintln(g.Control, arg)
		case "logs":
			fmt.Fprintln(g.Logs, arg)
		case "console":
			fmt.Fprintln(g.Console, arg)
			fmt.Fprintln(g.Control, "ok")
		case "disks":
			fmt.Fprintln(g.Control, listDisks(g.Spec))
		case "sync":
			fmt.Fprintln(g.Control, writeDisk(g.Spec, arg))
		case "reboot":
			return vmtest.End{}
		case "panic":
			return vmtest.End{Panic: "Attempted to kill init!"}
		}
	}
	return vmtest.End{}
}

func listDisks(spec vm.Spec) string {
	var out []string
	for _, d := range spec.Disks {
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		info, err := os.Stat(d.Path)
		if err != nil {
			return err.Error()
		}
		out = append(out, fmt.Sprintf("%s %d %s", d.ID, info.Size()/512, mode))
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func writeDisk(spec vm.Spec, id string) string {
	at := slices.IndexFunc(spec.Disks, func(d vm.Disk) bool { return d.ID == id })
	f, err := os.OpenFile(spec.Disks[at].Path, os.O_WRONLY, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(strings.Repeat("pinnace!", 64)), 0); err != nil {
		return err.Error()
	}
	return "ok"
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

// converse starts a machine with the workload and the host's end of the conversation with it.
func converse(t *testing.T, w vmtest.Workload, logs func(guest.Line) error) (vm.Machine, *guest.Host) {
	t.Helper()
	m, err := vmtest.NewFake(w.Guest()).Start(t.Context(), fakeSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	control, err := m.Dial(t.Context(), vm.Control)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := m.Dial(t.Context(), vm.Logs)
	if err != nil {
		t.Fatal(err)
	}
	h := guest.NewHost(control, lines, guest.Options{Logs: logs})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = h.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
		if _, err := m.Wait(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m, h
}

// finish takes the exit report, acknowledges it and waits for the machine to reset.
func finish(t *testing.T, m vm.Machine, h *guest.Host) guest.Exit {
	t.Helper()
	report := <-h.Exit()
	if err := h.AckExit(t.Context()); err != nil {
		t.Fatal(err)
	}
	exit, err := m.Wait(t.Context())
	if err != nil || exit.Code != 0 || exit.Killed {
		t.Errorf("machine ended: %+v, %v", exit, err)
	}
	return report
}

func TestWorkloadExits(t *testing.T) {
	w := vmtest.Workload{Run: func(_ context.Context, p *vmtest.Process) int {
		for _, text := range []string{"one", p.Config.Hostname} {
			if err := p.Log(guest.StreamStdout, text); err != nil {
				return 1
			}
		}
		return 7
	}}
	var got []string
	m, h := converse(t, w, func(l guest.Line) error { got = append(got, string(l.Data)); return nil })
	if _, err := h.Configure(t.Context(), guest.Config{Hostname: "ship"}); err != nil {
		t.Fatal(err)
	}
	if report := finish(t, m, h); report.Code != 7 || report.LastLine != 2 || report.Stopped {
		t.Errorf("got %+v, want code 7 after 2 lines", report)
	}
	<-h.Done()
	if !slices.Equal(got, []string{"one", "ship"}) {
		t.Errorf("lines: got %q", got)
	}
}

func TestWorkloadStops(t *testing.T) {
	tests := []struct {
		name     string
		workload vmtest.Workload
		want     guest.Exit
	}{
		{"zero value", vmtest.Workload{}, guest.Exit{Code: 0, Stopped: true}},
		{"code of its own", vmtest.Workload{Run: func(ctx context.Context, _ *vmtest.Process) int {
			<-ctx.Done()
			var cause *vmtest.StopCause
			if !errors.As(context.Cause(ctx), &cause) || cause.Stop.Signal != "SIGINT" {
				return 1
			}
			return 3
		}}, guest.Exit{Code: 3, Stopped: true}},
		{"stubborn", vmtest.Workload{Stubborn: true}, guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, h := converse(t, tt.workload, nil)
			if _, err := h.Configure(t.Context(), guest.Config{}); err != nil {
				t.Fatal(err)
			}
			if r, err := h.Exec(t.Context(), []string{"true"}, time.Second); err != nil || r.Code != 0 {
				t.Errorf("exec: got %+v, %v", r, err)
			}
			if err := h.Stop(t.Context(), "SIGINT", 50*time.Millisecond); err != nil {
				t.Fatal(err)
			}
			got := finish(t, m, h)
			got.StartedAt, got.ExitedAt = 0, 0
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestWorkloadFails(t *testing.T) {
	m, h := converse(t, vmtest.Workload{Fail: &guest.Failed{Stage: "exec", Error: "no such file", Errno: "ENOENT", Code: 127}}, nil)
	_, err := h.Configure(t.Context(), guest.Config{})
	var start *guest.StartError
	if !errors.As(err, &start) || start.Code != 127 || start.Stage != "exec" {
		t.Errorf("got %v, want a StartError", err)
	}
	if err := h.AckExit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, err := m.Wait(t.Context()); err != nil || exit.Killed {
		t.Errorf("got %+v, %v", exit, err)
	}
}

func TestWorkloadEndsWithoutReport(t *testing.T) {
	for name, w := range map[string]vmtest.Workload{
		"reset": {NoReport: true},
		"panic": {Panic: "VFS: unable to mount"},
	} {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{})
			w.Run = func(context.Context, *vmtest.Process) int { <-started; return 0 }
			m, h := converse(t, w, nil)
			if _, err := h.Configure(t.Context(), guest.Config{}); err != nil {
				t.Fatal(err)
			}
			close(started)
			exit, err := m.Wait(t.Context())
			if err != nil || (exit.Panic != "") != (w.Panic != "") {
				t.Errorf("got %+v, %v", exit, err)
			}
			<-h.Done()
			select {
			case report := <-h.Exit():
				t.Errorf("got a report: %+v", report)
			default:
			}
		})
	}
}

func TestSilentWorkloadIsKilled(t *testing.T) {
	m, h := converse(t, vmtest.Workload{Silent: true}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := h.Hello(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	if exit, err := m.Wait(t.Context()); err != nil || !exit.Killed {
		t.Errorf("got %+v, %v", exit, err)
	}
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
