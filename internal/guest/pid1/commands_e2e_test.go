//go:build linux

package pid1_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// screen is what a command has written so far.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newScreen() *screen { return &screen{more: make(chan struct{}, 1)} }

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until what is shown has text in it.
func (s *screen) await(t *testing.T, text string) {
	t.Helper()
	late := time.After(bootTimeout)
	for !strings.Contains(s.String(), text) {
		select {
		case <-s.more:
		case <-late:
			t.Fatalf("no %q in %q", text, s)
		}
	}
}

type commandEnd struct {
	result guest.CommandResult
	err    error
}

// begin runs a command and says how it ended.
func (m *machine) begin(ctx context.Context, spec guest.CommandSpec, with guest.CommandIO) <-chan commandEnd {
	end := make(chan commandEnd, 1)
	host := m.host
	go func() {
		r, err := host.Command(ctx, spec, with)
		end <- commandEnd{r, err}
	}()
	return end
}

// command runs a command to its end, with nothing to read.
func (m *machine) command(spec guest.CommandSpec) (guest.CommandResult, string) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bootTimeout)
	defer cancel()
	out, errs := newScreen(), newScreen()
	r, err := m.host.Command(ctx, spec, guest.CommandIO{Stdout: out, Stderr: errs})
	if err != nil {
		m.t.Fatalf("%v: %v", spec.Argv, err)
	}
	return r, out.String() + errs.String()
}

// none waits until nothing of the commands is left in the guest.
func (m *machine) none() {
	m.t.Helper()
	deadline := time.Now().Add(bootTimeout)
	for {
		// Its own cgroup is one.
		_, out := m.command(guest.CommandSpec{Argv: []string{"workload", "processes"}})
		if out == "100\n" {
			return
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("processes of commands and 100 for each of their cgroups: %q", out)
		}
	}
}

func testCommands(t *testing.T, l *lab) {
	m := l.boot(t)
	c := l.config("serve")
	c.Process.User, c.Process.WorkDir = "web", "/srv"
	m.start(c)
	m.awaitText(guest.StreamStdout, "ready\nno newline")

	for _, x := range []struct {
		spec guest.CommandSpec
		code int
		want string
	}{
		{guest.CommandSpec{Argv: []string{"workload", "whoami"}}, 0, "1000 1001 /home/web\n"},
		{guest.CommandSpec{Argv: []string{"workload", "whoami"}, User: "0"}, 0, "0 0 /root\n"},
		{guest.CommandSpec{Argv: []string{"workload", "whoami"}, User: "12:34", Env: []string{"HOME=/mine"}}, 0, "12 34 /mine\n"},
		{guest.CommandSpec{Argv: []string{"workload", "two"}}, 42, "out\nerr\n"},
		{guest.CommandSpec{Argv: []string{"workload", "kill-self"}}, 137, ""},
		{guest.CommandSpec{Argv: []string{"workload", "cat"}}, 0, ""}, // nothing to read
		{guest.CommandSpec{Argv: []string{"not-there"}}, 127, "PATH"},
		{guest.CommandSpec{Argv: []string{"script"}}, 126, "exec format error"},
		{guest.CommandSpec{Argv: []string{"workload", "whoami"}, User: "nobody-here"}, 125, "no user"},
		{guest.CommandSpec{Argv: []string{"workload", "whoami"}, WorkDir: "/not/there"}, 125, "no such file"},
		{guest.CommandSpec{Argv: []string{"workload", "whoami"}, Env: []string{"nonsense"}}, 125, "want NAME=value"},
		{guest.CommandSpec{Argv: []string{"workload", "stubborn"}, Timeout: 300 * time.Millisecond}, 137, "ready\n"},
	} {
		r, out := m.command(x.spec)
		if got := out + r.Error; r.Code != x.code || !strings.Contains(got, x.want) || r.TimedOut != (x.spec.Timeout > 0) {
			t.Errorf("%+v: %+v, %.200q, want %d, %q", x.spec, r, got, x.code, x.want)
		}
	}
	m.none()
	_, out := m.command(guest.CommandSpec{Argv: []string{"workload", "facts"}, TTY: true})
	for _, fact := range []string{`"cwd":"/srv"`, `"uid":1000`, `"groups":[1001,2000,2001]`, `"CapBnd":"00000000a80425fb"`, `"CapEff":"0000000000000000"`, `"umask":"0022"`, `0::/workload/pinnace-exec-`} {
		if !strings.Contains(out, fact) {
			t.Errorf("no %s in %s", fact, out)
		}
	}

	testTerminal(t, m)
	testRoundTrip(t, m)
	testFlood(t, m)

	if _, out := m.command(guest.CommandSpec{Argv: []string{"workload", "leave"}}); !strings.HasPrefix(out, "left ") {
		t.Errorf("got %q", out)
	}
	m.none()

	// The workload's end is that of its commands.
	end := m.begin(context.Background(), guest.CommandSpec{Argv: []string{"workload", "stubborn"}}, guest.CommandIO{})
	if err := m.host.Stop(context.Background(), "", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if e := <-end; e.err != nil || e.result.Code != 137 {
		t.Errorf("ended as %+v", e)
	}
	m.exit()
	m.end()
}

// testTerminal works with a terminal as a person does.
func testTerminal(t *testing.T, m *machine) {
	input, keyboard := io.Pipe()
	out, resize := newScreen(), make(chan guest.Size)
	end := m.begin(context.Background(), guest.CommandSpec{
		Argv: []string{"workload", "terminal"}, TTY: true, Size: guest.Size{Rows: 24, Cols: 80}, Env: []string{"EXTRA=more"},
	}, guest.CommandIO{Stdin: input, Stdout: out, Resize: resize})
	out.await(t, "/dev/pts/0 24 80 owner 1000 tty true xterm /home/web more\r\n")
	resize <- guest.Size{Rows: 50, Cols: 132}
	out.await(t, "/dev/pts/0 50 132 ")
	io.WriteString(keyboard, "\x03")
	out.await(t, "interrupted")
	io.WriteString(keyboard, "hello\n")
	keyboard.Close()
	if e := <-end; e.err != nil || e.result.Code != 0 || !strings.Contains(out.String(), `read "hello\n"`) {
		t.Errorf("ended as %+v\n%s", e, out)
	}
}

// testRoundTrip sends bytes of all kinds through a command and back.
func testRoundTrip(t *testing.T, m *machine) {
	want := make([]byte, 5<<20)
	rand.Read(want)
	var got bytes.Buffer
	r, err := m.host.Command(context.Background(), guest.CommandSpec{Argv: []string{"workload", "cat"}},
		guest.CommandIO{Stdin: bytes.NewReader(want), Stdout: &got})
	if err != nil || r.Code != 0 || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%+v, %v: %d bytes of %d came back, equal: %v", r, err, got.Len(), len(want), bytes.Equal(got.Bytes(), want))
	}
}

