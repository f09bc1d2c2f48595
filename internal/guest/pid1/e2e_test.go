//go:build linux

package pid1_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// TestGuest boots a VM for each story. They share what is built, so they are one test.
func TestGuest(t *testing.T) {
	l := newLab(t)
	for _, story := range []struct {
		name string
		tell func(*testing.T, *lab)
	}{
		{"user of the image", testUser},
		{"root", testRoot},
		{"container", testContainer},
		{"image rules", testImageRules},
		{"serve and stop", testServe},
		{"commands", testCommands},
		{"commands of a host that is gone", testCommandsAlone},
		{"stubborn", testStubborn},
		{"out of memory", testOutOfMemory},
		{"thrashing", testThrashing},
		{"full disk", testFullDisk},
		{"orphans", testOrphans},
		{"flood of lines", testLines},
		{"signals to PID 1", testAttack},
		{"told to go down", testGoDown},
		{"clock and statistics", testAttend},
		{"sessions that follow each other", testResume},
		{"died by signal", testSignal},
		{"command missing", testMissingCommand},
		{"user missing", testMissingUser},
		{"wrong image", testWrongImage},
		{"no command", testNoCommand},
	} {
		t.Run(story.name, func(t *testing.T) { story.tell(t, l) })
	}
}

func testUser(t *testing.T, l *lab) {
	m := l.boot(t)
	c := l.config("facts", "two words")
	c.Process.User, c.Process.WorkDir = "web", "/srv/made/here"
	c.Process.Env = []string{"A=1", "A=2", "nonsense", "HOME="}
	started := m.start(c)
	e := m.exit()
	m.end()
	if e.Code != 0 || e.Signal != "" || e.StartedAt == 0 || e.ExitedAt < e.StartedAt {
		t.Errorf("exit %+v", e)
	}
	if names := markNames(started.Marks); !slices.Contains(names, "exec") {
		t.Errorf("marks %v", names)
	}
	f := m.facts()
	f.want("uid", "1000")
	f.want("gid", "1001")
	f.want("groups", "[1001 2000 2001]")
	f.want("cwd", "/srv/made/here")
	f.want("args", "[/bin/workload facts two words]")
	f.want("env", "[PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOSTNAME=web-1 HOME=/home/web A=2]")
	f.want("hostname", "web-1")
	f.want("umask", "0022")
	f.want("core", "0")
	f.want("CapEff", "0000000000000000")
	f.want("CapBnd", "00000000a80425fb")
	f.want("SigBlk", "0000000000000000")
	f.want("SigIgn", "0000000000000000")
	f.want("reopen stderr", "true")
	f.want("addresses", "[127.0.0.1/8 10.100.0.2/16 ::1/128 fd00:7069:6e6e:100::2/64]")
	f.want("/etc/hostname", "web-1\n")
	f.want("/etc/resolv.conf", "search internal\nnameserver 10.100.0.1\n")
	f.contains("/etc/hosts", "10.100.0.2\tweb-1")
	f.contains("routes", "0100640A") // 10.100.0.1
	f.contains("routes6", "fd0070696e6e01000000000000000001")
	f.want("/proc/self/cgroup", "0::/workload\n")
	f.want("/proc/self/oom_score_adj", "0\n")
	f.want("mode /tmp", "dtrwxrwxrwx")
	f.want("mode /dev/shm", "dtrwxrwxrwx")
	f.want("mode /run/app", "drwxr-xr-x") // the image's own
	if n, _ := strconv.Atoi(f.text("root bytes")); n < 100<<20 {
		t.Errorf("the root has %d bytes: the scratch disk was not grown", n)
	}
	if now, _ := strconv.ParseInt(f.text("now"), 10, 64); time.Since(time.Unix(now, 0)).Abs() > time.Minute {
		t.Errorf("the guest's clock says %v", time.Unix(now, 0))
	}
	rss, _, _ := strings.Cut(f.text("init VmHWM"), " ")
	if kib, err := strconv.Atoi(rss); err != nil || kib > 12<<10 {
		t.Errorf("init used %s KiB", rss)
	}
}

func testRoot(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("facts"))
	m.exit()
	m.end()
	f := m.facts()
	f.want("uid", "0")
	f.want("groups", "[0]")
	f.want("CapEff", "00000000a80425fb")
	f.want("CapInh", "0000000000000000")
	f.want("rename", "true")
	f.contains("env", "HOME=/root")
	f.want("cwd", "/")
}

