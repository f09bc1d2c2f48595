//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// defaultTerm is what a terminal is taken for that nobody has described.
const defaultTerm = "xterm"

// launch starts a command that somebody talks to.
func (b *Boot) launch(r guest.RunCommand) (*launched, error) {
	c, err := b.commandOf(r)
	if err != nil {
		return nil, err
	}
	if r.TTY {
		return b.launchOnTerminal(c, r)
	}
	return b.launchOnPipes(c, r)
}

// commandOf merges what was asked for with what the workload has.
func (b *Boot) commandOf(r guest.RunCommand) (command, error) {
	c := command{argv: r.Argv, env: b.env, dir: b.workdir, user: b.user, tty: r.TTY}
	if len(r.Argv) == 0 {
		return command{}, &execError{exitNotFound, "the command is empty", unix.ENOENT}
	}
	if r.User != "" {
		u, err := lookUpUser(r.User)
		if err != nil {
			return command{}, err
		}
		if lookEnv(b.env, "HOME") == b.user.home {
			c.env = withEnv(c.env, "HOME="+u.home) // unless the image or the manifest has set another one
		}
		c.user = u
	}
	if r.WorkDir != "" {
		c.dir = path.Clean(r.WorkDir)
		if !path.IsAbs(c.dir) {
			c.dir = path.Join(b.workdir, c.dir)
		}
	}
	if r.TTY && lookEnv(c.env, "TERM") == "" {
		c.env = withEnv(c.env, "TERM="+defaultTerm)
	}
	for _, e := range r.Env {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" || strings.ContainsRune(e, 0) {
			return command{}, fmt.Errorf("%q is not a variable: want NAME=value", e)
		}
		c.env = withEnv(c.env, e)
	}
	var err error
	c.path, err = lookUp(r.Argv[0], lookEnv(c.env, "PATH"), c.dir, c.user)
	return c, err
}

// withEnv is env with one more assignment, which replaces another of the same name.
func withEnv(env []string, assignment string) []string {
	name, _, _ := strings.Cut(assignment, "=")
	all := make([]string, 0, len(env)+1)
	for _, e := range env {
		if !strings.HasPrefix(e, name+"=") {
			all = append(all, e)
		}
	}
	return append(all, assignment)
}

// launchOnPipes starts c with a pipe for each of its streams.
func (b *Boot) launchOnPipes(c command, r guest.RunCommand) (_ *launched, err error) {
	var ours, theirs []*os.File
	defer func() {
		closeFiles(theirs)
		if err != nil {
			closeFiles(ours)
		}
	}()
	l := &launched{outputs: map[string]deadlineReader{}}
	if r.Stdin {
		reader, writer, err := stdinPipe(c.user)
		if err != nil {
			return nil, err
		}
		c.stdin, l.stdin = reader, writer
		ours, theirs = append(ours, writer), append(theirs, reader)
	} else {
		if c.stdin, err = os.Open(os.DevNull); err != nil {
			return nil, err
		}
		theirs = append(theirs, c.stdin)
	}
	for stream, end := range map[string]**os.File{guest.StreamStdout: &c.stdout, guest.StreamStderr: &c.stderr} {
		reader, writer, err := pipe(c.user)
		if err != nil {
			return nil, err
		}
		*end, l.outputs[stream] = writer, reader
		ours, theirs = append(ours, reader), append(theirs, writer)
	}
	return l, b.startIn(c, l, ours)
}

// launchOnTerminal starts c on a terminal of its own.
func (b *Boot) launchOnTerminal(c command, r guest.RunCommand) (*launched, error) {
	master, slave, err := openTerminal(c.user)
	if err != nil {
		return nil, fmt.Errorf("make a terminal: %w", err)
	}
	defer slave.Close() // its end is known by nobody having it open
	c.stdin, c.stdout, c.stderr = slave, slave, slave
	l := &launched{outputs: map[string]deadlineReader{guest.StreamStdout: master}}
	l.resize = func(rows, cols uint16) {
		if rows == 0 || cols == 0 {
			return
		}
		control, err := master.SyscallConn()
		if err != nil {
			return // it is closed
		}
		_ = control.Control(func(fd uintptr) {
			_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) // of a terminal: always possible
		})
	}
	l.resize(r.Rows, r.Cols) // before the command can ask
	if r.Stdin {
		l.stdin = master
	}
	if err := b.startIn(c, l, []*os.File{master}); err != nil {
		master.Close()
		return nil, err
	}
	return l, nil
}

