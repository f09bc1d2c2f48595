// Package vm says what a microVM is to the rest of Pinnace: a kernel, an initramfs, disks, one network
// device and two byte channels, run by a driver that can start it, kill it and tell how it ended.
//
// The package knows nothing of images, releases or the guest's protocol: what flows over a channel is the
// business of whoever dials it. Drivers live below it (internal/vm/qemu), their conformance suite and a
// driver without a hypervisor in internal/vm/vmtest.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
)

// A Channel names one of the two byte streams between host and guest. They are apart so that a flood of
// logs cannot hold up control messages.
type Channel string

// The channels of every machine. In the guest they are the virtio-serial ports "pinnace.control" and
// "pinnace.logs", or the vsock ports 7001 and 7002.
const (
	Control Channel = "control"
	Logs    Channel = "logs"
)

// Channels lists every channel.
func Channels() []Channel { return []Channel{Control, Logs} }

// ErrEnded means that the machine has ended, so that the operation has nothing to act on.
var ErrEnded = errors.New("the machine has ended")

// ErrJail is wrapped by the errors of Start for what keeps a monitor from being started at all: a spec that cannot work, or
// surroundings that cannot be made for it. Other errors are about a monitor that was started.
var ErrJail = errors.New("the monitor's surroundings cannot be made")

// JailError makes err wrap ErrJail, if it does not yet.
func JailError(err error) error {
	if err == nil || errors.Is(err, ErrJail) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrJail, err)
}

// ErrNotOurs means that nothing proves that what a record names is the machine that it was written for, or that there
// is nothing of it any more.
var ErrNotOurs = errors.New("nothing runs that is proven to be the machine of the record")

// A Driver starts machines with one virtual machine monitor. Its methods may be called concurrently.
type Driver interface {
	// Name is the word for the driver in records and messages, such as "qemu".
	Name() string

	// Probe tells what the driver can do on this host. It may boot a machine to find out, which takes
	// seconds; the answer is remembered. An error means that no machine can be started at all, and says
	// what is missing and how to get it: a *MissingError when a program is.
	Probe(ctx context.Context) (Capabilities, error)

	// Start runs a machine. When it returns one, the monitor's process runs under the identity that the
	// spec names, both channels can be dialled, and the machine's record is in spec.Dir; the guest may
	// not have executed anything yet. When it returns an error, nothing runs and nothing is left behind.
	//
	// The context bounds the start only: ending it later does not touch the machine. Every machine that
	// Start returns holds resources until it has ended, and ends by itself only when the guest resets,
	// panics or the monitor dies; callers see to it with Kill. A spec that cannot work is refused with a
	// *SpecError before any process is started.
	Start(ctx context.Context, spec Spec) (Machine, error)

	// Adopt takes over the machine of a record that another process of this program has left, which has ended. The
	// machine is as one that Start has returned: it was running all the time, and both channels can be dialled. One
	// that has ended meanwhile is adopted too when somebody saw its end: Wait tells how. Nobody else may have the
	// machine, or adopt it at the same time.
	//
	// When the record is not proven to be of such a machine, the error wraps ErrNotOurs. After any error what there
	// is of the machine is as it was; see Record.End.
	Adopt(ctx context.Context, r Record) (Machine, error)
}

// A Machine is one run of a virtual machine. Its methods may be called concurrently.
type Machine interface {
	// Dial connects to a channel. It works as soon as the machine was started, before the guest has
	// opened its side: what is written waits there. A channel has one connection at a time: a second one
	// may be refused, or hear nothing until the first is closed. Connections end with the machine. After
	// the machine has ended, the error is ErrEnded. What arrives is the guest's: treat it as hostile.
	Dial(ctx context.Context, ch Channel) (net.Conn, error)

	// Kill ends the machine without asking the guest. It returns when the signal is sent, which is
	// before the machine has ended; Wait tells when it has. Killing a machine that has ended, or
	// killing twice, does nothing and returns nil.
	Kill() error

	// Wait returns how the machine ended, to every caller the same, after its process is reaped and
	// what Start made (cgroup, record, sockets) is removed. When ctx ends first it returns ctx's error;
	// the machine is not touched. After Kill it returns an Exit with Killed set, unless the machine
	// ended by itself first.
	Wait(ctx context.Context) (Exit, error)

	// PID is the process id of the monitor. It stays what it was after the end.
	PID() int

	// Record identifies the machine for another process of this program, after the end of this one; see
	// Driver.Adopt and KillStale. A machine does not end with the process that started it.
	Record() Record

	// Release lets go of the machine, which lives on for another process to adopt: connections are closed, and
	// no method may be called afterwards. The end of the process does the same.
	Release()
}

