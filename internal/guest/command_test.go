package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// startAble is start for a guest that runs commands.
func (g *fakeGuest) startAble(t *testing.T, h *Host) {
	t.Helper()
	go func() {
		g.send(Hello{Version: Version, Nonce: testNonce, Can: []string{"other things", CanCommands}})
		g.next(g.reader)
		g.send(Started{PID: 5})
	}()
	if _, err := h.Configure(t.Context(), Config{}); err != nil {
		t.Fatal(err)
	}
}

// say sends a frame on the log channel.
func (g *fakeGuest) say(m Message) {
	g.t.Helper()
	frame, err := Encode(nil, m)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write(g.logs, frame)
}

type commandEnd struct {
	result CommandResult
	err    error
}

// begin runs a command and returns what the guest hears of it, and where its end comes out.
func (g *fakeGuest) begin(ctx context.Context, h *Host, spec CommandSpec, with CommandIO) (RunCommand, <-chan commandEnd) {
	g.t.Helper()
	end := make(chan commandEnd, 1)
	go func() {
		r, err := h.Command(ctx, spec, with)
		end <- commandEnd{r, err}
	}()
	run, ok := g.next(g.acks).(RunCommand)
	if !ok {
		g.t.Fatal("no RunCommand")
	}
	return run, end
}

// TestCommand follows one command through everything that can happen to it, beside the lines of the workload.
func TestCommand(t *testing.T) {
	var lines []string
	opts := Options{Logs: eachLine(func(l Line) { lines = append(lines, string(l.Data)) })}
	session(t, opts, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.startAble(t, h)
		input, keyboard := io.Pipe()
		var stdout, stderr bytes.Buffer
		resize, signals, pids := make(chan Size), make(chan string), make(chan int, 1)
		spec := CommandSpec{Argv: []string{"sh"}, Env: []string{"A=b"}, WorkDir: "/srv", User: "web", TTY: true, Size: Size{24, 80}, Timeout: time.Minute}
		run, end := g.begin(t.Context(), h, spec, CommandIO{
			Stdin: input, Stdout: &stdout, Stderr: &stderr, Resize: resize, Signals: signals, Started: func(pid int) { pids <- pid },
		})
		if run.Window != OutputWindow || !run.Stdin || !run.TTY || run.Rows != 24 || run.Cols != 80 || run.TimeoutMS != 60000 || run.User != "web" {
			t.Errorf("asked for %+v", run)
		}
		g.say(CommandStarted{ID: run.ID, PID: 12})
		if pid := <-pids; pid != 12 {
			t.Errorf("pid %d", pid)
		}
		go keyboard.Write([]byte("ls\n"))
		if in := g.next(g.acks).(CommandInput); in.ID != run.ID || string(in.Data) != "ls\n" || in.EOF {
			t.Errorf("input %+v", in)
		}
		go func() { resize <- Size{40, 132} }()
		if r := g.next(g.acks); r != (CommandResize{ID: run.ID, Rows: 40, Cols: 132}) {
			t.Errorf("got %+v", r)
		}
		go func() { signals <- "INT" }()
		if s := g.next(g.acks); s != (CommandSignal{ID: run.ID, Signal: "INT"}) {
			t.Errorf("got %+v", s)
		}
		keyboard.Close()
		if in := g.next(g.acks).(CommandInput); !in.EOF {
			t.Errorf("got %+v", in)
		}
		g.say(CommandOutput{ID: run.ID + 1, Stream: StreamStdout, Data: []byte("of another session")})
		g.say(CommandOutput{ID: run.ID, Stream: StreamStdout, Data: []byte("out ")})
		g.line(Line{Seq: 1, Stream: StreamStdout, Data: []byte("of the workload")})
		if a := g.next(g.acks); a != (Ack{Seq: 1}) {
			t.Errorf("got %+v", a)
		}
		g.say(CommandOutput{ID: run.ID, Stream: StreamStderr, Data: []byte("err")})
		g.say(CommandOutput{ID: run.ID, Stream: StreamStdout, Data: []byte("put")})
		g.say(CommandEnded{ID: run.ID, Code: 130, Signal: "SIGINT"})
		if e := <-end; e.err != nil || e.result != (CommandResult{Code: 130, Signal: "SIGINT"}) {
			t.Errorf("ended as %+v", e)
		}
		if stdout.String() != "out put" || stderr.String() != "err" {
			t.Errorf("got %q and %q", stdout.String(), stderr.String())
		}
	})
	if len(lines) != 1 {
		t.Errorf("lines %v", lines)
	}
}

