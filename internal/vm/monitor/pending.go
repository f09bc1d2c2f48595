package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// A Launch says how a monitor is started.
type Launch struct {
	// Holder is the holder's program file, as the thread that calls Prepare sees it.
	Holder string
	// Argv is the monitor's, its program file first, as that thread sees it; Env is its environment.
	Argv, Env []string
	// UID and GID are the monitor's identity, or -1 for the caller's.
	UID, GID int
	// Tied says that the monitor can be tied to its holder, because it keeps the identity that it is started with.
	Tied bool
	// Files are what the monitor inherits from descriptor 3 on. The holder keeps Kept open and reads the pipes Console,
	// Complaints and Ignored, which must be nothing but readers. The caller closes all of them after Prepare.
	Files, Kept, Console, Complaints, Ignored []*os.File
	// Group is the descriptor of a cgroup to start in, when InGroup is set.
	Group   int
	InGroup bool
}

// A Pending is a holder that waits to be told to start its monitor. It must be run or abandoned.
type Pending struct {
	process *os.Process
	control *os.File
	cleaned bool
}

// OpenResult makes the result file in a machine's directory. It is apart from Prepare because a thread that can start
// the holder may not see the directory.
func OpenResult(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, holder.ResultName), os.O_WRONLY|os.O_CREATE|os.O_EXCL|os.O_APPEND, 0o600)
}

// Prepare starts a holder from the calling thread, whose namespaces, root and cgroup it has, and so has the monitor.
// result is the file that it writes to.
func Prepare(l Launch, result, devNull *os.File) (*Pending, error) {
	order := holder.Order{
		Kept: len(l.Kept), Files: len(l.Files), Console: len(l.Console), Complaints: len(l.Complaints), Ignored: len(l.Ignored),
		UID: l.UID, GID: l.GID, Tied: l.Tied, Argv: l.Argv,
	}
	ours, theirs, err := controlPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	files := []*os.File{devNull, devNull, devNull, theirs, result}
	for _, more := range [][]*os.File{l.Kept, l.Files, l.Console, l.Complaints, l.Ignored} {
		files = append(files, more...)
	}
	p, err := os.StartProcess(l.Holder, order.Args(), &os.ProcAttr{
		Dir: "/", Env: holder.Env(l.Env), Files: files,
		// A session of its own keeps a terminal's Ctrl-C away from the monitor.
		Sys: &syscall.SysProcAttr{Setsid: true, CgroupFD: l.Group, UseCgroupFD: l.InGroup},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the monitor's holder %s: %w", l.Holder, err), ours.Close())
	}
	return &Pending{process: p, control: ours}, nil
}

// controlPair makes the two ends of the holder's control socket.
func controlPair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make the holder's control socket: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "holder"), os.NewFile(uintptr(fds[1]), "holder"), nil
}

// start lets the holder start the monitor, and returns the monitor's process id.
func (p *Pending) start() (int, error) {
	if err := p.control.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return 0, err
	}
	if _, err := p.control.Write([]byte{1}); err != nil {
		return 0, fmt.Errorf("tell the holder to start the monitor: %w", err)
	}
	answer, err := io.ReadAll(io.LimitReader(p.control, 4<<10))
	if err != nil {
		return 0, fmt.Errorf("wait for the holder to start the monitor: %w", err)
	}
	pid, err := strconv.Atoi(string(answer))
	if err != nil || pid <= 1 {
		return 0, errors.New(trim(string(answer)))
	}
	return pid, nil
}

// abandon ends a holder that is not to run a monitor, once.
func (p *Pending) abandon() {
	if p.cleaned {
		return
	}
	p.cleaned = true
	_ = p.control.Close()   // ends one that waits
	_ = p.process.Kill()    // and one that does not, with its monitor
	_, _ = p.process.Wait() // its status says nothing
}

// Abandon ends a holder that is not to run its monitor.
func (p *Pending) Abandon() { p.abandon() }

func trim(text string) string { return strings.TrimSpace(text) }
