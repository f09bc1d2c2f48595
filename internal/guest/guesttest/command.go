package guesttest

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// A Command is one beside the process of a Workload, which somebody talks to.
type Command struct {
	// Asked is what the host has asked for.
	Asked guest.RunCommand
	// Stdin is what the host sends, at the pace at which it is read. Stdout and Stderr send, at the pace at which the
	// host reads.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Sizes and Signals are what comes of either; what nobody takes is dropped.
	Sizes   <-chan guest.Size
	Signals <-chan string
}

// errEnded is why the context of a command ends.
var errEnded = errors.New("nobody waits for the command any more")

// command is the guest's side of a Command.
type command struct {
	session *session
	id      uint64
	output  *guest.Credit
	sizes   chan guest.Size
	signals chan string
	done    <-chan struct{}
	end     context.CancelCauseFunc
	input   *io.PipeWriter
	feed    chan guest.CommandInput
}

// handleCommand acts on a frame about a command.
func (s *session) handleCommand(ctx context.Context, m guest.Message) {
	s.commandMu.Lock()
	defer s.commandMu.Unlock()
	switch m := m.(type) {
	case guest.RunCommand:
		s.beginCommand(ctx, m)
	case guest.CommandInput:
		if c := s.commands[m.ID]; c != nil {
			select {
			case c.feed <- m:
			default:
				c.end(errors.New("more input than there was credit for"))
			}
		}
	case guest.CommandResize:
		if c := s.commands[m.ID]; c != nil {
			offer(c.sizes, guest.Size{Rows: m.Rows, Cols: m.Cols})
		}
	case guest.CommandSignal:
		if c := s.commands[m.ID]; c != nil {
			offer(c.signals, m.Signal)
		}
	case guest.CommandCredit:
		if c := s.commands[m.ID]; c != nil {
			c.output.Give(m.Bytes)
		}
	case guest.EndCommand:
		if c := s.commands[m.ID]; c != nil {
			c.end(errEnded)
		}
	}
}

// endCommands ends all commands: they belong to a session that is over.
func (s *session) endCommands() {
	s.commandMu.Lock()
	defer s.commandMu.Unlock()
	for _, c := range s.commands {
		c.end(errEnded)
	}
}

// beginCommand is called with commandMu held.
func (s *session) beginCommand(ctx context.Context, asked guest.RunCommand) {
	ctx, end := context.WithCancelCause(ctx)
	stdin, input := io.Pipe()
	c := &command{
		session: s, id: asked.ID, output: guest.NewCredit(asked.Window), sizes: make(chan guest.Size, 16), signals: make(chan string, 16),
		done: ctx.Done(), end: end, input: input, feed: make(chan guest.CommandInput, guest.InputWindow/guest.FrameCost+1),
	}
	s.commands[c.id] = c
	var parts sync.WaitGroup
	parts.Go(func() { c.passInput(ctx) })
	s.parts.Go(func() {
		c.say(guest.CommandStarted{ID: c.id, PID: 90})
		code := s.w.Command(ctx, &Command{
			Asked: asked, Stdin: stdin, Stdout: commandOutput{c, guest.StreamStdout}, Stderr: commandOutput{c, guest.StreamStderr},
			Sizes: c.sizes, Signals: c.signals,
		})
		ended := guest.CommandEnded{ID: c.id, Code: code}
		if errors.Is(context.Cause(ctx), errEnded) {
			ended.Code, ended.Signal = 129, "SIGHUP"
		}
		end(nil)
		_ = stdin.Close() // of a pipe: it never fails
		parts.Wait()
		s.commandMu.Lock()
		delete(s.commands, c.id)
		s.commandMu.Unlock()
		c.say(ended)
	})
}

// passInput hands on what the host sends.
func (c *command) passInput(ctx context.Context) {
	defer func() { _ = c.input.Close() }() // of a pipe: it never fails
	for {
		select {
		case in := <-c.feed:
			if len(in.Data) > 0 {
				_, _ = c.input.Write(in.Data) // who does not read it does not want it
				c.say(guest.InputCredit{ID: c.id, Bytes: len(in.Data) + guest.FrameCost})
			}
			if in.EOF {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// say sends a frame. An error means that the machine is off.
func (c *command) say(m guest.Message) {
	c.session.logMu.Lock()
	defer c.session.logMu.Unlock()
	_ = send(c.session.on.Logs, m)
}

type commandOutput struct {
	*command
	stream string
}

// Write implements io.Writer.
func (o commandOutput) Write(b []byte) (int, error) {
	for n := 0; n < len(b); {
		data := b[n:min(len(b), n+guest.MaxCommandData)]
		if !o.output.Take(o.done, len(data)+guest.FrameCost) {
			return n, errEnded
		}
		o.say(guest.CommandOutput{ID: o.id, Stream: o.stream, Data: data})
		n += len(data)
	}
	return len(b), nil
}
