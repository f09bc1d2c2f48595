package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

const (
	// HostInterval is how often a guest with commands hears of their host. After HostTimeout without, it takes it that
	// nobody is there who waits for them, and ends them.
	HostInterval = 15 * time.Second
	HostTimeout  = 60 * time.Second

	endGrace = 10 * time.Second // for the answer to EndCommand
)

// ErrNoCommands means that the guest's init is older than commands that somebody talks to.
var ErrNoCommands = errors.New("the microVM was started by an earlier version, whose init cannot run commands that somebody talks to; the next attempt of the instance can")

// ErrNotRunning means that the workload beside which a command was to run has ended, or never was.
var ErrNotRunning = errors.New("run a command in the guest: its workload does not run")

// ErrBusy means that as many commands run in the guest as may.
var ErrBusy = errors.New("run a command in the guest")

// CommandSpec is what to run.
type CommandSpec struct {
	Argv    []string
	Env     []string // NAME=value, over the workload's environment
	WorkDir string   // "": the workload's
	User    string   // user[:group], names or numbers of the image; "": the workload's
	TTY     bool     // with a terminal, which is its stdin, stdout and stderr
	Size    Size     // of the terminal
	Timeout time.Duration
}

// Size is that of a terminal in characters.
type Size struct{ Rows, Cols uint16 }

// CommandIO is who talks to a command.
type CommandIO struct {
	// Stdin is read to its end. nil: the command has nothing to read. A Read that is under way when the command ends
	// is not waited for.
	Stdin io.Reader
	// Stdout and Stderr get what it writes; nil throws it away. A terminal's output comes through Stdout. While a Write
	// waits, the command does, and nothing else. Write has to return when the context of Command is done.
	Stdout, Stderr io.Writer
	// Resize and Signals may be nil. Signals are names such as "INT", for the command's process group.
	Resize  <-chan Size
	Signals <-chan string
	// Started, which may be nil, is called when the process runs, before any Write.
	Started func(pid int)
}

// CommandResult is how a command ended.
type CommandResult struct {
	Code     int    // exit status, 128+n after signal n, 125 to 127 when it couldn't be started
	Signal   string // such as "SIGKILL", when a signal ended it
	TimedOut bool   // it was ended because CommandSpec.Timeout was over
	Error    string // why it could not be started; it is fit to be shown
}

// hostCommand is a command under way.
type hostCommand struct {
	id     uint64
	input  *Credit       // how much the guest takes
	output *Credit       // how much the guest may send
	more   chan struct{} // what follows has changed
	over   chan struct{} // closed when Command returns

	mu    sync.Mutex      // guards what follows
	pid   int             // 0 before it has started
	queue []CommandOutput // bounded by output
	ended *CommandEnded
}

// Command runs a command in the guest, with somebody to talk to it, until it has ended. When ctx is done it is ended in
// the guest, with everything that it has started, and the error is ctx's cause. A command that can't be started is a
// result with code 125, 126 or 127. When the session ends the guest ends the command, and the error wraps ErrClosed.
func (h *Host) Command(ctx context.Context, spec CommandSpec, with CommandIO) (CommandResult, error) {
	c, err := h.beginCommand(ctx, spec, with)
	if err != nil {
		return CommandResult{}, err
	}
	defer h.forgetCommand(c)
	run, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	written := make(chan struct{})
	go func() {
		defer close(written)
		if err := h.passOutput(run, c, with); err != nil {
			stop(err)
		}
	}()
	if with.Stdin != nil {
		go func() {
			if err := h.passInput(c, with.Stdin); err != nil {
				stop(err)
			}
		}()
	}
	alive := time.NewTicker(HostInterval)
	defer alive.Stop()
	for {
		var err error
		select {
		case <-written:
			// It has ended, and everything that it wrote was passed on, unless stop was called.
			if run.Err() == nil {
				return c.result(), nil
			}
			return CommandResult{}, h.endCommand(c, context.Cause(run))
		case <-run.Done():
			<-written
			return CommandResult{}, h.endCommand(c, context.Cause(run))
		case <-h.done:
			stop(h.closedErr())
		case size := <-with.Resize:
			err = h.sendLogs(CommandResize{ID: c.id, Rows: size.Rows, Cols: size.Cols})
		case name := <-with.Signals:
			err = h.sendLogs(CommandSignal{ID: c.id, Signal: name})
		case <-alive.C:
			err = h.sendLogs(CommandCredit{ID: c.id})
		}
		if err != nil {
			stop(err)
		}
	}
}

func (s *CommandSpec) check() error {
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return errors.New("run a command in the guest: it is empty")
	}
	size := 0
	for _, words := range [][]string{s.Argv, s.Env} {
		for _, w := range words {
			size += len(w) + 1
		}
	}
	if size > MaxCommandLine {
		return fmt.Errorf("run a command in the guest: its arguments and variables take %d bytes, at most %d are allowed", size, MaxCommandLine)
	}
	return nil
}

