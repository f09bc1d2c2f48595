package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testNonce = "00112233445566778899aabbccddeeff"

// fakeGuest is the other end of a Host's two channels.
type fakeGuest struct {
	t       *testing.T
	control net.Conn
	logs    net.Conn
	reader  *Reader
	acks    *Reader
}

// session runs a Host against a fake guest in a bubble of its own, and checks how the session ended unless wantEnd is
// nil.
func session(t *testing.T, opts Options, wantEnd error, story func(t *testing.T, h *Host, g *fakeGuest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		control, guestControl := net.Pipe()
		logs, guestLogs := net.Pipe()
		g := &fakeGuest{
			t: t, control: guestControl, logs: guestLogs,
			reader: NewReader(guestControl, MaxHostFrame), acks: NewReader(guestLogs, MaxHostFrame),
		}
		h := NewHost(control, logs, opts)
		ended := make(chan error, 1)
		go func() { ended <- h.Run(t.Context()) }()
		story(t, h, g)
		guestControl.Close()
		guestLogs.Close()
		if err := <-ended; wantEnd != nil && !errors.Is(err, wantEnd) {
			t.Errorf("the session ended with %v, want %v", err, wantEnd)
		}
		if _, err := h.Exec(t.Context(), []string{"x"}, time.Second); !errors.Is(err, ErrClosed) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func (g *fakeGuest) send(m Message) {
	g.t.Helper()
	frame, err := Encode(nil, m)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write(g.control, frame)
}

func (g *fakeGuest) line(l Line) {
	g.t.Helper()
	frame, err := Encode(nil, l)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write(g.logs, frame)
}

func (g *fakeGuest) write(c net.Conn, b []byte) {
	g.t.Helper()
	if _, err := c.Write(b); err != nil {
		g.t.Errorf("the host closed the session: %v", err)
		runtime.Goexit()
	}
}

// drain reads and forgets what the host sends on the control channel.
func (g *fakeGuest) drain() { _, _ = io.Copy(io.Discard, g.control) }

// next reads what the host sent on a channel.
func (g *fakeGuest) next(r *Reader) Message {
	g.t.Helper()
	kind, body, err := r.Next()
	if err != nil {
		g.t.Fatal(err)
	}
	m, err := Decode(kind, body)
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

func (g *fakeGuest) hello() {
	g.t.Helper()
	g.send(Hello{Version: Version, Nonce: testNonce, Can: []string{CanAttend}})
}

// start goes through a session up to a running workload.
func (g *fakeGuest) start(t *testing.T, h *Host) {
	t.Helper()
	go func() {
		g.hello()
		if _, ok := g.next(g.reader).(Config); !ok {
			t.Error("no Config")
		}
		g.send(Started{PID: 5})
	}()
	if _, err := h.Configure(t.Context(), Config{Hostname: "h"}); err != nil {
		t.Fatal(err)
	}
}

func TestSession(t *testing.T) {
	var lines []string
	opts := Options{Logs: eachLine(func(l Line) { lines = append(lines, string(l.Data)) })}
	session(t, opts, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		go func() {
			g.hello()
			c, ok := g.next(g.reader).(Config)
			if !ok || c.Nonce != testNonce || c.Now != time.Now().UnixNano() || len(c.Entropy) != 32 || c.Hostname != "h" {
				t.Errorf("config %+v", c)
			}
			g.send(Heartbeat{MS: 1})
			g.write(g.control, appendFrame(nil, 0x3f, []byte("of a later version")))
			g.send(Started{PID: 5, Marks: []Mark{{"exec", 9}}})
		}()
		started, err := h.Configure(t.Context(), Config{Hostname: "h"})
		if err != nil || started.PID != 5 || started.Marks[0].Name != "exec" {
			t.Errorf("started %+v, %v", started, err)
		}
		if hello, err := h.Hello(t.Context()); err != nil || hello.Nonce != testNonce {
			t.Errorf("hello again: %+v, %v", hello, err)
		}

		g.line(Line{Seq: 1, Stream: StreamStdout, Data: []byte("one")})
		if a := g.next(g.acks); a != (Ack{Seq: 1}) {
			t.Errorf("%+v", a)
		}
		for _, seq := range []uint64{2, 3, 3, 1, 4} { // some twice
			g.line(Line{Seq: seq, Stream: StreamStderr, Data: []byte{byte('0' + seq)}})
		}
		if a := g.next(g.acks); a != (Ack{Seq: 4}) {
			t.Errorf("%+v: one acknowledgement is enough for lines that come together", a)
		}

		go func() {
			if s := g.next(g.reader); s != (Stop{Signal: "SIGUSR1", TimeoutMS: 3000}) {
				t.Errorf("stop %+v", s)
			}
			g.send(Exit{Code: 143, Signal: "SIGTERM", Stopped: true, LastLine: 5})
			g.send(Exit{Code: 143, Signal: "SIGTERM", Stopped: true, LastLine: 5})
		}()
		if err := h.Stop(t.Context(), "SIGUSR1", 3*time.Second); err != nil {
			t.Fatal(err)
		}
		if e := <-h.Exit(); e.Code != 143 || !e.Stopped {
			t.Errorf("exit %+v", e)
		}
		acked := make(chan error)
		go func() { acked <- h.AckExit(t.Context()) }()
		synctest.Wait()
		select {
		case <-acked:
			t.Error("acknowledged before the last line was here")
		default:
		}
		go func() {
			if a := g.next(g.reader); a != (AckExit{}) {
				t.Errorf("%+v", a)
			}
		}()
		g.line(Line{Seq: 5, Stream: StreamStdout, Data: []byte("last")})
		if a := g.next(g.acks); a != (Ack{Seq: 5}) {
			t.Errorf("%+v", a)
		}
		if err := <-acked; err != nil {
			t.Error(err)
		}
	})
	if got := strings.Join(lines, " "); got != "one 2 3 4 last" {
		t.Errorf("lines %q", got)
	}
}

func TestStartFails(t *testing.T) {
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		acked := make(chan Message, 1)
		go func() {
			g.hello()
			g.next(g.reader)
			for range 2 { // it is sent until it is acknowledged
				g.send(Failed{Stage: "exec", Error: "run /x: \x1b[2Jgone", Errno: "ENOENT", Code: 127})
			}
			acked <- g.next(g.reader)
		}()
		_, err := h.Configure(t.Context(), Config{})
		var start *StartError
		if !errors.As(err, &start) || start.Stage != "exec" || start.Errno != "ENOENT" || start.Code != 127 {
			t.Fatalf("got %v", err)
		}
		if got, want := err.Error(), "start workload: exec: run /x:  [2Jgone"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if err := h.AckExit(t.Context()); err != nil {
			t.Error(err)
		}
		if m := <-acked; m != (AckExit{}) {
			t.Errorf("%+v", m)
		}
	})
}

