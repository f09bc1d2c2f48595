package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// testAdopt lets go of a machine, as a process that ends does, and takes it over again, twice: nothing of it has
// changed, and it ends as any other.
func (s Suite) testAdopt(t *testing.T) {
	spec := s.Spec(t)
	spec.Console = filepath.Join(t.TempDir(), "console")
	m := s.startFree(t, spec)
	g := s.meet(t, m)
	g.ask("console kept by somebody")
	for round := range 2 {
		pid := m.PID()
		if err := g.conn.Close(); err != nil {
			t.Fatal(err)
		}
		m.Release()
		r := m.Record()
		if s.Processes { // what a later process knows
			var err error
			if r, err = vm.ReadRecord(spec.Dir); err != nil {
				t.Fatal(err)
			}
		}
		m = s.adopt(t, r, round == 1)
		if m.PID() != pid || m.Record().ID != spec.ID {
			t.Errorf("round %d: adopted process %d of %+v, want %d", round, m.PID(), m.Record(), pid)
		}
		g = s.dial(t, m, vm.Control)
		if got := g.ask(fmt.Sprint("echo ", round)); got != fmt.Sprint(round) {
			t.Fatalf("round %d: got %q", round, got)
		}
		logs := s.dial(t, m, vm.Logs)
		g.tell("logs line")
		if got := logs.line(); got != "line" {
			t.Errorf("round %d: got %q on the log channel", round, got)
		}
		_ = logs.conn.Close() // nobody reads it any more
	}
	g.tell("panic")
	exit := s.wait(t, m)
	if !strings.HasPrefix(exit.Panic, "Kernel panic - not syncing") || exit.Killed || exit.Unknown {
		t.Errorf("got %v (%+v), want a panic", exit, exit)
	}
	if kept, err := os.ReadFile(spec.Console); err != nil || !strings.Contains(string(kept), "kept by somebody") {
		t.Errorf("console file: got %q, %v", kept, err)
	}
	wantEmpty(t, spec.Dir)
}

// testAdoptAfterTheEnd has a machine that ends while it is nobody's.
func (s Suite) testAdoptAfterTheEnd(t *testing.T) {
	for _, tt := range []struct {
		name, command string
		want          func(vm.Exit) bool
	}{
		{"reset", "reboot", func(e vm.Exit) bool { return e.Code == 0 && e.Signal == 0 && e.Panic == "" }},
		{"panic", "panic", func(e vm.Exit) bool { return strings.HasPrefix(e.Panic, "Kernel panic") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := s.Spec(t)
			m := s.startFree(t, spec)
			g := s.meet(t, m)
			r := m.Record()
			m.Release()
			g.tell(tt.command)
			// The connection ends with the machine, and a little later there is a result.
			for deadline := time.Now().Add(s.Patience); s.Processes && !r.Result().Ended; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nobody has written down how it ended")
				}
			}
			_ = g.conn.Close() // whatever it has to say
			m = s.adopt(t, r, true)
			exit := s.wait(t, m)
			if exit.Killed || exit.Unknown || !tt.want(exit) {
				t.Errorf("got %v (%+v)", exit, exit)
			}
			if conn, err := m.Dial(t.Context(), vm.Control); !errors.Is(err, vm.ErrEnded) {
				t.Errorf("Dial: got %v, %v, want ErrEnded", conn, err)
			}
			if err := m.Kill(); err != nil {
				t.Error(err)
			}
			wantEmpty(t, spec.Dir)
		})
	}
}

func (s Suite) testAdoptNotOurs(t *testing.T) {
	spec := s.Spec(t)
	m := s.start(t, spec)
	for name, spoil := range map[string]func(r *vm.Record){
		"another boot of the host": func(r *vm.Record) { r.BootID = "00000000-0000-0000-0000-000000000000" },
		"never started":            func(r *vm.Record) { r.ID, r.PID, r.Dir = "other", 0, t.TempDir() },
		"another process":          func(r *vm.Record) { r.StartTicks++; r.StartedAt = r.StartedAt.Add(1); r.Dir = t.TempDir() },
	} {
		r := m.Record()
		spoil(&r)
		if got, err := s.Driver.Adopt(t.Context(), r); !errors.Is(err, vm.ErrNotOurs) {
			t.Errorf("%s: got %v, %v, want ErrNotOurs", name, got, err)
		}
	}
	if got := s.meet(t, m).ask("echo alive"); got != "alive" {
		t.Errorf("afterwards: got %q", got)
	}
}

// adopt takes a machine over, and ends it with the test when that is to keep it.
func (s Suite) adopt(t *testing.T, r vm.Record, keep bool) vm.Machine {
	t.Helper()
	m, err := s.Driver.Adopt(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if keep {
		t.Cleanup(func() { s.end(t, m) })
	}
	return m
}

// startFree starts a machine that the test lets go of.
func (s Suite) startFree(t *testing.T, spec vm.Spec) vm.Machine {
	t.Helper()
	m, err := s.Driver.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	r := m.Record()
	t.Cleanup(func() {
		// Whoever has it by now has ended it, unless the test has failed.
		if _, err := vm.KillStale(context.WithoutCancel(t.Context()), r); err != nil {
			t.Error(err)
		}
	})
	return m
}

// testKept: a lock that was given to a machine is held until that has ended, although whoever took it has let go.
func (s Suite) testKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		t.Fatal(err)
	}
	spec := s.Spec(t)
	spec.Kept = []*os.File{f}
	m := s.start(t, spec)
	f.Close()
	s.meet(t, m)
	if !locked(t, path) {
		t.Error("nobody holds the lock while the machine runs")
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	s.wait(t, m)
	if locked(t, path) {
		t.Error("the lock outlived the machine")
	}
}

func locked(t *testing.T, path string) bool {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &whole); err != nil {
		t.Fatal(err)
	}
	return whole.Type != unix.F_UNLCK
}