// startIn starts c in a box of its own. files are closed by l.close.
func (b *Boot) startIn(c command, l *launched, files []*os.File) error {
	in := b.newBox()
	c.cgroupFD = in.fd()
	child, err := b.processes.start(c)
	if err != nil {
		in.remove()
		return startError(c.path, err)
	}
	l.child = child
	l.signal = func(sig syscall.Signal) { b.processes.signalGroup(child, sig) }
	l.kill = func() { in.kill(b.processes, child) }
	l.close = func() {
		closeFiles(files)
		in.remove()
	}
	return nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// stdinPipe makes a pipe for a process's input.
func stdinPipe(u user) (reader, writer *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	// Only PID 1's end does not block. The other is the user's, who may open /dev/stdin anew.
	err = errors.Join(unix.SetNonblock(fds[1], true), unix.Fchown(fds[0], int(u.uid), int(u.gid)))
	reader, writer = os.NewFile(uintptr(fds[0]), "input"), os.NewFile(uintptr(fds[1]), "input")
	if err != nil {
		reader.Close()
		writer.Close()
		return nil, nil, err
	}
	return reader, writer, nil
}

// openTerminal makes a terminal whose slave belongs to u. The path is that of the file system of terminals itself: a
// workload may replace /dev/ptmx.
func openTerminal(u user) (master, slave *os.File, err error) {
	const ptmx = "/dev/pts/ptmx"
	fd, err := unix.Open(ptmx, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: ptmx, Err: err}
	}
	master = os.NewFile(uintptr(fd), ptmx)
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, os.NewSyscallError("unlock", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, nil, os.NewSyscallError("open slave", errno)
	}
	slave = os.NewFile(peer, "terminal")
	if err := unix.Fchown(int(peer), int(u.uid), -1); err != nil {
		master.Close()
		slave.Close()
		return nil, nil, os.NewSyscallError("chown slave", err)
	}
	return master, slave, nil
}

// box is where a command runs beside the workload: a cgroup below the workload's, with its limits, so that everything
// that the command starts is found again. Where it can't be made, the command runs in the workload's own cgroup, and only
// its process group is known.
type box struct {
	cgroup *cgroup
	parent *cgroup
	name   string // in parent
}

var boxes atomic.Uint64 // numbers them

func (b *Boot) newBox() *box {
	name := fmt.Sprintf("pinnace-exec-%d", boxes.Add(1))
	if err := unix.Mkdirat(b.workload.fd, name, 0o755); err != nil {
		logf(logError, "make a cgroup for a command: %v", err)
		return &box{}
	}
	fd, err := unix.Openat(b.workload.fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		logf(logError, "open the cgroup of a command: %v", err)
		_ = unix.Unlinkat(b.workload.fd, name, unix.AT_REMOVEDIR) // nothing is in it
		return &box{}
	}
	return &box{&cgroup{fd}, b.workload, name}
}

// fd is the descriptor of the cgroup, 0 for the workload's.
func (x *box) fd() int {
	if x.cgroup == nil {
		return 0
	}
	return x.cgroup.fd
}

func (x *box) kill(p *processes, c *child) {
	p.killSession(c)
	if x.cgroup == nil {
		return
	}
	if err := x.cgroup.killAll(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		logf(logError, "kill a command: %v", err)
	}
}

// remove waits until nothing is in the box any more.
func (x *box) remove() {
	if x.cgroup == nil {
		return
	}
	closeFD(x.cgroup.fd)
	err := waitFor(endTimeout, func() (bool, error) {
		err := unix.Unlinkat(x.parent.fd, x.name, unix.AT_REMOVEDIR)
		return err == nil, err
	})
	if err != nil {
		logf(logError, "remove the cgroup of a command: %v", err)
	}
}