func testServe(t *testing.T, l *lab) {
	m := l.boot(t)
	c := l.config("serve")
	c.Process.StopSignal = "USR1"
	c.Process.User = "1000"
	m.start(c)
	m.awaitText(guest.StreamStdout, "ready\nno newline")
	for _, x := range []struct {
		argv   []string
		code   int
		output string
	}{
		{[]string{"workload", "exit", "0"}, 0, ""},
		{[]string{"workload", "exit", "7"}, 7, ""},
		{[]string{"workload", "child"}, 0, ""},
		{[]string{"workload", "kill-self"}, 137, ""},
		{[]string{"/bin/plain"}, 126, "permission denied"},
		{[]string{"/bin"}, 126, "is a directory"},
		{[]string{"script"}, 126, "exec format error"},
		{[]string{"no-loader"}, 127, "interpreter"},
		{[]string{"not-there"}, 127, "PATH"},
		{[]string{"/not/there"}, 127, "no such file"},
		{[]string{"workload", "lines", "5000"}, 0, "line 0\nline 1\n"},
		{[]string{"workload", "whoami"}, 0, "1000 1001 /home/web\n"},
	} {
		r, err := m.host.Exec(context.Background(), x.argv, 20*time.Second)
		if err != nil {
			t.Fatalf("%v: %v", x.argv, err)
		}
		if got := string(r.Output) + r.Error; r.Code != x.code || !strings.Contains(got, x.output) || r.TimedOut {
			t.Errorf("%v: code %d, %.200q", x.argv, r.Code, got)
		}
	}
	r, err := m.host.Exec(context.Background(), []string{"workload", "stubborn"}, 300*time.Millisecond)
	if err != nil || !r.TimedOut || r.Code != 137 {
		t.Errorf("a command that never ends: %+v, %v", r, err)
	}

	if err := m.host.Stop(context.Background(), "", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if e := m.exit(); e.Code != 43 || !e.Stopped || e.Killed {
		t.Errorf("exit %+v", e)
	}
	m.end()
	if got := m.text(guest.StreamStderr); got != "bye\n" {
		t.Errorf("stderr %q", got)
	}
}

func testStubborn(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("stubborn"))
	m.awaitText(guest.StreamStdout, "ready")
	began := time.Now()
	if err := m.host.Stop(context.Background(), "SIGTERM", time.Second); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 900*time.Millisecond || took > 3*time.Second {
		t.Errorf("the stop took %v", took)
	}
	if e := m.exit(); e.Code != 137 || e.Signal != "SIGKILL" || !e.Stopped || !e.Killed || e.OOM {
		t.Errorf("exit %+v", e)
	}
	m.end()
}

func testOutOfMemory(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("eat"))
	e := m.exit()
	if e.Code != 137 || !e.OOM || e.Stopped {
		t.Errorf("exit %+v", e)
	}
	if e.Victim == nil || e.Victim.Name != "workload" || e.Victim.PID <= 1 {
		t.Errorf("the OOM killer's victim is %+v", e.Victim)
	}
	m.end()
}

// testThrashing has a workload that the kernel lets read its program again and again for as long as it likes.
func testThrashing(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("thrash"))
	m.awaitText(guest.StreamStdout, "full")
	e := m.exit()
	if e.Code != 137 || !e.OOM || e.Stopped || e.Victim == nil || e.Victim.Name != "workload" {
		t.Errorf("exit %+v", e)
	}
	m.end()
	if got := m.console.String(); !strings.Contains(got, "the workload has done little but read its programs again") {
		t.Errorf("why the OOM killer was called is not on the console:\n%s", got)
	}
}

func testFullDisk(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("fill", "/big"))
	if e := m.exit(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	m.end()
	if got := m.text(guest.StreamStdout); !strings.Contains(got, "no space left on device") {
		t.Errorf("stdout %q", got)
	}
}

func testOrphans(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("orphans"))
	if e := m.exit(); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	m.end()
}

func testLines(t *testing.T, l *lab) {
	const n = 30000 // more than the ring holds
	m := l.boot(t)
	m.start(l.config("lines", strconv.Itoa(n)))
	e := m.exit()
	m.end()
	if e.LastLine != n {
		t.Errorf("%d lines, expected %d", e.LastLine, n)
	}
	var want strings.Builder
	for i := range n {
		fmt.Fprintln(&want, "line", i)
	}
	if got := m.text(guest.StreamStdout); got != want.String() {
		t.Errorf("%d bytes of output, expected %d", len(got), want.Len())
	}
}

// testResume ends the session again and again in a flood of lines, as crashes of the agent do: with all sessions
// together every line comes, once, and the guest's word of its start and end as well.
func testResume(t *testing.T, l *lab) {
	const n = 30000
	m := l.boot(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	hello, err := m.host.Hello(ctx)
	if err != nil {
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		m.cut()
		<-m.session
		m.converse(guest.Options{Resume: true, Nonce: hello.Nonce, AfterLine: m.host.LastLine()})
	}
	again() // before there is a configuration
	m.start(l.config("lines", fmt.Sprint(n)))
	for round := range 8 {
		want := uint64(n / 10 * (round + 1))
		m.awaitLine(want)
		again()
		if got := m.start(guest.Config{}); got.PID < 2 { // the guest has one
			t.Errorf("round %d: started %+v", round, got)
		}
	}
	e := m.exit()
	again()
	if e2 := m.exit(); e2 != e || e.Code != 0 {
		t.Errorf("the second session has another report: %+v, %+v", e, e2)
	}
	m.end()
	lost := uint64(0)
	for i, line := range m.lines {
		if line.Seq != uint64(i+1) {
			t.Fatalf("line %d has number %d", i+1, line.Seq)
		}
		lost += line.Dropped
	}
	if got := uint64(len(m.lines)); got != e.LastLine || got != n || lost != 0 {
		t.Errorf("%d lines of %d, %d of them lost", got, n, lost)
	}
}

// awaitLine waits until so many lines have come.
func (m *machine) awaitLine(seq uint64) {
	m.t.Helper()
	deadline := time.Now().Add(bootTimeout)
	for m.host.LastLine() < seq {
		select {
		case <-m.host.Done():
			m.t.Fatalf("the session ended before line %d", seq)
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%d lines after %v, not %d", m.host.LastLine(), bootTimeout, seq)
		}
	}
}

func testAttack(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("attack"))
	e := m.exit()
	m.end()
	if got := m.text(guest.StreamStdout); e.Code != 0 || got != "still here\n" {
		t.Errorf("exit %+v, stdout %q", e, got)
	}
}