func TestExec(t *testing.T) {
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		go func() {
			x, ok := g.next(g.reader).(Exec)
			if !ok || x.TimeoutMS != 2000 || len(x.Argv) != 1 {
				t.Errorf("%+v", x)
			}
			g.send(ExecResult{ID: x.ID + 7, Code: 9}) // nobody's
			g.send(ExecResult{ID: x.ID, Code: 1, Output: []byte("no")})
			g.send(ExecResult{ID: x.ID, Code: 2}) // too much
		}()
		r, err := h.Exec(t.Context(), []string{"check"}, 2*time.Second)
		if err != nil || r.Code != 1 || string(r.Output) != "no" {
			t.Errorf("%+v, %v", r, err)
		}

		// A guest that does not answer.
		go g.drain()
		began := time.Now()
		if _, err := h.Exec(t.Context(), []string{"check"}, 2*time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no answer: %v", err)
		}
		if waited := time.Since(began); waited != 2*time.Second+execGrace {
			t.Errorf("waited %v", waited)
		}
		ctx, cancel := context.WithCancel(t.Context())
		for range maxExecPending {
			go h.Exec(ctx, []string{"check"}, time.Minute)
		}
		synctest.Wait()
		if _, err := h.Exec(t.Context(), []string{"check"}, time.Minute); err == nil || !strings.Contains(err.Error(), "running there already") {
			t.Errorf("one too many: %v", err)
		}
		cancel()
		synctest.Wait()
	})
}

func TestHeartbeatLost(t *testing.T) {
	session(t, Options{HeartbeatTimeout: 10 * time.Second}, ErrSilent, func(t *testing.T, h *Host, g *fakeGuest) {
		time.Sleep(time.Hour) // before its hello a guest need not beat
		g.start(t, h)
		for range 30 {
			time.Sleep(9 * time.Second)
			g.send(Heartbeat{})
		}
		began := time.Now()
		<-h.Done()
		if waited := time.Since(began); waited != 10*time.Second {
			t.Errorf("noticed after %v", waited)
		}
		select {
		case e := <-h.Exit():
			t.Errorf("a report out of nothing: %+v", e)
		default:
		}
	})
}

