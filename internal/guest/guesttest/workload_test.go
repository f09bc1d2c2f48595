package guesttest_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// converse starts a machine with the workload and the host's end of the conversation with it.
func converse(t *testing.T, w guesttest.Workload, logs func([]guest.Line) error) (vm.Machine, *guest.Host) {
	t.Helper()
	spec, err := vmtest.FakeSpec(t.TempDir(), "m")
	if err != nil {
		t.Fatal(err)
	}
	m, err := vmtest.NewFake(func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		return vmtest.End{Panic: w.Boot(ctx, guesttest.Machine{Control: g.Control, Logs: g.Logs, Console: g.Console})}
	}).Start(t.Context(), spec)
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
	w := guesttest.Workload{Run: func(_ context.Context, p *guesttest.Process) int {
		for _, text := range []string{"one", p.Config.Hostname} {
			if err := p.Log(guest.StreamStdout, text); err != nil {
				return 1
			}
		}
		return 7
	}}
	var got []string
	m, h := converse(t, w, func(lines []guest.Line) error {
		for _, l := range lines {
			got = append(got, string(l.Data))
		}
		return nil
	})
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
		workload guesttest.Workload
		want     guest.Exit
	}{
		{"zero value", guesttest.Workload{}, guest.Exit{Code: 0, Stopped: true}},
		{"code of its own", guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
			<-ctx.Done()
			var cause *guesttest.StopCause
			if !errors.As(context.Cause(ctx), &cause) || cause.Stop.Signal != "SIGINT" {
				return 1
			}
			return 3
		}}, guest.Exit{Code: 3, Stopped: true}},
		{"stubborn", guesttest.Workload{Stubborn: true}, guest.Exit{Code: 137, Signal: "SIGKILL", Stopped: true, Killed: true}},
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
	m, h := converse(t, guesttest.Workload{Fail: &guest.Failed{Stage: "exec", Error: "no such file", Errno: "ENOENT", Code: 127}}, nil)
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
	for name, w := range map[string]guesttest.Workload{
		"reset": {NoReport: true},
		"panic": {Panic: "VFS: unable to mount"},
	} {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{})
			w.Run = func(context.Context, *guesttest.Process) int { <-started; return 0 }
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
	m, h := converse(t, guesttest.Workload{Silent: true}, nil)
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