// testFlood: neither a command that nobody reads nor one that floods stands in the way of another, of health, or of
// lines; and both end when nobody waits for them.
func testFlood(t *testing.T, m *machine) {
	ctx, cancel := context.WithCancelCause(context.Background())
	reader, writer := io.Pipe()
	stuck := m.begin(ctx, guest.CommandSpec{Argv: []string{"workload", "yes"}}, guest.CommandIO{Stdout: writer})
	flooded := newCounter(4 << 20)
	flood := m.begin(ctx, guest.CommandSpec{Argv: []string{"workload", "yes"}}, guest.CommandIO{Stdout: flooded})
	<-flooded.enough
	r, err := m.host.Exec(context.Background(), []string{"workload", "exit", "7"}, 20*time.Second)
	if err != nil || r.Code != 7 {
		t.Errorf("health: %+v, %v", r, err)
	}
	if r, out := m.command(guest.CommandSpec{Argv: []string{"workload", "two"}}); r.Code != 42 || len(out) != 8 {
		t.Errorf("another command: %+v, %q", r, out)
	}
	gone := errors.New("hung up")
	cancel(gone)
	reader.CloseWithError(gone) // as whoever reads has to, once its context is done
	for _, end := range []<-chan commandEnd{stuck, flood} {
		if e := <-end; !errors.Is(e.err, gone) {
			t.Errorf("ended as %+v", e)
		}
	}
	m.none()
}

// counter closes enough when so many bytes have come.
type counter struct {
	left   int
	enough chan struct{}
}

func newCounter(n int) *counter { return &counter{n, make(chan struct{})} }

func (c *counter) Write(b []byte) (int, error) {
	if c.left > 0 && c.left <= len(b) {
		close(c.enough)
	}
	c.left -= len(b)
	return len(b), nil
}

// testCommandsAlone: what ran for a host that has gone ends when the next one comes.
func testCommandsAlone(t *testing.T, l *lab) {
	m := l.boot(t)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	hello, err := m.host.Hello(ctx)
	if err != nil {
		t.Fatal(err)
	}
	m.start(l.config("serve"))
	hups, stuck := newScreen(), newScreen()
	var ends []<-chan commandEnd
	ends = append(ends, m.begin(ctx, guest.CommandSpec{Argv: []string{"workload", "wait-hup"}}, guest.CommandIO{Stdout: hups}))
	ends = append(ends, m.begin(ctx, guest.CommandSpec{Argv: []string{"workload", "stubborn"}, TTY: true}, guest.CommandIO{Stdout: stuck}))
	_, held := io.Pipe()
	ends = append(ends, m.begin(ctx, guest.CommandSpec{Argv: []string{"workload", "yes"}}, guest.CommandIO{Stdout: writerUntil{m.host.Done(), held}}))
	hups.await(t, "ready")
	stuck.await(t, "ready")
	m.cut()
	<-m.session
	for _, end := range ends {
		if e := <-end; !errors.Is(e.err, guest.ErrClosed) {
			t.Errorf("ended as %+v", e)
		}
	}
	m.converse(guest.Options{Resume: true, Nonce: hello.Nonce, AfterLine: m.host.LastLine()})
	m.start(guest.Config{})
	m.none()
	if r, _ := m.command(guest.CommandSpec{Argv: []string{"workload", "stat", "/tmp/hup"}}); r.Code != 0 {
		t.Error("a command was not told that it is to end")
	}
	if err := m.host.Stop(ctx, "", 10*time.Second); err != nil {
		t.Fatal(err)
	}
	m.exit()
	m.end()
}

// writerUntil writes until done is closed.
type writerUntil struct {
	done <-chan struct{}
	to   *io.PipeWriter
}

func (w writerUntil) Write(b []byte) (int, error) {
	go func() {
		<-w.done
		w.to.CloseWithError(io.ErrClosedPipe)
	}()
	return w.to.Write(b)
}
