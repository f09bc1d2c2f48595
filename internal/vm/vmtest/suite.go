package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// A Suite says how to run the conformance tests against one driver.
type Suite struct {
	Driver vm.Driver
	// Spec returns a valid spec for a machine that boots the suite's guest (GuestInit), with a directory of
	// its own that is removed after the test.
	Spec func(t *testing.T) vm.Spec
	// Patience is how long a guest may take to say hello.
	Patience time.Duration
	// Processes tells that machines are processes of their own: that they have a record to kill them by.
	Processes bool
	// ByOrder tells that guests find disks by order, because the driver cannot give them serials.
	ByOrder bool
}

// Run runs all tests of the suite.
func (s Suite) Run(t *testing.T) {
	t.Run("Probe", s.testProbe)
	t.Run("KillAndWait", s.testKillAndWait)
	t.Run("GuestResets", s.testGuestResets)
	t.Run("GuestPanics", s.testGuestPanics)
	t.Run("MonitorRunsOutOfMemory", s.testMonitorOOM)
	t.Run("ChannelsAreApart", s.testChannels)
	t.Run("ChannelIsDialledAgain", s.testDialAgain)
	t.Run("Disks", s.testDisks)
	t.Run("Kept", s.testKept)
	t.Run("WaitIsBounded", s.testWaitIsBounded)
	t.Run("ManyAtOnce", s.testManyAtOnce)
	t.Run("BadSpec", s.testBadSpec)
	t.Run("StartIsCancelled", s.testStartIsCancelled)
	t.Run("Record", s.testRecord)
	t.Run("Adopt", s.testAdopt)
	t.Run("AdoptAfterTheEnd", s.testAdoptAfterTheEnd)
	t.Run("AdoptWhatIsNotOurs", s.testAdoptNotOurs)
}

func (s Suite) testProbe(t *testing.T) {
	first, err := s.Driver.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if first.Driver != s.Driver.Name() || first.Version == "" || first.MaxDisks < 1 {
		t.Errorf("got %+v", first)
	}
	if (first.Accelerator == "kvm") == (first.Reason != "") {
		t.Errorf("accelerator %q with reason %q: a reason goes with everything but kvm", first.Accelerator, first.Reason)
	}
}