// testAttend boots a VM whose host is an hour wrong at first, and asks it how it fares.
func testAttend(t *testing.T, l *lab) {
	m := l.boot(t)
	c := l.config("serve")
	c.Now = time.Now().Add(time.Hour).UnixNano()
	m.start(c)
	m.awaitText(guest.StreamStdout, "ready")
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	off, err := m.host.SetClock(ctx)
	if err != nil || off < 50*time.Minute || off > 70*time.Minute {
		t.Errorf("the clock was off by %v, %v", off, err)
	}
	before := time.Now().Add(-5 * time.Second)
	r, err := m.host.Exec(ctx, []string{"workload", "now"}, 20*time.Second)
	if now, _ := strconv.ParseInt(strings.TrimSpace(string(r.Output)), 10, 64); err != nil || time.Unix(0, now).Before(before) || time.Unix(0, now).After(time.Now().Add(5*time.Second)) {
		t.Errorf("after that the guest says it is %q, %v", r.Output, err)
	}
	s, err := m.host.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.MemoryBytes <= 0 || s.MemoryPeakBytes < s.MemoryBytes/2 || s.MemoryMaxBytes < 16<<20 || s.MemoryBytes > s.MemoryMaxBytes || s.CPUMicros <= 0 ||
		s.PIDs < 1 || s.PIDs > s.PIDsMax || s.DiskBytes < 100<<20 || s.DiskUsedBytes <= 0 || s.OOMKills != 0 {
		t.Errorf("statistics %+v", s)
	}
	if err := m.host.Stop(ctx, "", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	m.exit()
	m.end()
}

// testGoDown sends PID 1 what ctrl-alt-del of the VMM comes to: the workload is stopped in good order.
func testGoDown(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("serve"))
	m.awaitText(guest.StreamStdout, "ready")
	r, err := m.host.Exec(context.Background(), []string{"workload", "signal-init", "2"}, 20*time.Second)
	if err != nil || r.Code != 0 {
		t.Fatalf("signal PID 1: %+v, %v", r, err)
	}
	if e := m.exit(); e.Code != 42 || !e.Stopped || e.Killed {
		t.Errorf("exit %+v", e)
	}
	m.end()
}

func testSignal(t *testing.T, l *lab) {
	m := l.boot(t)
	m.start(l.config("kill-self"))
	if e := m.exit(); e.Code != 137 || e.Signal != "SIGKILL" || e.OOM || e.Stopped {
		t.Errorf("exit %+v", e)
	}
	m.end()
	if !strings.Contains(m.console.String(), "pinnace-exit") {
		t.Error("no report on the console")
	}
}

func testMissingCommand(t *testing.T, l *lab) {
	c := l.config()
	c.Process.Entrypoint = []string{"/app/server"}
	l.wantStartError(t, c, guest.StartError{Stage: "exec", Errno: "ENOENT", Code: 127, Message: "run /app/server: no such file or directory"})
}

func testMissingUser(t *testing.T, l *lab) {
	c := l.config("facts")
	c.Process.User = "nobody-here"
	l.wantStartError(t, c, guest.StartError{Stage: "user", Code: 125, Message: `the image has no user "nobody-here"`})
}

func testWrongImage(t *testing.T, l *lab) {
	c := l.config("facts")
	c.Disks[1].UUID = "00000000-0000-0000-0000-000000000000"
	l.wantStartError(t, c, guest.StartError{Stage: "rootfs", Code: 125, Message: "expected 0000000000"})
}

func testNoCommand(t *testing.T, l *lab) {
	c := l.config()
	c.Process.Entrypoint = nil
	l.wantStartError(t, c, guest.StartError{Stage: "exec", Errno: "ENOENT", Code: 127, Message: "there is no command"})
}

func (l *lab) wantStartError(t *testing.T, c guest.Config, want guest.StartError) {
	t.Helper()
	m := l.boot(t)
	_, err := m.tryStart(c)
	var got *guest.StartError
	if !errors.As(err, &got) {
		t.Fatalf("got %v, want a start error", err)
	}
	if got.Stage != want.Stage || got.Errno != want.Errno || got.Code != want.Code || !strings.Contains(got.Message, want.Message) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	m.end()
}
