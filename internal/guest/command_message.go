package guest

import (
	"errors"
	"fmt"
)

// The types of frames for commands beside the workload that somebody talks to. All travel on the log channel.
const (
	TypeCommandStarted Type = 0x23 // guest: its process runs
	TypeCommandOutput  Type = 0x24 // guest
	TypeInputCredit    Type = 0x25 // guest: there is room for more input
	TypeCommandEnded   Type = 0x26 // guest: last frame of a command

	TypeRunCommand    Type = 0x63 // host: first frame of a command
	TypeCommandInput  Type = 0x64 // host
	TypeCommandResize Type = 0x65 // host
	TypeCommandSignal Type = 0x66 // host
	TypeCommandCredit Type = 0x67 // host: there is room for more output
	TypeEndCommand    Type = 0x68 // host: nobody waits for it any more
)

// CanCommands in Hello.Can says that the guest runs commands that somebody talks to. One that does not say so skips
// their frames.
const CanCommands = "commands"

// Bounds of commands. A side may send as much as the other has given it credit for, and each frame takes as much of it
// as its data and FrameCost together, so that many small frames can't take more memory than few large ones.
const (
	MaxCommandData = 16 << 10  // bytes of data in one frame
	FrameCost      = 256       // of credit, for each frame with data
	InputWindow    = 64 << 10  // credit for input that the start of a command gives
	OutputWindow   = 256 << 10 // credit for output that this package gives
	MaxWindow      = 1 << 20   // the most that a host may give
	MaxCommands    = 8         // running in a guest at the same time
	MaxCommandLine = 128 << 10 // bytes of argv and environment together
	MaxTerminal    = 4096      // rows, and columns
)

// RunCommand asks for a command to be run beside the workload, with somebody to talk to it. It runs as the workload's
// user, in its directory, with its environment, capabilities and limits, unless it says otherwise.
type RunCommand struct {
	ID        uint64   `json:"id"`
	Argv      []string `json:"argv"`
	Env       []string `json:"env,omitempty"`     // NAME=value, over the workload's
	WorkDir   string   `json:"workdir,omitempty"` // "": the workload's
	User      string   `json:"user,omitempty"`    // user[:group]; "": the workload's
	TTY       bool     `json:"tty,omitempty"`     // a terminal is its stdin, stdout and stderr
	Rows      uint16   `json:"rows,omitempty"`    // of the terminal
	Cols      uint16   `json:"cols,omitempty"`
	Stdin     bool     `json:"stdin,omitempty"` // CommandInput follows; otherwise there is nothing to read
	Window    int      `json:"window"`          // credit for output, at most MaxWindow
	TimeoutMS int64    `json:"timeout_ms,omitempty"`
}

// CommandInput is what the command reads next. EOF is the end of it: on a terminal, the character that means so.
type CommandInput struct {
	ID   uint64 `json:"id"`
	Data []byte `json:"data,omitempty"`
	EOF  bool   `json:"eof,omitempty"`
}

