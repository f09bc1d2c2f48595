package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

func TestRestartPolicy(t *testing.T) {
	tests := []struct {
		policy   string
		code     int
		restarts bool
	}{
		{"always", 0, true},
		{"always", 1, true},
		{"on-failure", 0, false},
		{"on-failure", 1, true},
		{"never", 0, false},
		{"never", 1, false},
	}
	for _, tt := range tests {
		t.Run(tt.policy+" after "+string(rune('0'+tt.code)), func(t *testing.T) {
			l := newLab(t)
			l.runs("api", inTurn(exits(tt.code), playing(guesttest.Workload{})))
			l.start()
			l.assign("dev", "api-1", l.app("api", `restart = "`+tt.policy+`"`))
			if tt.restarts {
				r := l.await("api-1", "runs again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
				if r.End != nil {
					t.Errorf("the new attempt has the end of the old one: %v", r)
				}
				return
			}
			r := l.awaitEnd("api-1")
			if r.Attempt != 1 || r.End.Kind != causeExited || int(r.End.Code) != tt.code || r.End.Planned {
				t.Errorf("got %v", r)
			}
		})
	}
}

// TestCauses checks that every end has its proven cause, and that none without a report of exit 0 looks like
// success.
func TestCauses(t *testing.T) {
	// once is a guest that runs its workload until the server knows, and then ends so.
	once := func(l *lab, end vmtest.End) vmtest.Guest {
		return byHand(func(ctx context.Context, g *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
			say(guest.Started{PID: 2, StartedAt: 1})
			l.waitFor(ctx, g, stateReady)
			return end
		})
	}
	tests := map[string]struct {
		guest func(l *lab) vmtest.Guest
		want  *pinnacev1.Cause
		tail  string
	}{
		"exit code": {func(*lab) vmtest.Guest {
			return playing(guesttest.Workload{Run: func(_ context.Context, p *guesttest.Process) int {
				_ = p.Log(guest.StreamStderr, "out of cheese\x00\xff")
				return 7
			}})
		}, &pinnacev1.Cause{Kind: causeExited, Code: 7}, "out of cheese\x00\uFFFD"},
		"signal": {func(*lab) vmtest.Guest {
			return byHand(func(ctx context.Context, _ *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
				say(guest.Started{PID: 2, StartedAt: 1})
				say(guest.Exit{Code: 139, Signal: "SIGSEGV"})
				<-ctx.Done()
				return vmtest.End{}
			})
		}, &pinnacev1.Cause{Kind: causeSignalled, Code: 139, Signal: "SIGSEGV"}, ""},
		"init failed": {func(*lab) vmtest.Guest {
			return byHand(func(ctx context.Context, _ *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
				say(guest.Started{PID: 2, StartedAt: 1})
				say(guest.Exit{Code: 137, Signal: "SIGKILL", Killed: true, Error: "reaper: a bug"})
				<-ctx.Done()
				return vmtest.End{}
			})
		}, &pinnacev1.Cause{Kind: causeLost, Detail: "init failed and ended the machine: reaper: a bug"}, ""},
		"guest out of memory": {func(*lab) vmtest.Guest {
			return playing(guesttest.Workload{OOM: true, Victim: &guest.Victim{PID: 99, Name: "eat\"er"}, Run: func(context.Context, *guesttest.Process) int { return 0 }})
		}, &pinnacev1.Cause{Kind: causeGuestOOM, Code: 137, Signal: "SIGKILL", Detail: `the guest's kernel killed process 99, "eat\"er"`}, ""},
		"kernel panic": {
			func(l *lab) vmtest.Guest { return once(l, vmtest.End{Panic: "no init"}) },
			&pinnacev1.Cause{Kind: causeKernelPanic, Detail: "guest kernel panicked"}, "Kernel panic - not syncing: no init",
		},
		"reset without a report": {
			func(l *lab) vmtest.Guest { return once(l, vmtest.End{}) },
			&pinnacev1.Cause{Kind: causeLost, Detail: "guest reset or powered off"}, "",
		},
		"monitor failed": {
			func(l *lab) vmtest.Guest { return once(l, vmtest.End{Code: 1}) },
			&pinnacev1.Cause{Kind: causeLost, Detail: "monitor ended with status 1"}, "",
		},
		"monitor out of memory": {
			func(l *lab) vmtest.Guest { return once(l, vmtest.End{OOM: true}) },
			&pinnacev1.Cause{Kind: causeVMMOOM, Detail: "its cgroup ran out of memory"}, "",
		},
		"protocol broken": {func(l *lab) vmtest.Guest {
			return byHand(func(ctx context.Context, g *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
				say(guest.Started{PID: 2, StartedAt: 1})
				l.waitFor(ctx, g, stateReady)
				_, _ = g.Control.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff})
				<-ctx.Done()
				return vmtest.End{}
			})
		}, &pinnacev1.Cause{Kind: causeLost, Detail: "the guest broke the protocol"}, ""},
		"command not found": {func(*lab) vmtest.Guest {
			return playing(guesttest.Workload{Fail: &guest.Failed{Stage: "exec", Error: "no such file", Code: 127}})
		}, &pinnacev1.Cause{Kind: causeStartFailed, Stage: "exec", Code: 127, Detail: "no such file"}, ""},
		"panic while booting": {func(l *lab) vmtest.Guest {
			return l.during("kernel", func(context.Context, *vmtest.FakeGuest) vmtest.End { return vmtest.End{Panic: "no root"} })
		}, &pinnacev1.Cause{Kind: causeKernelPanic, Stage: "kernel", Detail: "no root"}, "no root"},
		"reset while booting": {func(l *lab) vmtest.Guest {
			return l.during("kernel", func(context.Context, *vmtest.FakeGuest) vmtest.End { return vmtest.End{} })
		}, &pinnacev1.Cause{Kind: causeStartFailed, Stage: "kernel", Detail: "guest reset or powered off"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.runs("api", tt.guest(l))
			l.timing.reset = 100 * time.Millisecond
			l.start()
			l.assign("dev", "api-1", l.app("api", `restart = "never"`))
			r := l.awaitEnd("api-1")
			got := r.End
			if got.Kind != tt.want.Kind || got.Code != tt.want.Code || got.Signal != tt.want.Signal || got.Stage != tt.want.Stage ||
				!strings.Contains(got.Detail, tt.want.Detail) || got.Planned || got.At == nil {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if tail := strings.Join(got.LogTail, "\n"); !strings.Contains(tail, tt.tail) {
				t.Errorf("tail: got %q, want %q", tail, tt.tail)
			}
		})
	}
}

