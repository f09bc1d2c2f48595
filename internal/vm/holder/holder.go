//go:build linux

package holder

import (
	"errors"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// burst and pause bound what a guest that floods its console costs the host: a whole pipe, 64 KiB, every 50 ms.
	// The guest's serial port waits meanwhile.
	burst = 64 << 10
	pause = 50 * time.Millisecond
	// maxBursts is how many reads empty a pipe of the largest size.
	maxBursts = 64
)

// able says that this program is a holder when it is started as one.
var able bool

// Enter is the first that a program calls which is to be a holder when it is started by that name: then it does not
// return.
func Enter() {
	if os.Args[0][strings.LastIndexByte(os.Args[0], '/')+1:] == Name {
		os.Exit(Main(os.Args))
	}
	able = true
}

// Able tells whether this program can be started as a holder. Another would do what it always does, perhaps start
// machines.
func Able() bool { return able }

// Main is a holder's whole life. Its arguments are those of an Order. It returns the exit status, which says nothing
// of the monitor's.
func Main(args []string) int {
	// The kernel ties a process to the thread that started it.
	runtime.LockOSThread()
	order, err := parseOrder(args)
	if err != nil {
		_, _ = os.Stderr.WriteString(Name + ": " + err.Error() + "\n") // there is nobody else to tell
		return 2
	}
	if !mayGo() {
		return 0
	}
	h, err := start(order)
	if err != nil {
		say(err.Error())
		return 1
	}
	defer h.close()
	if err := writeAll(resultFD, pidWord+strconv.Itoa(h.pid)+"\n"); err != nil {
		// A monitor of which nothing is on record must not run.
		_ = unix.Kill(h.pid, unix.SIGKILL)
		say("keep the monitor's process id: " + err.Error())
		return 1
	}
	say(strconv.Itoa(h.pid))
	h.watch()
	if err := writeAll(resultFD, h.result()); err != nil {
		return 1
	}
	return 0
}

// mayGo waits until the monitor may be started. It tells whether anybody wants it still.
func mayGo() bool {
	var b [1]byte
	for {
		n, err := unix.Read(controlFD, b[:])
		if !errors.Is(err, unix.EINTR) {
			return n == 1
		}
	}
}

// say answers whoever has started the holder, who may be gone.
func say(text string) {
	_ = writeAll(controlFD, text)
	_ = unix.Close(controlFD)
}

func writeAll(fd int, text string) error {
	for len(text) > 0 {
		n, err := unix.Write(fd, []byte(text))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		text = text[max(n, 0):]
	}
	return nil
}

// held is a monitor that runs.
type held struct {
	pid, pidfd int
	status     syscall.WaitStatus
	pipes      []pipe
	buf        []byte
	console    []byte
	complaints []byte
}

// A pipe is one that the holder reads.
type pipe struct {
	fd   int
	keep func([]byte) // nil: nothing
}

// start starts the monitor.
func start(o Order) (*held, error) {
	h := &held{pidfd: -1, buf: make([]byte, burst)}
	own, monitors, err := outputPipe()
	if err != nil {
		return nil, err
	}
	devNull, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errors.New("open " + os.DevNull + ": " + err.Error())
	}
	inherited := []uintptr{uintptr(devNull), uintptr(monitors), uintptr(monitors)}
	fd := firstFD + o.Kept
	for range o.Files {
		inherited = append(inherited, uintptr(fd))
		fd++
	}
	h.pipes = append(h.pipes, pipe{own, h.keepComplaints})
	for _, kind := range []struct {
		number int
		keep   func([]byte)
	}{{o.Console, h.keepConsole}, {o.Complaints, h.keepComplaints}, {o.Ignored, nil}} {
		for range kind.number {
			h.pipes = append(h.pipes, pipe{fd, kind.keep})
			fd++
		}
	}
	// Nothing but what is listed above reaches the monitor, whatever the holder itself was started with.
	if err := unix.CloseRange(controlFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, errors.New("keep descriptors from the monitor: " + err.Error())
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: monitorEnv(), Files: inherited, Sys: &syscall.SysProcAttr{}}
	if o.UID >= 0 {
		attr.Sys.Credential = &syscall.Credential{Uid: uint32(o.UID), Gid: uint32(o.GID)}
	}
	if o.Tied {
		attr.Sys.Pdeathsig = syscall.SIGKILL
	}
	if h.pid, err = syscall.ForkExec(o.Argv[0], o.Argv, attr); err != nil {
		return nil, errors.New("start " + o.Argv[0] + ": " + err.Error())
	}
	// Its ends of pipes are to be the monitor's alone, so that they end with it.
	for _, f := range inherited {
		_ = unix.Close(int(f))
	}
	if err := h.prepareToWatch(); err != nil {
		_ = unix.Kill(h.pid, unix.SIGKILL)
		return nil, errors.New("watch the monitor: " + err.Error())
	}
	giveUpRights()
	return h, nil
}