// beginCommand asks the guest for the command.
func (h *Host) beginCommand(ctx context.Context, spec CommandSpec, with CommandIO) (*hostCommand, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	for _, event := range []<-chan struct{}{h.helloc, h.logsReady, h.startc} {
		if err := h.wait(ctx, event); err != nil {
			return nil, fmt.Errorf("run a command in the guest: %w", err)
		}
	}
	c := &hostCommand{
		input: NewCredit(InputWindow), output: NewCredit(OutputWindow),
		more: make(chan struct{}, 1), over: make(chan struct{}),
	}
	h.mu.Lock()
	able, busy, runs := slices.Contains(h.hello.Can, CanCommands), len(h.commands) >= MaxCommands, h.started != nil && h.exit == nil
	if able && !busy && runs {
		h.nextExec++
		c.id = h.nextExec
		h.commands[c.id] = c
	}
	h.mu.Unlock()
	switch {
	case !runs:
		return nil, ErrNotRunning
	case !able:
		return nil, ErrNoCommands
	case busy:
		return nil, fmt.Errorf("%w: %d are running there already; end one of them", ErrBusy, MaxCommands)
	}
	err := h.sendLogs(RunCommand{
		ID: c.id, Argv: spec.Argv, Env: spec.Env, WorkDir: spec.WorkDir, User: spec.User, TTY: spec.TTY, Rows: spec.Size.Rows, Cols: spec.Size.Cols,
		Stdin: with.Stdin != nil, Window: OutputWindow, TimeoutMS: spec.Timeout.Milliseconds(),
	})
	if err != nil {
		h.forgetCommand(c)
		return nil, err
	}
	return c, nil
}

func (h *Host) forgetCommand(c *hostCommand) {
	h.mu.Lock()
	delete(h.commands, c.id)
	h.mu.Unlock()
	close(c.over)
}

// endCommand ends what the guest still runs, and returns why.
func (h *Host) endCommand(c *hostCommand, why error) error {
	if isClosed(h.done) {
		return h.closedErr() // which may be why somebody has stopped reading
	}
	if c.hasEnded() || h.sendLogs(EndCommand{ID: c.id}) != nil {
		return why
	}
	late := time.NewTimer(endGrace)
	defer late.Stop()
	for !c.hasEnded() {
		select {
		case <-c.more:
		case <-h.done:
			return why
		case <-late.C:
			return why // the guest ends it when it hears no more of it
		}
		_, _, _ = c.take() // nobody wants it
	}
	return why
}

// passOutput hands on what the command writes until it has ended.
func (h *Host) passOutput(ctx context.Context, c *hostCommand, with CommandIO) error {
	owed, started := 0, false
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx) // there may always be more to pass on
		}
		pid, outputs, ended := c.take()
		if pid != 0 && !started && with.Started != nil {
			with.Started(pid)
		}
		started = pid != 0
		for _, o := range outputs {
			to := with.Stdout
			if o.Stream == StreamStderr {
				to = with.Stderr
			}
			if to != nil {
				if _, err := to.Write(o.Data); err != nil {
					return fmt.Errorf("pass on what the command wrote: %w", err)
				}
			}
			if owed += len(o.Data) + FrameCost; owed >= OutputWindow/4 {
				c.output.Give(owed) // before the guest knows of it
				if err := h.sendLogs(CommandCredit{ID: c.id, Bytes: owed}); err != nil {
					return err
				}
				owed = 0
			}
		}
		if len(outputs) > 0 {
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-c.more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// passInput sends what the command is to read.
func (h *Host) passInput(c *hostCommand, from io.Reader) error {
	buf := make([]byte, MaxCommandData)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if !c.input.Take(c.over, n+FrameCost) {
				return nil
			}
			if err := h.sendLogs(CommandInput{ID: c.id, Data: buf[:n]}); err != nil {
				return err
			}
		}
		switch {
		case isClosed(c.over):
			return nil
		case errors.Is(err, io.EOF):
			return h.sendLogs(CommandInput{ID: c.id, EOF: true})
		case err != nil:
			// Not an end of file: the command would take half of its input for all of it.
			return fmt.Errorf("read the command's input: %w", err)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (c *hostCommand) hasEnded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended != nil
}

func (c *hostCommand) result() CommandResult {
	c.mu.Lock()
	defer c.mu.Unlock()
	return CommandResult{Code: c.ended.Code, Signal: c.ended.Signal, TimedOut: c.ended.TimedOut, Error: c.ended.Error}
}

// take takes what has come.
func (c *hostCommand) take() (pid int, outputs []CommandOutput, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	outputs, c.queue = c.queue, nil
	return c.pid, outputs, c.ended != nil
}

// handleCommand takes a frame about a command. It never waits: who reads the log channel has lines to read too. Frames
// of commands that nobody knows are those of an earlier session, or of a command that was given up.
func (h *Host) handleCommand(m Message) error {
	find := func(id uint64) *hostCommand {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.commands[id]
	}
	var c *hostCommand
	switch m := m.(type) {
	case CommandStarted:
		if c = find(m.ID); c == nil {
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pid != 0 {
			return errors.New("a command started twice")
		}
		c.pid = m.PID
	case InputCredit:
		if c = find(m.ID); c != nil {
			c.input.Give(m.Bytes)
		}
		return nil
	case CommandOutput:
		if c = find(m.ID); c == nil {
			return nil
		}
		if !c.output.Spend(len(m.Data) + FrameCost) {
			return errors.New("more output of a command than there was credit for")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ended != nil {
			return errors.New("output of a command that had ended")
		}
		c.queue = append(c.queue, m)
	case CommandEnded:
		if c = find(m.ID); c == nil {
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ended != nil {
			return errors.New("a command ended twice")
		}
		c.ended = &m
	default:
		return fmt.Errorf("%T does not belong on the log channel", m)
	}
	select {
	case c.more <- struct{}{}:
	default:
	}
	return nil
}

// sendLogs writes one frame to the log channel. When it fails the stream may end within a frame, so that nothing can
// follow: the channel is closed.
func (h *Host) sendLogs(m Message) error {
	frame, err := Encode(nil, m)
	if err != nil {
		return err
	}
	h.logsMu.Lock()
	defer h.logsMu.Unlock()
	if err := writeFrame(h.logs, frame); err != nil {
		if isClosed(h.done) {
			return h.closedErr()
		}
		_ = h.logs.Close() // Run finds out and says why
		return fmt.Errorf("send %T to the guest: %w", m, err)
	}
	return nil
}