// byHand is a guest that says hello, takes its configuration and then leaves the conversation to play.
func byHand(play func(ctx context.Context, g *vmtest.FakeGuest, say func(guest.Message)) vmtest.End) vmtest.Guest {
	return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		say := func(m guest.Message) {
			if frame, err := guest.Encode(nil, m); err == nil {
				_, _ = g.Control.Write(frame)
			}
		}
		say(guest.Hello{Version: guest.Version, Nonce: strings.Repeat("0", 32), Kernel: "fake"})
		if _, _, err := guest.NewReader(g.Control, guest.MaxHostFrame).Next(); err != nil {
			return vmtest.End{}
		}
		return play(ctx, g, say)
	}
}

// TestReportBeforeSilence has guests that report and are gone before anybody looks: the report counts, whatever is
// noticed first.
func TestReportBeforeSilence(t *testing.T) {
	for range 20 {
		at := checked(t, "", accept)
		at.agent.routes = newRoutes(at.agent)
		at.bootedAt = time.Now()
		at.status.ReadyAt = timestamppb.Now() // or becoming ready is one more thing that can be noticed first
		at.guest = reportedAndGone(t)
		if cause := at.supervise(t.Context()); cause.Kind != causeExited || cause.Code != 0 {
			t.Fatalf("got %v", cause)
		}
	}
}