func (h *held) prepareToWatch() (err error) {
	for _, p := range h.pipes {
		if err := unix.SetNonblock(p.fd, true); err != nil {
			return err
		}
	}
	h.pidfd, err = unix.PidfdOpen(h.pid, 0)
	return err
}

// outputPipe is for what the monitor prints to its standard output and error.
func outputPipe() (own, monitors int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, errors.New("make a pipe: " + err.Error())
	}
	return fds[0], fds[1], nil
}

// runtimeVariable is for the holder's own runtime: it has work for one processor.
const runtimeVariable = "GOMAXPROCS=1"

// Env is the environment of a holder whose monitor is to have env.
func Env(env []string) []string { return append([]string{runtimeVariable}, env...) }

func monitorEnv() []string {
	env := []string{}
	for _, e := range os.Environ() {
		if e != runtimeVariable {
			env = append(env, e)
		}
	}
	return env
}

// giveUpRights leaves the holder none that reading pipes does not take. It keeps its user id where that is root's, so
// that no monitor can send it a signal.
func giveUpRights() {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_ = unix.Capset(&head, &none[0]) // one that has none has none to give up
}

// watch reads what the monitor prints until it has ended.
func (h *held) watch() {
	for {
		fds := make([]unix.PollFd, 0, len(h.pipes)+1)
		fds = append(fds, unix.PollFd{Fd: int32(h.pidfd), Events: unix.POLLIN})
		for _, p := range h.pipes {
			fds = append(fds, unix.PollFd{Fd: int32(p.fd), Events: unix.POLLIN})
		}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			time.Sleep(pause) // can't be; the monitor's end is what counts
		}
		ended := fds[0].Revents != 0
		full := false
		for i := range h.pipes {
			if fds[i+1].Revents != 0 || ended {
				full = h.read(&h.pipes[i]) == burst || full
			}
		}
		if ended && h.reap() {
			return
		}
		if full {
			time.Sleep(pause)
		}
	}
}

// read takes what is in a pipe, up to a burst, and tells how many bytes that were.
func (h *held) read(p *pipe) int {
	if p.fd < 0 {
		return 0
	}
	n, err := unix.Read(p.fd, h.buf)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0
	case err != nil, n <= 0:
		p.fd = -1 // its other end is closed; poll passes over it
		return 0
	}
	if p.keep != nil {
		p.keep(h.buf[:n])
	}
	return n
}

func (h *held) keepConsole(b []byte) {
	h.console = append(h.console, b...)
	if len(h.console) > 2*ConsoleLimit {
		h.console = append(h.console[:0], h.console[len(h.console)-ConsoleLimit:]...)
	}
}

func (h *held) keepComplaints(b []byte) {
	h.complaints = append(h.complaints, b[:min(len(b), ComplaintsLimit-len(h.complaints))]...)
}

// reap takes the monitor's status, and what is left in its pipes.
func (h *held) reap() bool {
	for {
		pid, err := syscall.Wait4(h.pid, &h.status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err == nil && pid != h.pid {
			return false
		}
		break
	}
	for i := range h.pipes {
		// A pipe holds some bursts at most, and nobody should fill it any more.
		for n := 0; n < maxBursts && h.read(&h.pipes[i]) > 0; n++ {
		}
	}
	return true
}

// result is what follows the process id in the result file.
func (h *held) result() string {
	code, signal := h.status.ExitStatus(), 0
	if h.status.Signaled() {
		code, signal = -1, int(h.status.Signal())
	}
	console := h.console[max(0, len(h.console)-ConsoleLimit):]
	var b strings.Builder
	b.WriteString(exitWord)
	for i, n := range []int{code, signal, len(h.complaints), len(console)} {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(strconv.Itoa(n))
	}
	b.WriteByte('\n')
	b.Write(h.complaints)
	b.Write(console)
	return b.String()
}

func (h *held) close() { _ = unix.Close(h.pidfd) }