// CommandResize changes the size of the command's terminal.
type CommandResize struct {
	ID   uint64 `json:"id"`
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// CommandSignal sends a signal to the command's process group.
type CommandSignal struct {
	ID     uint64 `json:"id"`
	Signal string `json:"signal"`
}

// CommandCredit gives credit for more output. With 0 bytes it says only that the host is there, which it has to every
// HostInterval while commands run.
type CommandCredit struct {
	ID    uint64 `json:"id"`
	Bytes int    `json:"bytes,omitempty"`
}

// EndCommand ends the command: SIGHUP, and soon after SIGKILL for all that it has started. CommandEnded follows, and
// no more output.
type EndCommand struct {
	ID uint64 `json:"id"`
}

// CommandStarted says that the command's process runs.
type CommandStarted struct {
	ID  uint64 `json:"id"`
	PID int    `json:"pid"`
}

// CommandOutput is what the command has written next.
type CommandOutput struct {
	ID     uint64 `json:"id"`
	Stream string `json:"stream"` // StreamStdout or StreamStderr; of a terminal, the first
	Data   []byte `json:"data"`   // at least one byte, at most MaxCommandData
}

// InputCredit gives credit for more input.
type InputCredit struct {
	ID    uint64 `json:"id"`
	Bytes int    `json:"bytes"`
}

// CommandEnded says how a command ended. All of its output came before.
type CommandEnded struct {
	ID       uint64 `json:"id"`
	Code     int    `json:"code"`                // exit status, 128+n after signal n, 125 to 127 when it couldn't be started
	Signal   string `json:"signal,omitempty"`    // such as "SIGKILL", when a signal ended it
	TimedOut bool   `json:"timed_out,omitempty"` // it was ended because its time was up
	Error    string `json:"error,omitempty"`     // why it could not be started
}

func (RunCommand) frameType() Type     { return TypeRunCommand }
func (CommandInput) frameType() Type   { return TypeCommandInput }
func (CommandResize) frameType() Type  { return TypeCommandResize }
func (CommandSignal) frameType() Type  { return TypeCommandSignal }
func (CommandCredit) frameType() Type  { return TypeCommandCredit }
func (EndCommand) frameType() Type     { return TypeEndCommand }
func (CommandStarted) frameType() Type { return TypeCommandStarted }
func (CommandOutput) frameType() Type  { return TypeCommandOutput }
func (InputCredit) frameType() Type    { return TypeInputCredit }
func (CommandEnded) frameType() Type   { return TypeCommandEnded }

// decodeCommand is Decode for the types above.
func decodeCommand(t Type, body []byte) (Message, error) {
	switch t {
	case TypeCommandStarted:
		return decode[CommandStarted](body)
	case TypeCommandOutput:
		return decode[CommandOutput](body)
	case TypeInputCredit:
		return decode[InputCredit](body)
	case TypeCommandEnded:
		return decode[CommandEnded](body)
	case TypeRunCommand:
		return decode[RunCommand](body)
	case TypeCommandInput:
		return decode[CommandInput](body)
	case TypeCommandResize:
		return decode[CommandResize](body)
	case TypeCommandSignal:
		return decode[CommandSignal](body)
	case TypeCommandCredit:
		return decode[CommandCredit](body)
	case TypeEndCommand:
		return decode[EndCommand](body)
	default:
		return nil, fmt.Errorf("%w 0x%02x", ErrUnknownType, byte(t))
	}
}

func (r *RunCommand) check() error {
	if r.Window < 0 || r.Window > MaxWindow {
		return fmt.Errorf("a window of %d bytes, at most %d are allowed", r.Window, MaxWindow)
	}
	return nil
}

func (i *CommandInput) check() error {
	if len(i.Data) > MaxCommandData {
		return fmt.Errorf("%d bytes of input, at most %d are allowed", len(i.Data), MaxCommandData)
	}
	return nil
}

func (c *CommandCredit) check() error {
	if c.Bytes < 0 || c.Bytes > MaxWindow {
		return fmt.Errorf("credit of %d bytes", c.Bytes)
	}
	return nil
}

func (s *CommandStarted) check() error {
	if s.PID <= 0 {
		return fmt.Errorf("process id %d", s.PID)
	}
	return nil
}

func (o *CommandOutput) check() error {
	switch {
	case o.Stream != StreamStdout && o.Stream != StreamStderr:
		return errors.New("output of neither stdout nor stderr")
	case len(o.Data) == 0 || len(o.Data) > MaxCommandData:
		return fmt.Errorf("%d bytes of output, 1 to %d are allowed", len(o.Data), MaxCommandData)
	}
	return nil
}

func (c *InputCredit) check() error {
	if c.Bytes <= 0 || c.Bytes > InputWindow {
		return fmt.Errorf("credit of %d bytes", c.Bytes)
	}
	return nil
}

func (e *CommandEnded) check() error {
	e.Signal, e.Error = text(e.Signal, maxName), text(e.Error, maxText)
	return checkCode(e.Code)
}