// reportedAndGone is the host's end of a conversation that is over, with a report in it.
func reportedAndGone(t *testing.T) *guest.Host {
	t.Helper()
	control, guestControl := net.Pipe()
	logs, guestLogs := net.Pipe()
	defer guestLogs.Close()
	h := guest.NewHost(control, logs, guest.Options{})
	ended := make(chan error, 1)
	go func() { ended <- h.Run(t.Context()) }()
	for _, m := range []guest.Message{
		guest.Hello{Version: guest.Version, Nonce: strings.Repeat("0", 32)}, guest.Started{PID: 2}, guest.Exit{}, guest.Heartbeat{},
	} {
		frame, err := guest.Encode(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guestControl.Write(frame); err != nil {
			t.Fatal(err)
		}
	}
	_ = guestControl.Close()
	<-ended
	return h
}

// TestGuestCannotChooseItsTime: what a guest says of the time goes into the log of events.
func TestGuestCannotChooseItsTime(t *testing.T) {
	l := newLab(t)
	l.runs("api", byHand(func(ctx context.Context, _ *vmtest.FakeGuest, say func(guest.Message)) vmtest.End {
		say(guest.Started{PID: 2, StartedAt: 1})
		say(guest.Exit{Code: 1, ExitedAt: -1 << 62})
		<-ctx.Done()
		return vmtest.End{}
	}))
	l.timing.reset = 10 * time.Millisecond
	l.start()
	l.assign("dev", "api-1", l.app("api", `restart = "never"`))
	if at := l.awaitEnd("api-1").End.At.AsTime(); time.Since(at).Abs() > time.Hour {
		t.Errorf("got %s", at)
	}
}

// TestLiveCheckRestarts: a workload that is alive but not well is stopped in order, and that is no success even
// if it exits with 0.
func TestLiveCheckRestarts(t *testing.T) {
	for _, policy := range []string{"on-failure", "never"} {
		t.Run(policy, func(t *testing.T) {
			l := newLab(t)
			sick := playing(guesttest.Workload{Exec: func([]string) guest.ExecResult { return guest.ExecResult{Code: 9} }})
			l.runs("api", inTurn(sick, playing(guesttest.Workload{})))
			l.start()
			l.assign("dev", "api-1", l.app("api", `restart = "`+policy+`"`,
				`health.live = { type = "exec", command = ["/ping"], interval = "1s", timeout = "1s", fail = 1 }`))
			end := l.awaitAttemptEnd("api-1", 1)
			if want := "health.live failed: /ping exited with status 9; exited with code 0 when it was told to stop"; end.Kind != causeSignalled ||
				end.Signal != "SIGINT" || end.Planned || end.Detail != want {
				t.Errorf("got %v", end)
			}
			if policy == "never" {
				l.awaitEnd("api-1")
				return
			}
			l.await("api-1", "runs again", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
		})
	}
}

// TestBackOff follows the pauses between attempts that all fail.
func TestBackOff(t *testing.T) {
	dir := t.TempDir()
	store, err := image.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	synctest.Test(t, func(t *testing.T) {
		a := &Agent{Options: Options{Dir: dir, Images: store, Log: slog.New(slog.DiscardHandler)}, timing: defaultTiming(), reportc: make(chan struct{}, 1)}
		a.keeper = &keeper{images: store, path: a.imagesPath(), now: time.Now}
		if err := os.MkdirAll(a.instancesDir(), 0o700); err != nil {
			t.Fatal(err)
		}
		m, _ := manifest.Parse([]byte("schema = \"v1\"\nname = \"api\"\nresources.memory = \"96MiB\"\n"))
		w := &workload{manifest: m, release: &pinnacev1.AssignedRelease{Platform: &pinnacev1.ReleasePlatform{ManifestDigest: "nonsense"}}}
		i := newInstance(a, &pinnacev1.Assignment{Instance: "api-1"}, w)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		began := time.Now()
		go func() { defer close(ended); i.run(ctx) }()
		at := time.Duration(0)
		for n, pause := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
			synctest.Wait()
			if r := i.report(); r.Attempt != uint32(n+1) || r.State != stateBackoff || time.Since(began) != at {
				t.Fatalf("at %s: got attempt %d, %s at %s", at, r.Attempt, r.State, time.Since(began))
			}
			at += pause * time.Second
			time.Sleep(pause * time.Second)
		}
		cancel()
		<-ended
	})
}

// TestBackOffStartsOver: a workload that has run for long begins with the shortest pause again.
func TestBackOffStartsOver(t *testing.T) {
	l := newLab(t)
	l.timing.backoffReset = 200 * time.Millisecond
	longLived := playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-ctx.Done():
		}
		return 1
	}})
	l.runs("api", inTurn(exits(1), exits(1), longLived, playing(guesttest.Workload{})))
	l.start()
	l.assign("dev", "api-1", l.app("api"))
	for attempt, want := range map[uint32]string{1: "starting again in 100ms", 2: "starting again in 200ms", 3: "starting again in 100ms"} {
		r := l.await("api-1", "backs off", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == attempt && r.State == stateBackoff })
		if r.Message != want {
			t.Errorf("after attempt %d: got %q, want %q", attempt, r.Message, want)
		}
	}
}

