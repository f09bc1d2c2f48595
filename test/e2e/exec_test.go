package e2e

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const execPatience = time.Minute

// TestExec works in a running instance as people and scripts do, while its health is checked by commands; and in the
// end has it fall ill.
func TestExec(t *testing.T) {
	l := newLab(t)
	port := freePort(t)
	m := l.manifest("app", strings.NewReplacer(
		`health.ready = { type = "http", port = "web", interval = "1s", timeout = "1s" }`,
		`health.ready = { type = "exec", command = ["/workload", "check", "/tmp/unready"], interval = "1s", timeout = "1s" }
health.live = { type = "exec", command = ["/workload", "check", "/tmp/sick"], interval = "1s", timeout = "1s", fail = 2 }`,
	).Replace(web("app", port)))
	l.must("deploy", "-f", m, "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	id := l.instances()[0].ID

	if r := l.pinnace("exec", "app", "--", "/workload", "exit", "42"); r.status != 42 || !strings.Contains(r.stdout, "exiting as told, with 42") {
		t.Errorf("exit status: %s", r)
	}
	if r := l.pinnace("exec", "app", "--", "/not/there"); r.status != 127 || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("a command that is not there: %s", r)
	}
	if r := l.pinnace("exec", "--timeout", "1s", "app/0", "--", "/workload", "wait"); r.status != 124 || r.stdout != "waiting\n" {
		t.Errorf("a command whose time is up: %s", r)
	}
	l.execTerminal(t)
	l.execRoundTrip(t)
	l.execGone(t)
	l.execFlood(t)
	l.execNone(t, "waiting for nothing", "wait", "yes", "cat", "terminal")

	if list := l.instances(); len(list) != 1 || list[0].ID != id || list[0].State != "ready" {
		t.Errorf("after all that: %+v, want %s ready", list, id)
	}
	l.execHealth(t, id)
	if out := l.must("events"); !strings.Contains(out, "exec.requested") {
		t.Errorf("no command is in the log:\n%s", out)
	}
}

// tty is a terminal with a command of the CLI on it.
type tty struct {
	cmd    *exec.Cmd
	master *os.File
	shown  *lockedBuffer
}

func (l *lab) onTerminal(t *testing.T, rows, cols uint16, args ...string) *tty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &tty{master: os.NewFile(uintptr(fd), "ptmx"), shown: &lockedBuffer{}}
	t.Cleanup(func() { x.master.Close() })
	x.resize(t, rows, cols)
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	x.cmd = exec.Command(binary, args...)
	x.cmd.Env, x.cmd.Dir = append(l.env, "TERM=vt220"), l.dir
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = slave, slave, slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.cmd.Process.Kill() }) // it may have ended
	go func() { _, _ = io.Copy(x.shown, x.master) }()
	return x
}

func (x *tty) resize(t *testing.T, rows, cols uint16) {
	t.Helper()
	control, err := x.master.SyscallConn()
	if err == nil {
		_ = control.Control(func(fd uintptr) {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) shows(x *tty, text string) {
	l.t.Helper()
	l.eventually(execPatience, fmt.Sprintf("%q on the terminal", text), func() error {
		if !strings.Contains(x.shown.String(), text) {
			return fmt.Errorf("it shows %q", x.shown.String())
		}
		return nil
	})
}

// execTerminal sits at a terminal: its size and name arrive, and changes do; Ctrl-C is the command's; and the exit
// status is, too. The terminal is left as it was.
func (l *lab) execTerminal(t *testing.T) {
	x := l.onTerminal(t, 31, 117, "exec", "-it", "app/0", "--", "/workload", "terminal")
	l.shows(x, "on /dev/pts/0 31 117 vt220")
	x.resize(t, 50, 99)
	l.shows(x, "on /dev/pts/0 50 99")
	if _, err := x.master.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	l.shows(x, "got an interrupt")
	if _, err := x.master.WriteString("exit 42\r"); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := x.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("on a terminal: %v, want status 42; it shows %q", err, x.shown)
	}
	control, err := x.master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = control.Control(func(fd uintptr) {
		state, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		if err != nil || state.Lflag&unix.ICANON == 0 || state.Lflag&unix.ECHO == 0 {
			t.Errorf("the terminal was not restored: %+v, %v", state, err)
		}
	})
}

// execRoundTrip pipes bytes of all kinds through the instance.
func (l *lab) execRoundTrip(t *testing.T) {
	want := make([]byte, 5<<20)
	_, _ = rand.Read(want) // documented never to fail
	cmd := l.command("exec", "-i", "app", "--", "/workload", "cat")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(want), &stderr
	began := time.Now()
	got, err := cmd.Output()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d came back, %v\n%s", len(got), len(want), err, &stderr)
	}
	t.Logf("5 MiB there and back in %s", time.Since(began).Round(time.Millisecond))
}

func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env, cmd.Dir = l.env, l.dir
	return cmd
}