func (s Suite) testKillAndWait(t *testing.T) {
	spec := s.Spec(t)
	m := s.start(t, spec)
	g := s.meet(t, m)
	if got := g.ask("echo are you there"); got != "are you there" {
		t.Errorf("echo: got %q", got)
	}
	for range 2 {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	exit := s.wait(t, m)
	if !exit.Killed || exit.Panic != "" || exit.OOM {
		t.Errorf("got %+v, want Killed only", exit)
	}
	if again := s.wait(t, m); again != exit {
		t.Errorf("second Wait: got %+v, want %+v", again, exit)
	}
	if err := m.Kill(); err != nil {
		t.Errorf("Kill after the end: %v", err)
	}
	if conn, err := m.Dial(t.Context(), vm.Control); !errors.Is(err, vm.ErrEnded) {
		t.Errorf("Dial after the end: got %v, %v, want ErrEnded", conn, err)
	}
	if _, err := g.in.ReadString('\n'); err == nil {
		t.Error("the connection outlived the machine")
	}
	wantEmpty(t, spec.Dir)
}

func (s Suite) testGuestResets(t *testing.T) {
	spec := s.Spec(t)
	m := s.start(t, spec)
	s.meet(t, m).tell("reboot")
	exit := s.wait(t, m)
	if exit.Code != 0 || exit.Signal != 0 || exit.Killed || exit.Panic != "" {
		t.Errorf("got %v (%+v), want an end with code 0", exit, exit)
	}
	if err := m.Kill(); err != nil {
		t.Errorf("Kill after the end: %v", err)
	}
	if again := s.wait(t, m); again.Killed {
		t.Error("a machine that ended by itself counts as killed")
	}
	wantEmpty(t, spec.Dir)
}

func (s Suite) testGuestPanics(t *testing.T) {
	spec := s.Spec(t)
	spec.Console = filepath.Join(t.TempDir(), "console")
	m := s.start(t, spec)
	g := s.meet(t, m)
	g.ask("console last words")
	g.tell("panic")
	exit := s.wait(t, m)
	if !strings.HasPrefix(exit.Panic, "Kernel panic - not syncing") || exit.Killed {
		t.Errorf("got %v (panic %q), want a panic", exit, exit.Panic)
	}
	kept, err := os.ReadFile(spec.Console)
	if err != nil || string(kept) != exit.ConsoleTail || !strings.Contains(exit.ConsoleTail, "last words") {
		t.Errorf("console file: got %q, %v; tail is %q", kept, err, exit.ConsoleTail)
	}
}

func (s Suite) testChannels(t *testing.T) {
	m := s.start(t, s.Spec(t))
	control := s.meet(t, m)
	logs := s.dial(t, m, vm.Logs)
	control.tell("logs one")
	control.tell("logs two")
	if got := control.ask("echo x"); got != "x" {
		t.Errorf("control: got %q", got)
	}
	for _, want := range []string{"one", "two"} {
		if got := logs.line(); got != want {
			t.Errorf("logs: got %q, want %q", got, want)
		}
	}
}

func (s Suite) testDialAgain(t *testing.T) {
	m := s.start(t, s.Spec(t))
	g := s.meet(t, m)
	if got := g.ask("echo 1"); got != "1" {
		t.Fatalf("got %q", got)
	}
	if err := g.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if got := s.dial(t, m, vm.Control).ask("echo 2"); got != "2" {
		t.Errorf("after dialling again: got %q", got)
	}
}

func (s Suite) testDisks(t *testing.T) {
	spec := s.Spec(t)
	dir := Dir(t)
	var want []string
	devices := map[string]string{} // name to write to by, of each disk
	for i, d := range []vm.Disk{
		{ID: "a-layer", ReadOnly: true}, {ID: "scratch"}, {ID: "twenty-bytes-long-20", ReadOnly: true}, {ID: "volume", Durable: true},
	} {
		d.Path = filepath.Join(dir, d.ID)
		size := int64(i+1) * 4096
		if err := os.WriteFile(d.Path, make([]byte, size), 0o644); err != nil { //nolint:gosec // monitors of other users read disks
			t.Fatal(err)
		}
		mode := "rw"
		if d.ReadOnly {
			mode = "ro"
		}
		want = append(want, fmt.Sprintf("%s %d %s", d.ID, size/512, mode))
		devices[d.ID] = d.ID
		if s.ByOrder {
			devices[d.ID] = DeviceName(i)
		}
		spec.Disks = append(spec.Disks, d)
	}
	m := s.start(t, spec)
	g := s.meet(t, m)
	got := strings.Split(g.ask("disks"), ",")
	if s.ByOrder {
		got, want = withoutSerials(got), withoutSerials(want)
	} else {
		slices.Sort(got)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, id := range []string{"volume", "scratch"} {
		if got := g.ask("sync " + devices[id]); got != "ok" {
			t.Errorf("write to %s: got %q", id, got)
		}
		if b, err := os.ReadFile(filepath.Join(dir, id)); err != nil || !strings.HasPrefix(string(b), "pinnace!") {
			t.Errorf("%s holds %.20q, %v", id, b, err)
		}
	}
}

func withoutSerials(disks []string) []string {
	out := make([]string, len(disks))
	for i, d := range disks {
		_, out[i], _ = strings.Cut(d, " ")
	}
	return out
}

func (s Suite) testWaitIsBounded(t *testing.T) {
	m := s.start(t, s.Spec(t))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: got %v, want DeadlineExceeded", err)
	}
	if got := s.meet(t, m).ask("echo alive"); got != "alive" {
		t.Errorf("after a Wait that was given up: got %q", got)
	}
}

func (s Suite) testManyAtOnce(t *testing.T) {
	const machines = 3
	var wg sync.WaitGroup
	for range machines {
		spec := s.Spec(t)
		wg.Go(func() {
			m, err := s.Driver.Start(t.Context(), spec)
			if err != nil {
				t.Error(err)
				return
			}
			conn, err := m.Dial(t.Context(), vm.Control)
			if err == nil {
				err = conn.SetReadDeadline(time.Now().Add(machines * s.Patience))
			}
			if err == nil {
				_, err = bufio.NewReader(conn).ReadString('\n')
			}
			if err != nil {
				t.Errorf("no hello: %v", err)
			}
			var waiters sync.WaitGroup
			for range 3 {
				waiters.Go(func() {
					if exit := s.wait(t, m); !exit.Killed {
						t.Errorf("got %v", exit)
					}
				})
				waiters.Go(func() {
					if err := m.Kill(); err != nil {
						t.Error(err)
					}
				})
			}
			waiters.Wait()
		})
	}
	wg.Wait()
}

func (s Suite) testBadSpec(t *testing.T) {
	tests := []struct {
		name, field string
		spoil       func(*vm.Spec)
	}{
		{"no id", "ID", func(s *vm.Spec) { s.ID = "" }},
		{"relative dir", "Dir", func(s *vm.Spec) { s.Dir = "x" }},
		{"no kernel", "Kernel", func(s *vm.Spec) { s.Kernel = "/nonexistent/vmlinuz" }},
		{"kernel is a directory", "Kernel", func(s *vm.Spec) { s.Kernel = "/" }},
		{"no initramfs", "Initramfs", func(s *vm.Spec) { s.Initramfs = "/nonexistent/initramfs" }},
		{"too little memory", "MemoryMiB", func(s *vm.Spec) { s.MemoryMiB = 64 }},
		{"no processor", "VCPUs", func(s *vm.Spec) { s.VCPUs = 0 }},
		{"missing disk", "Disks[0]", func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a", Path: "/nonexistent/disk"}} }},
		{"empty disk", "Disks[0]", func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a", Path: s.Dir + "/../empty"}} }},
		{"disk id with option", "Disks[0]", func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a,readonly=off", Path: "/x"}} }},
		{"disk id twice", "Disks[1]", func(s *vm.Spec) { s.Disks = []vm.Disk{{ID: "a", Path: "/x"}, {ID: "a", Path: "/x"}} }},
		{"too many disks", "Disks", func(s *vm.Spec) { s.Disks = make([]vm.Disk, 1000) }},
		{"cgroup outside", "Cgroup", func(s *vm.Spec) { s.Cgroup = "../x" }},
		{"MAC of a group", "NIC", func(s *vm.Spec) { s.NIC = &vm.NIC{Tap: "t", MAC: "01:00:00:00:00:00"} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := s.Spec(t)
			if err := os.WriteFile(filepath.Join(spec.Dir, "..", "empty"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			dir := spec.Dir
			tt.spoil(&spec)
			m, err := s.Driver.Start(t.Context(), spec)
			if err == nil {
				s.end(t, m)
				t.Fatal("started")
			}
			var bad *vm.SpecError
			if !errors.As(err, &bad) || bad.Field != tt.field {
				t.Errorf("got %v, want a SpecError about %s", err, tt.field)
			}
			wantEmpty(t, dir)
		})
	}
}

func (s Suite) testStartIsCancelled(t *testing.T) {
	spec := s.Spec(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if m, err := s.Driver.Start(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, %v, want Canceled", m, err)
	}
	wantEmpty(t, spec.Dir)

	ctx, cancel = context.WithCancel(t.Context())
	m, err := s.Driver.Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.end(t, m) })
	cancel()
	if got := s.meet(t, m).ask("echo alive"); got != "alive" {
		t.Errorf("after the start's context ended: got %q", got)
	}
}

func (s Suite) testRecord(t *testing.T) {
	spec := s.Spec(t)
	m := s.start(t, spec)
	r := m.Record()
	if r.ID != spec.ID || r.Driver != s.Driver.Name() || r.Dir != spec.Dir {
		t.Errorf("got %+v", r)
	}
	if !s.Processes {
		return
	}
	if kept, err := vm.ReadRecord(spec.Dir); err != nil || kept.PID != r.PID || kept.StartTicks != r.StartTicks || m.PID() <= 1 || m.PID() == r.PID {
		t.Errorf("on record: %+v, %v; have %+v and the monitor %d", kept, err, r, m.PID())
	}
	other := r
	other.StartTicks++
	if killed, err := vm.KillStale(t.Context(), other); killed || err != nil {
		t.Errorf("a record of another process: got %v, %v, want false", killed, err)
	}
	records, err := vm.Sweep(t.Context(), filepath.Dir(spec.Dir))
	if err != nil || len(records) != 1 || records[0].ID != spec.ID {
		t.Errorf("Sweep: got %+v, %v, want this machine", records, err)
	}
	if exit := s.wait(t, m); (exit.Signal != syscall.SIGKILL && !exit.Unknown) || exit.Killed {
		t.Errorf("got %+v, want SIGKILL from somebody else", exit)
	}
	if killed, err := vm.KillStale(t.Context(), r); killed || err != nil {
		t.Errorf("after the end: got %v, %v, want false", killed, err)
	}
}

func (s Suite) start(t *testing.T, spec vm.Spec) vm.Machine {
	t.Helper()
	m, err := s.Driver.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.end(t, m) })
	return m
}

func (s Suite) end(t *testing.T, m vm.Machine) {
	t.Helper()
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	s.wait(t, m)
}

func (s Suite) wait(t *testing.T, m vm.Machine) vm.Exit {
	t.Helper()
	// The test's own context is over when this runs in a clean-up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), s.Patience)
	defer cancel()
	exit, err := m.Wait(ctx)
	if err != nil {
		t.Errorf("machine does not end: %v", err)
	}
	return exit
}

// meet dials the control channel and waits for the guest's hello.
func (s Suite) meet(t *testing.T, m vm.Machine) *peer {
	t.Helper()
	g := s.dial(t, m, vm.Control)
	if got := g.line(); got != "hello" {
		s.end(t, m)
		exit := s.wait(t, m)
		t.Fatalf("got %q instead of hello; %v; console:\n%q", got, exit, exit.ConsoleTail)
	}
	return g
}

func (s Suite) dial(t *testing.T, m vm.Machine, ch vm.Channel) *peer {
	t.Helper()
	conn, err := m.Dial(t.Context(), ch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the guest may have ended it
	return &peer{t: t, conn: conn, in: bufio.NewReader(conn), patience: s.Patience}
}

// A peer is the guest on a channel.
type peer struct {
	t        *testing.T
	conn     net.Conn
	in       *bufio.Reader
	patience time.Duration
}

func (p *peer) tell(command string) {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.conn, command); err != nil {
		p.t.Fatalf("tell guest %q: %v", command, err)
	}
}

func (p *peer) ask(command string) string {
	p.t.Helper()
	p.tell(command)
	return p.line()
}

// line reads a line; what goes wrong is its answer, too.
func (p *peer) line() string {
	if err := p.conn.SetReadDeadline(time.Now().Add(p.patience)); err != nil {
		return err.Error()
	}
	line, err := p.in.ReadString('\n')
	if err != nil {
		return fmt.Sprintf("%s (%v)", line, err)
	}
	return strings.TrimSuffix(line, "\n")
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 0 {
		t.Errorf("%s still has %v", dir, entries)
	}
}
