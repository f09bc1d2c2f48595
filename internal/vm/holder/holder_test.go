//go:build linux

package holder

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the holder.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == Name {
		os.Exit(Main(os.Args))
	}
	os.Exit(m.Run())
}

// lab is a holder whose monitor is a shell.
type lab struct {
	t       *testing.T
	process *os.Process
	control *os.File
	result  string
}

// hold starts a holder for script, which has its console as descriptor 3.
func hold(t *testing.T, script string) *lab {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("needs a shell: ", err)
	}
	l := &lab{t: t, result: filepath.Join(t.TempDir(), ResultName)}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.control = os.NewFile(uintptr(fds[0]), "control")
	theirs := os.NewFile(uintptr(fds[1]), "control")
	result, err := os.OpenFile(l.result, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	console, monitors, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	order := Order{Files: 1, Console: 1, UID: -1, GID: -1, Tied: true, Argv: []string{"/bin/sh", "-c", script}}
	devNull, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	l.process, err = os.StartProcess(os.Args[0], order.Args(), &os.ProcAttr{
		Env: Env([]string{"LC_ALL=C"}), Files: []*os.File{devNull, os.Stderr, os.Stderr, theirs, result, monitors, console},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*os.File{theirs, result, console, monitors, devNull} {
		f.Close()
	}
	t.Cleanup(func() { l.control.Close(); l.process.Kill(); l.process.Wait() })
	return l
}

// start lets the monitor start and returns what the holder says.
func (l *lab) start() string {
	l.t.Helper()
	if _, err := l.control.Write([]byte{1}); err != nil {
		l.t.Fatal(err)
	}
	b, err := io.ReadAll(l.control)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(b)
}

// end waits for the holder's end and returns what it has written down.
func (l *lab) end() Result {
	l.t.Helper()
	if _, err := l.process.Wait(); err != nil {
		l.t.Fatal(err)
	}
	b, err := os.ReadFile(l.result)
	if err != nil {
		l.t.Fatal(err)
	}
	return ParseResult(string(b))
}

func TestResults(t *testing.T) {
	for name, tt := range map[string]struct {
		script           string
		code, signal     int
		console, complts string
	}{
		"success":         {"exit 0", 0, 0, "", ""},
		"status":          {"echo why >&2; echo what; exit 7", 7, 0, "", "why\nwhat\n"},
		"signal":          {"echo last >&3; kill -SEGV $$", -1, 11, "last\n", ""},
		"killed":          {"kill -KILL $$", -1, 9, "", ""},
		"the environment": {"env | grep -v -e PWD -e _= >&3", 0, 0, "LC_ALL=C\n", ""},
		"descriptors":     {"exec ls /proc/self/fd >&3", 0, 0, "0\n1\n2\n3\n4\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := hold(t, tt.script)
			said := l.start()
			r := l.end()
			want := Result{PID: r.PID, Ended: true, Code: tt.code, Signal: tt.signal, Console: tt.console, Complaints: tt.complts}
			if r != want || said != strconv.Itoa(r.PID) || r.PID <= 1 {
				t.Errorf("got %+v and %q, want %+v", r, said, want)
			}
		})
	}
}

// TestFloodIsBounded: of a console the end is kept, of complaints the beginning.
func TestFloodIsBounded(t *testing.T) {
	l := hold(t, `yes 0123456789 | head -c 300000 >&3; echo the end >&3; echo first >&2; yes complain | head -c 100000 >&2`)
	l.start()
	r := l.end()
	if len(r.Console) != ConsoleLimit || !strings.HasSuffix(r.Console, "0123456789\nthe end\n") && !strings.HasSuffix(r.Console, "the end\n") {
		t.Errorf("console of %d bytes, ends with %.20q", len(r.Console), r.Console[max(0, len(r.Console)-20):])
	}
	if len(r.Complaints) != ComplaintsLimit || !strings.HasPrefix(r.Complaints, "first\ncomplain\n") {
		t.Errorf("complaints of %d bytes, begin with %.20q", len(r.Complaints), r.Complaints)
	}
}

// TestNobodyWants: without the word to start there is no monitor.
func TestNobodyWants(t *testing.T) {
	made := filepath.Join(t.TempDir(), "made")
	l := hold(t, "touch "+made)
	l.control.Close()
	if r := l.end(); r != (Result{}) {
		t.Errorf("got %+v", r)
	}
	if _, err := os.Stat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the monitor ran: %v", err)
	}
}

// TestStarterIsGone: the starter's end right after its word changes nothing.
func TestStarterIsGone(t *testing.T) {
	l := hold(t, "exit 3")
	if _, err := l.control.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	l.control.Close()
	if r := l.end(); !r.Ended || r.Code != 3 {
		t.Errorf("got %+v", r)
	}
}

// TestTied: the monitor ends with its holder.
func TestTied(t *testing.T) {
	l := hold(t, "sleep 60")
	pid, err := strconv.Atoi(l.start())
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	l.process.Kill()
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if n == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the monitor lives: %v", err)
		}
	}
	if r := l.written(); r.PID != pid || r.Ended {
		t.Errorf("got %+v", r)
	}
}

// written is end for a holder that was killed.
func (l *lab) written() Result {
	b, _ := os.ReadFile(l.result)
	return ParseResult(string(b))
}

func TestOrder(t *testing.T) {
	if _, err := parseOrder([]string{Name, "1", "--"}); err == nil {
		t.Error("half an order was taken")
	}
	o := Order{Kept: 1, Files: 2, Console: 3, Complaints: 4, Ignored: 5, UID: -1, GID: 7, Tied: true, Argv: []string{"/x", "--", "y"}}
	got, err := parseOrder(o.Args())
	if err != nil || strings.Join(got.Argv, " ") != "/x -- y" || got.Ignored != 5 || got.UID != -1 || !got.Tied {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestParseResult(t *testing.T) {
	whole := "pid 12\nexit -1 9 3 4\nbutlast"
	if r := ParseResult(whole); r != (Result{PID: 12, Ended: true, Code: -1, Signal: 9, Complaints: "but", Console: "last"}) {
		t.Errorf("got %+v", r)
	}
	for n := range len(whole) {
		if r := ParseResult(whole[:n]); r.Ended || (r.PID != 0 && r.PID != 12) {
			t.Errorf("cut after %d bytes: %+v", n, r)
		}
	}
	for _, text := range []string{"pid 1\n", "pid -4\n", "pid 12\nexit 0 0 -1 1\n", "pid 12\nexit 0 0 0 99999999\n", "pid 12\nexit 0 0 0\n"} {
		if r := ParseResult(text); r.Ended || r.PID == 1 || r.PID < 0 {
			t.Errorf("%q: %+v", text, r)
		}
	}
}