// Capabilities are what a driver found that it can do on this host.
type Capabilities struct {
	Driver  string
	Version string
	// Accelerator is "kvm" or "tcg". TCG, emulation in software, is no security boundary.
	Accelerator string
	// Reason says why Accelerator is not "kvm", for people. Empty when it is.
	Reason string
	// MaxDisks is the largest number of disks of one machine.
	MaxDisks int
	// OverheadMiB is the memory that the monitor may need beside the guest's RAM. The scheduler books the
	// sum, and the monitor's cgroup is limited to it.
	OverheadMiB int
	// Weaknesses names protections that are off on this host and why, for people. Empty when none is.
	Weaknesses []string
}

// An Exit is how a machine ended, as seen from the host. It says nothing about the workload: monitors end
// with code 0 for every reset of the guest, panics included. Only a report from the guest can mean success.
type Exit struct {
	// Code is the monitor's exit status, or -1 when a signal ended it.
	Code int
	// Signal ended the monitor, or is 0.
	Signal syscall.Signal
	// Unknown tells that nobody saw how the monitor ended, so that Code and Signal say nothing.
	Unknown bool
	// Killed tells that Kill was called before the monitor ended.
	Killed bool
	// OOM tells that the host's kernel killed the monitor because its cgroup ran out of memory.
	OOM bool
	// Panic is the guest kernel's panic line from the console, or empty when there was none. A hostile
	// guest can print such a line itself.
	Panic string
	// ConsoleTail holds the last bytes of the console, at most ConsoleLimit of them, as the guest wrote
	// them: never print it to a terminal unfiltered.
	ConsoleTail string
	// Stderr is what the monitor itself complained about, at most 4 KiB.
	Stderr string
}

// ConsoleLimit is how many bytes of a machine's console are kept.
const ConsoleLimit = 64 << 10

// String says how the monitor ended in one line, without the console.
func (e Exit) String() string {
	switch {
	case e.Panic != "":
		return fmt.Sprintf("guest kernel panicked: %q", e.Panic)
	case e.OOM:
		return "monitor killed: its cgroup ran out of memory"
	case e.Killed:
		return "monitor killed on request"
	case e.Unknown:
		return "monitor is gone, and nobody saw how it ended"
	case e.Signal != 0:
		return fmt.Sprintf("monitor ended by signal %d (%v)%s", int(e.Signal), e.Signal, e.complaint())
	case e.Code != 0:
		return fmt.Sprintf("monitor ended with status %d%s", e.Code, e.complaint())
	}
	return "guest reset or powered off"
}

// complaint is the first line of Stderr, to follow a message.
func (e Exit) complaint() string {
	line, _, _ := strings.Cut(e.Stderr, "\n")
	if line == "" {
		return ""
	}
	return ": " + line
}

// A MissingError means that a program which the driver needs is not on this host.
type MissingError struct {
	Program string
	// Package is the Debian package that has it, or empty when none does.
	Package string
	// Hint says how to get a program that no package has.
	Hint string
	Err  error
}

func (e *MissingError) Error() string {
	if e.Package == "" {
		return fmt.Sprintf("%s is not usable here: %v; %s", e.Program, e.Err, e.Hint)
	}
	return fmt.Sprintf("%s is not usable here: %v; install it with: apt-get install %s", e.Program, e.Err, e.Package)
}

func (e *MissingError) Unwrap() error { return e.Err }