// TestCommandNobodyReads: a command whose reader stands still is stopped by its credit, while lines go on.
func TestCommandNobodyReads(t *testing.T) {
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.startAble(t, h)
		reader, writer := io.Pipe()
		run, end := g.begin(t.Context(), h, CommandSpec{Argv: []string{"yes"}}, CommandIO{Stdout: writer})
		if run.Stdin {
			t.Error("there is nothing to read")
		}
		data := bytes.Repeat([]byte("y"), MaxCommandData)
		credit, sent := run.Window, 0
		flood := func() {
			for ; credit >= len(data)+FrameCost; credit -= len(data) + FrameCost {
				g.say(CommandOutput{ID: run.ID, Stream: StreamStdout, Data: data})
				sent++
			}
		}
		flood()
		for seq := uint64(1); seq <= 3; seq++ {
			g.line(Line{Seq: seq, Stream: StreamStdout})
			if a := g.next(g.acks); a != (Ack{Seq: seq}) {
				t.Errorf("got %+v", a)
			}
		}
		got := make(chan int)
		go func() { n, _ := io.Copy(io.Discard, reader); got <- int(n) }()
		for sent < 100 {
			credit += g.next(g.acks).(CommandCredit).Bytes
			if credit > OutputWindow {
				t.Fatalf("credit for %d bytes", credit)
			}
			flood()
		}
		go func() { // the rest of the credit
			for {
				if _, _, err := g.acks.Next(); err != nil {
					return
				}
			}
		}()
		g.say(CommandEnded{ID: run.ID})
		if e := <-end; e.err != nil {
			t.Error(e.err)
		}
		writer.Close()
		if n := <-got; n != sent*len(data) {
			t.Errorf("%d bytes of %d", n, sent*len(data))
		}
	})
}

// TestCommandInputWaits: no more input is sent than the guest has room for, and all else overtakes it.
func TestCommandInputWaits(t *testing.T) {
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.startAble(t, h)
		signals := make(chan string)
		whole := strings.Repeat("x", 3*InputWindow)
		run, end := g.begin(t.Context(), h, CommandSpec{Argv: []string{"slow"}}, CommandIO{Stdin: strings.NewReader(whole), Signals: signals})
		got, credit := 0, InputWindow
		take := func() {
			for credit >= MaxCommandData+FrameCost {
				in := g.next(g.acks).(CommandInput)
				got += len(in.Data)
				credit -= len(in.Data) + FrameCost
			}
		}
		take()
		synctest.Wait()
		go func() { signals <- "TERM" }()
		if s, ok := g.next(g.acks).(CommandSignal); !ok || s.Signal != "TERM" {
			t.Errorf("got %+v", s)
		}
		for got < len(whole) {
			g.say(InputCredit{ID: run.ID, Bytes: MaxCommandData + FrameCost})
			in := g.next(g.acks).(CommandInput)
			got += len(in.Data)
		}
		if in := g.next(g.acks).(CommandInput); !in.EOF {
			t.Errorf("got %+v", in)
		}
		g.say(CommandEnded{ID: run.ID, Code: 3})
		if e := <-end; e.err != nil || e.result.Code != 3 {
			t.Errorf("ended as %+v", e)
		}
	})
}