// execNone waits until no process runs one of the workload's commands.
func (l *lab) execNone(t *testing.T, what string, names ...string) {
	t.Helper()
	for _, name := range names {
		l.eventually(execPatience, what, func() error {
			if n := strings.TrimSpace(l.must("exec", "app", "--", "/workload", "count", name)); n != "0" {
				return fmt.Errorf("%s processes of %s", n, name)
			}
			return nil
		})
	}
}

// execGone kills the CLI; the command in the guest ends.
func (l *lab) execGone(t *testing.T) {
	cmd := l.command("exec", "app", "--", "/workload", "wait")
	out := &lockedBuffer{}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.eventually(execPatience, "the command runs", func() error {
		if out.String() != "waiting\n" {
			return errors.New("not yet")
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // killed
	l.execNone(t, "the command of a caller that was killed has ended", "wait")
}

// execFlood: a command that writes without end, to one who reads and to one who does not, stands in the way of nobody
// and costs little memory. The agent and the server are one process here.
func (l *lab) execFlood(t *testing.T) {
	before := l.rss(t)
	stuck, flood := l.command("exec", "app", "--", "/workload", "yes"), l.command("exec", "app", "--", "/workload", "yes")
	reader, err := stuck.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	got := &byteCounter{}
	flood.Stdout = got
	for _, cmd := range []*exec.Cmd{stuck, flood} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadFull(reader, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	// Another command comes through all the while, and the instance stays ready.
	const enough = 8 << 20
	peak := int64(0)
	l.eventually(execPatience, "the flood goes on", func() error {
		if r := l.pinnace("exec", "app", "--", "/workload", "exit", "0"); r.status != 0 {
			t.Errorf("beside a flood: %s", r)
		}
		peak = max(peak, l.rss(t))
		if list := l.instances(); len(list) != 1 || list[0].State != "ready" {
			t.Errorf("beside a flood: %+v", list)
		}
		if n := got.count(); n < enough {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	if grown := peak - before; grown > 64<<20 {
		t.Errorf("pinnace dev has grown by %d MiB", grown>>20)
	}
	t.Logf("%d MiB flooded; pinnace dev grew from %d to %d MiB", got.count()>>20, before>>20, peak>>20)
	for _, cmd := range []*exec.Cmd{stuck, flood} {
		_ = cmd.Process.Signal(syscall.SIGINT) // which the command gets
		_ = cmd.Process.Signal(syscall.SIGTERM)
	}
	reader.Close()
	for _, cmd := range []*exec.Cmd{stuck, flood} {
		_ = cmd.Wait() // by its status or by SIGPIPE
	}
}

// rss is what the lab's pinnace dev has in memory.
func (l *lab) rss(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.dev.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// execHealth makes the live check fail: the instance is started again, and the cause says why.
func (l *lab) execHealth(t *testing.T, id string) {
	l.must("exec", "app", "--", "/workload", "touch", "/tmp/sick")
	var why string
	l.eventually(execPatience, "the instance was started again and is ready", func() error {
		why = l.must("why", id)
		if !strings.Contains(why, "is ready (attempt 2,") {
			return errors.New(why)
		}
		return nil
	})
	for _, want := range []string{"health.live failed: /workload exited with status 3", "| health.live said: found  [31m/tmp/sick"} {
		if !strings.Contains(why, want) {
			t.Errorf("why does not say %q:\n%s", want, why)
		}
	}
}

// byteCounter counts what is written.
type byteCounter struct {
	mu sync.Mutex
	n  int
}

func (c *byteCounter) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(b)
	return len(b), nil
}

func (c *byteCounter) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}