func TestStopWithoutAnswer(t *testing.T) {
	session(t, Options{HeartbeatTimeout: time.Hour}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		go g.drain()
		began := time.Now()
		if err := h.Stop(t.Context(), "", 10*time.Second); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if waited := time.Since(began); waited != 15*time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

// TestGuestThatDoesNotRead has a guest that lets the host's writes hang.
func TestGuestThatDoesNotRead(t *testing.T) {
	session(t, Options{HeartbeatTimeout: time.Hour}, io.ErrClosedPipe, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		began := time.Now()
		if err := h.Stop(t.Context(), "", time.Minute); err == nil {
			t.Error("no error")
		}
		if waited := time.Since(began); waited != writeTimeout {
			t.Errorf("waited %v", waited)
		}
		<-h.Done()
	})
}

// eachLine is for Options.Logs.
func eachLine(keep func(Line)) func([]Line) error {
	return func(lines []Line) error {
		for _, l := range lines {
			keep(l)
		}
		return nil
	}
}

func TestLogsError(t *testing.T) {
	full := errors.New("disk full")
	session(t, Options{Logs: func([]Line) error { return full }}, full, func(t *testing.T, h *Host, g *fakeGuest) {
		g.line(Line{Seq: 1, Stream: StreamStdout})
		<-h.Done()
	})
}

func TestAfterLine(t *testing.T) {
	var got []uint64
	opts := Options{AfterLine: 7, Logs: eachLine(func(l Line) { got = append(got, l.Seq) })}
	session(t, opts, io.EOF, func(t *testing.T, _ *Host, g *fakeGuest) {
		for seq := uint64(5); seq <= 8; seq++ {
			g.line(Line{Seq: seq, Stream: StreamStdout})
		}
		for a := g.next(g.acks); a != (Ack{Seq: 8}); a = g.next(g.acks) {
			if a != (Ack{Seq: 7}) {
				t.Errorf("%+v", a)
			}
		}
	})
	if len(got) != 1 || got[0] != 8 {
		t.Errorf("kept %v", got)
	}
}

// TestProtocolBroken holds what a hostile guest may try: each ends its session.
func TestProtocolBroken(t *testing.T) {
	frame := func(kind Type, body string) []byte { return appendFrame(nil, kind, []byte(body)) }
	encode := func(m Message) []byte {
		b, err := Encode(nil, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hello := encode(Hello{Version: Version, Nonce: testNonce})
	for _, tc := range []struct {
		name    string
		control []byte
		logs    []byte
	}{
		{name: "a long frame", control: []byte{0, 1, 0, 1}},
		{name: "a frame of nothing", logs: []byte{0, 0, 0, 0}},
		{name: "no JSON", control: frame(TypeHello, "{")},
		{name: "deep JSON", control: frame(TypeHello, strings.Repeat("[", 60<<10))},
		{name: "another version", control: encode(Hello{Version: Version + 1, Nonce: testNonce})},
		{name: "no hello", control: encode(Started{PID: 1})},
		{name: "two hellos", control: append(bytes.Clone(hello), hello...)},
		{name: "exit before start", control: append(bytes.Clone(hello), encode(Exit{})...)},
		{name: "started twice", control: append(append(bytes.Clone(hello), encode(Started{PID: 1})...), encode(Started{PID: 1})...)},
		{name: "started and failed", control: append(append(bytes.Clone(hello), encode(Started{PID: 1})...), encode(Failed{})...)},
		{name: "failed and started", control: append(append(bytes.Clone(hello), encode(Failed{})...), encode(Started{PID: 1})...)},
		{name: "failed and exit", control: append(append(bytes.Clone(hello), encode(Failed{})...), encode(Exit{})...)},
		{name: "the host's word", control: append(bytes.Clone(hello), encode(AckExit{})...)},
		{name: "a line on the control channel", control: append(bytes.Clone(hello), encode(Line{Seq: 1, Stream: StreamStdout})...)},
		{name: "control on the log channel", logs: hello},
		{name: "a gap", logs: append(encode(Line{Seq: 1, Stream: StreamStdout}), encode(Line{Seq: 3, Stream: StreamStdout})...)},
		{name: "a start in the middle", logs: encode(Line{Seq: 2, Stream: StreamStdout})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			session(t, Options{}, ErrProtocol, func(_ *testing.T, h *Host, g *fakeGuest) {
				go func() { _, _ = io.Copy(io.Discard, g.logs) }() // the acknowledgements
				// The host may close before it has taken all.
				_, _ = g.control.Write(tc.control)
				_, _ = g.logs.Write(tc.logs)
				<-h.Done()
			})
		})
	}
}

// TestFloods has a guest that sends as fast as it can: it is read at the agreed rate only.
func TestFloods(t *testing.T) {
	const minute = 60
	t.Run("control", func(t *testing.T) {
		session(t, Options{ControlFramesPerSecond: 100}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
			g.start(t, h)
			frame := appendFrame(nil, 0x3f, nil)
			stop := time.Now().Add(minute * time.Second)
			n := 0
			for ; time.Now().Before(stop); n++ {
				g.write(g.control, frame)
			}
			if n < 100*minute || n > 100*minute+300 {
				t.Errorf("%d frames were read", n)
			}
		})
	})
	t.Run("logs", func(t *testing.T) {
		bytesRead := 0
		opts := Options{LogBytesPerSecond: 1 << 20, Logs: eachLine(func(l Line) { bytesRead += len(l.Data) }), HeartbeatTimeout: time.Hour}
		session(t, opts, nil, func(_ *testing.T, _ *Host, g *fakeGuest) {
			go func() { _, _ = io.Copy(io.Discard, g.logs) }()
			data := bytes.Repeat([]byte("x"), MaxLine)
			stop := time.Now().Add(minute * time.Second)
			for seq := uint64(1); time.Now().Before(stop); seq++ {
				g.line(Line{Seq: seq, Stream: StreamStdout, Data: data})
			}
		})
		if want := minute << 20; bytesRead > want+3<<20 || bytesRead < want/2 {
			t.Errorf("%d bytes were read", bytesRead)
		}
	})
}

// TestResume goes on with a guest whose earlier session has ended within a frame.
func TestResume(t *testing.T) {
	var got []uint64
	opts := Options{Resume: true, Nonce: testNonce, AfterLine: 7, Logs: eachLine(func(l Line) { got = append(got, l.Seq) })}
	session(t, opts, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		attach, resume := g.first(g.control).(Attach), g.first(g.logs).(Resume)
		if attach.Version != Version || attach.Token == "" || resume != (Resume{Token: attach.Token, After: 7}) {
			t.Errorf("got %+v and %+v", attach, resume)
		}
		answer := func(token string, configured bool, more ...Message) []byte {
			b := AppendRestart(nil)
			for _, m := range append([]Message{Hello{Version: Version, Nonce: testNonce, Token: token, Configured: configured}}, more...) {
				b, _ = Encode(b, m)
			}
			return b
		}
		// What was meant for others: the rest of a frame, whole frames, the answer to an earlier host.
		g.write(g.control, []byte(`"ms":5}`))
		g.send(Started{PID: 9})
		g.write(g.control, answer("of another", false, Exit{Code: 3}))
		g.write(g.control, []byte{0, 0})
		g.write(g.control, answer(attach.Token, true, Started{PID: 5}))
		started, err := h.Configure(t.Context(), Config{})
		if err != nil || started.PID != 5 {
			t.Errorf("started %+v, %v", started, err)
		}
		for _, m := range []Message{Line{Seq: 3, Stream: StreamStdout}, Line{Seq: 8, Stream: StreamStdout}} {
			b, _ := Encode(nil, m)
			g.write(g.logs, b[2:])
		}
		lines, _ := Encode(AppendRestart(nil), Resumed{Token: attach.Token, Next: 6})
		for seq := uint64(6); seq <= 9; seq++ {
			lines, _ = Encode(lines, Line{Seq: seq, Stream: StreamStdout})
		}
		g.write(g.logs, lines)
		for a := g.next(g.acks); a != (Ack{Seq: 9}); {
			a = g.next(g.acks)
		}
		g.send(Exit{Code: 4, LastLine: 9})
		if e := <-h.Exit(); e.Code != 4 {
			t.Errorf("exit %+v", e)
		}
	})
	if !slices.Equal(got, []uint64{8, 9}) {
		t.Errorf("kept %v", got)
	}
}