// TestCommandIsEnded: when nobody waits for a command any more, the guest hears of it; and while somebody does, that.
func TestCommandIsEnded(t *testing.T) {
	gone := errors.New("hung up")
	for name, ends := range map[string]func(cancel context.CancelCauseFunc, io *CommandIO){
		"by its context": func(cancel context.CancelCauseFunc, _ *CommandIO) { cancel(gone) },
		"by its output":  nil,
		"by its input":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			session(t, Options{HeartbeatTimeout: time.Hour}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
				g.startAble(t, h)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				input, keyboard := io.Pipe()
				reader, writer := io.Pipe()
				run, end := g.begin(ctx, h, CommandSpec{Argv: []string{"x"}}, CommandIO{Stdin: input, Stdout: writer})
				if c := g.next(g.acks); c != (CommandCredit{ID: run.ID}) { // HostInterval later
					t.Errorf("got %+v", c)
				}
				switch name {
				case "by its output":
					reader.CloseWithError(gone)
					g.say(CommandOutput{ID: run.ID, Stream: StreamStdout, Data: []byte("x")})
				case "by its input":
					keyboard.CloseWithError(gone)
				default:
					ends(cancel, nil)
				}
				if e := g.next(g.acks); e != (EndCommand{ID: run.ID}) {
					t.Errorf("got %+v", e)
				}
				g.say(CommandEnded{ID: run.ID, Code: 129})
				if e := <-end; !errors.Is(e.err, gone) {
					t.Errorf("ended as %+v", e)
				}
				input.Close()
			})
		})
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestCommandIsEndedInAFlood: one that always has more to say ends with its context, too.
func TestCommandIsEndedInAFlood(t *testing.T) {
	session(t, Options{HeartbeatTimeout: time.Hour}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.startAble(t, h)
		gone := errors.New("hung up")
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var id uint64
		writes := 0
		more := func() { g.say(CommandOutput{ID: id, Stream: StreamStdout, Data: []byte("y\n")}) }
		run, end := g.begin(ctx, h, CommandSpec{Argv: []string{"yes"}}, CommandIO{Stdout: writerFunc(func(b []byte) (int, error) {
			if writes++; writes == 3 {
				cancel(gone)
			}
			if writes > 100 {
				return 0, errors.New("it goes on")
			}
			more()
			synctest.Wait() // until it is there
			return len(b), nil
		})})
		id = run.ID
		go func() {
			for {
				m := g.next(g.acks)
				if m == (EndCommand{ID: id}) {
					g.say(CommandEnded{ID: id, Code: 129})
					return
				}
			}
		}()
		more()
		if e := <-end; !errors.Is(e.err, gone) || writes != 3 {
			t.Errorf("ended as %+v after %d writes", e, writes)
		}
	})
}