// TestAttemptNumberIsKeptFirst: an attempt whose number cannot be kept does not begin, and the next one tries.
func TestAttemptNumberIsKeptFirst(t *testing.T) {
	l := newLab(t).start()
	records := filepath.Join(l.dir, "data", "instances")
	if err := os.Remove(records); err != nil {
		t.Fatal(err)
	}
	l.assign("dev", "api-1", l.app("api"))
	if end := l.awaitAttemptEnd("api-1", 1); end.Kind != causeStartFailed || end.Stage != "record" || !strings.Contains(end.Detail, "keep the number") {
		t.Errorf("got %v", end)
	}
	if n := len(l.driver.Started()); n > 0 {
		t.Errorf("%d machines were started", n)
	}
	if err := os.Mkdir(records, 0o700); err != nil {
		t.Fatal(err)
	}
	l.awaitState("api-1", stateReady)
}

// TestUnreadableRecord: a record that says nothing is not taken for none, which would use numbers again.
func TestUnreadableRecord(t *testing.T) {
	l := newLab(t)
	mustWrite(t, filepath.Join(l.dir, "data", "instances", "api-1.json"), "{")
	// Assigned before the agent joins, which removes the records of instances that it is not to have.
	l.assign("dev", "api-1", l.app("api"))
	l.start()
	if end := l.awaitEnd("api-1").End; end.Kind != causeStartFailed || !strings.Contains(end.Detail, "api-1.json") {
		t.Errorf("got %v", end)
	}
}

// TestAgentStartsAnew is about what an agent finds that an earlier one has left behind when it was killed.
func TestAgentStartsAnew(t *testing.T) {
	l := newLab(t)
	machine := filepath.Join(l.dir, "run", "vm", "api-1.4")
	stale := staleMachine(t, machine)
	mustWrite(t, filepath.Join(l.dir, "data", "instances", "api-1.json"), `{"attempt":4}`)
	mustWrite(t, filepath.Join(l.dir, "data", "instances", "old-1.json"), `{"attempt":2}`)
	if _, err := l.net.EnsureEnvironment(t.Context(), "dev"); err != nil {
		t.Fatal(err)
	}
	if _, err := l.net.Attach(t.Context(), "dev", "api-1", 1); err != nil {
		t.Fatal(err)
	}
	l.assign("dev", "api-1", l.app("api"))
	if err := l.make(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-stale:
	case <-time.After(patience):
		t.Error("the machine of the earlier run lives")
	}
	if _, err := os.Stat(machine); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
	if !l.net.empty() {
		t.Error("its place in the network is still taken")
	}
	l.start()
	if r := l.awaitState("api-1", stateReady); r.Attempt != 5 {
		t.Errorf("got attempt %d, want 5", r.Attempt)
	}
	if _, err := os.Stat(filepath.Join(l.dir, "data", "instances", "old-1.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the record of an instance that is gone: %v", err)
	}
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if got := strings.Join(l.net.log, ", "); got != "make dev" {
		t.Errorf("networks: %s; want that of dev kept", got)
	}
}

// TestJobIsNotDoneTwice: an instance that has ended for good stays ended when the agent is started again before
// the server knows.
func TestJobIsNotDoneTwice(t *testing.T) {
	l := newLab(t)
	var runs atomic.Int32
	l.runs("job", playing(guesttest.Workload{Run: func(context.Context, *guesttest.Process) int { runs.Add(1); return 0 }}))
	l.start()
	l.assign("dev", "job-1", l.app("job", `restart = "never"`))
	first := l.awaitEnd("job-1")
	l.end()
	l.server.change(func() { l.server.reports = map[string][]*pinnacev1.InstanceReport{} })
	l.start()
	again := l.awaitEnd("job-1")
	if again.Attempt != 1 || again.End.Kind != causeExited || !again.End.At.AsTime().Equal(first.End.At.AsTime()) {
		t.Errorf("got %v, want the end of the first run, %v", again, first.End)
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("it ran %d times", n)
	}
}

func mustWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// staleMachine is a process with a record in dir that says that it is a machine's monitor. The channel is closed
// when it has ended.
func staleMachine(t *testing.T, dir string) <-chan struct{} {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{})
	if err != nil {
		t.Skipf("needs /bin/sleep: %v", err)
	}
	ended := make(chan struct{})
	rec, err := vm.NewRecord("fake", vm.Spec{ID: "api-1.4", Dir: dir}, p.Pid, time.Now())
	if err == nil {
		err = rec.Write()
	}
	go func() { defer close(ended); _, _ = p.Wait() }()
	t.Cleanup(func() { _ = p.Kill(); <-ended })
	if err != nil {
		t.Fatal(err)
	}
	return ended
}