// first reads the restart mark and the frame with which a session begins that goes on with another.
func (g *fakeGuest) first(c net.Conn) Message {
	g.t.Helper()
	mark := make([]byte, len(AppendRestart(nil)))
	if _, err := io.ReadFull(c, mark); err != nil || string(mark) != string(AppendRestart(nil)) {
		g.t.Fatalf("got %x, %v", mark, err)
	}
	if c == g.control {
		return g.next(g.reader)
	}
	return g.next(g.acks)
}

// TestResumeRefuses has guests with which a session cannot go on.
func TestResumeRefuses(t *testing.T) {
	other := strings.Repeat("f", 32)
	for name, tc := range map[string]struct{ hello, logs func(token string) Message }{
		"another boot": {hello: func(token string) Message { return Hello{Version: Version, Nonce: other, Token: token} }},
		"lost lines":   {logs: func(token string) Message { return Resumed{Token: token, Next: 9} }},
	} {
		t.Run(name, func(t *testing.T) {
			session(t, Options{Resume: true, Nonce: testNonce, AfterLine: 7}, ErrProtocol, func(_ *testing.T, h *Host, g *fakeGuest) {
				attach := g.first(g.control).(Attach)
				g.first(g.logs)
				send := func(c net.Conn, m Message) {
					b, _ := Encode(AppendRestart(nil), m)
					_, _ = c.Write(b)
				}
				if tc.hello != nil {
					send(g.control, tc.hello(attach.Token))
				} else {
					send(g.logs, tc.logs(attach.Token))
				}
				<-h.Done()
			})
		})
	}
}