// TestCommandRefused has what is refused before the guest hears of it.
func TestCommandRefused(t *testing.T) {
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		if _, err := h.Command(t.Context(), CommandSpec{Argv: []string{"x"}}, CommandIO{}); !errors.Is(err, ErrNoCommands) {
			t.Errorf("an old init: %v", err)
		}
		if _, err := h.Command(t.Context(), CommandSpec{}, CommandIO{}); err == nil {
			t.Error("an empty command was run")
		}
		long := CommandSpec{Argv: []string{"x", strings.Repeat("x", MaxCommandLine)}}
		if _, err := h.Command(t.Context(), long, CommandIO{}); err == nil || !strings.Contains(err.Error(), "at most 131072") {
			t.Errorf("a long command: %v", err)
		}
	})
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.startAble(t, h)
		var ends []<-chan commandEnd
		for range MaxCommands {
			_, end := g.begin(t.Context(), h, CommandSpec{Argv: []string{"x"}}, CommandIO{})
			ends = append(ends, end)
		}
		if _, err := h.Command(t.Context(), CommandSpec{Argv: []string{"x"}}, CommandIO{}); err == nil || !strings.Contains(err.Error(), "8 are running there already") {
			t.Errorf("one too many: %v", err)
		}
		g.logs.Close()
		for _, end := range ends {
			if e := <-end; !errors.Is(e.err, ErrClosed) {
				t.Errorf("after the session: %+v", e)
			}
		}
	})
	session(t, Options{}, io.EOF, func(t *testing.T, h *Host, g *fakeGuest) {
		g.startAble(t, h)
		g.send(Exit{})
		<-h.exited
		if _, err := h.Command(t.Context(), CommandSpec{Argv: []string{"x"}}, CommandIO{}); !errors.Is(err, ErrNotRunning) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestCommandProtocolBroken holds what a hostile guest may try with a command: each ends the session.
func TestCommandProtocolBroken(t *testing.T) {
	data := bytes.Repeat([]byte("x"), MaxCommandData)
	for name, frames := range map[string]func(id uint64) []Message{
		"more than its credit": func(id uint64) (all []Message) {
			for range OutputWindow/MaxCommandData + 1 {
				all = append(all, CommandOutput{ID: id, Stream: StreamStdout, Data: data})
			}
			return all
		},
		"more small frames than its credit": func(id uint64) (all []Message) {
			for range OutputWindow/FrameCost + 1 {
				all = append(all, CommandOutput{ID: id, Stream: StreamStdout, Data: data[:1]})
			}
			return all
		},
		"two starts": func(id uint64) []Message {
			return []Message{CommandStarted{id, 1}, CommandStarted{id, 1}}
		},
		"two ends": func(id uint64) []Message { return []Message{CommandEnded{ID: id}, CommandEnded{ID: id}} },
		"output after an end": func(id uint64) []Message {
			return []Message{CommandEnded{ID: id}, CommandOutput{id, StreamStdout, data}}
		},
		"the host's word": func(id uint64) []Message { return []Message{EndCommand{id}} },
	} {
		t.Run(name, func(t *testing.T) {
			session(t, Options{}, ErrProtocol, func(t *testing.T, h *Host, g *fakeGuest) {
				g.startAble(t, h)
				// The reader stands still, so that the command is not over.
				reader, writer := io.Pipe()
				run, end := g.begin(t.Context(), h, CommandSpec{Argv: []string{"x"}}, CommandIO{Stdout: writer, Started: func(int) { reader.Read(nil) }})
				go func() { _, _ = io.Copy(io.Discard, g.logs) }()
				if name == "output after an end" || name == "two ends" {
					g.say(CommandOutput{ID: run.ID, Stream: StreamStdout, Data: data})
				}
				for _, m := range frames(run.ID) {
					frame, _ := Encode(nil, m)
					if _, err := g.logs.Write(frame); err != nil {
						break // the host has had enough
					}
				}
				<-h.Done()
				reader.Close()
				if e := <-end; e.err == nil {
					t.Errorf("ended as %+v", e)
				}
			})
		})
	}
}

// FuzzCommand has a guest that says anything while a command runs: the session may end, and nothing else may happen.
func FuzzCommand(f *testing.F) {
	const id = 1
	seed := func(all ...Message) {
		var b []byte
		for _, m := range all {
			b, _ = Encode(b, m)
		}
		f.Add(b)
	}
	seed(CommandStarted{id, 3}, CommandOutput{id, StreamStdout, []byte("x")}, InputCredit{id, 100}, CommandEnded{ID: id})
	seed(CommandEnded{ID: id}, CommandEnded{ID: id})
	seed(Line{Seq: 1, Stream: StreamStdout}, CommandOutput{id, StreamStderr, []byte{0, 255}})
	f.Fuzz(func(t *testing.T, stream []byte) {
		control, guestControl := net.Pipe()
		logs, guestLogs := net.Pipe()
		h := NewHost(control, logs, Options{})
		c := &hostCommand{id: id, input: NewCredit(0), output: NewCredit(OutputWindow), more: make(chan struct{}, 1), over: make(chan struct{})}
		h.hello, h.commands[id] = &Hello{}, c
		ended := make(chan error, 1)
		go func() { ended <- h.Run(t.Context()) }()
		go func() { _, _ = io.Copy(io.Discard, guestLogs) }()
		_, _ = guestLogs.Write(stream)
		guestLogs.Close()
		guestControl.Close()
		<-ended
		held := 0
		_, outputs, _ := c.take()
		for _, o := range outputs {
			held += len(o.Data) + FrameCost
		}
		if held > OutputWindow {
			t.Errorf("the guest made the host hold %d bytes", held)
		}
	})
}
