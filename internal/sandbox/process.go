package sandbox

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// envUserNS tells the process that it is in a user namespace, where it has one id.
const envUserNS = "PINNACE_SANDBOX_USERNS"

// Options of a process.
type Options struct {
	Part     string // which one of those that Main knows
	Dir      string // where a directory can be made for a moment, to become its root
	MaxFile  int64  // bytes that a file may get
	MaxBytes int64  // of memory; a process that takes more is killed
}

var (
	// ErrUnavailable means that this program never called Main, so that it cannot be started for a part.
	ErrUnavailable = errors.New("this program cannot confine a part of itself")

	errCgo = errors.New("this program was built with cgo, by which a part of it cannot be confined: build it with CGO_ENABLED=0, as make build does")
)

// A Process runs a part. It must be ended by Close.
type Process struct {
	Conn *net.UnixConn // to the part; messages keep their bounds

	cmd      *exec.Cmd
	max      int64
	done     chan struct{} // closed when the process is gone
	mu       sync.Mutex
	cause    error // why it was killed by us; guarded by mu
	waitErr  error // after done
	stderr   tail  // after done
	watchers sync.WaitGroup
}

// slack is what the kernel's bound on private memory leaves above MaxBytes: Go's runtime takes memory in
// steps of 64 MiB, most of which it has not touched.
const slack = 256 << 20

// Start starts a process for a part.
func Start(opts Options) (*Process, error) {
	switch {
	case !wired.Load():
		return nil, ErrUnavailable
	case !Possible():
		return nil, errCgo
	}
	ways := []confinement{{namespaces: true, user: true}, {}}
	if os.Geteuid() == 0 {
		ways = slices.Insert(ways, 0, confinement{namespaces: true})
	}
	for i, c := range ways {
		p, err := start(opts, c)
		if err == nil || i == len(ways)-1 || !noNamespaces(err) {
			return p, err
		}
	}
	panic("unreachable")
}

// A confinement is what the kernel gives beyond limits and the filter: without namespaces there is only that.
type confinement struct {
	namespaces bool
	user       bool // one for ids too, which is how others than root get the rest
}

// noNamespaces tells whether an error is how a kernel or a container says that there are none for us.
func noNamespaces(err error) bool {
	return slices.ContainsFunc([]error{unix.EPERM, unix.ENOSPC, unix.EINVAL, unix.EACCES, unix.ENOSYS}, func(errno error) bool {
		return errors.Is(err, errno)
	})
}

func start(opts Options, c confinement) (*Process, error) {
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	root, err := emptyRoot(opts.Dir)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	defer root.Close()
	p := &Process{Conn: conn, max: opts.MaxBytes, done: make(chan struct{})}
	bounds := limits{file: uint64(opts.MaxFile), data: uint64(opts.MaxBytes) + slack}
	p.cmd = &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{argv0, opts.Part, bounds.String()},
		Env:        []string{"GOTRACEBACK=single", "GOMAXPROCS=" + strconv.Itoa(runtime.GOMAXPROCS(0))},
		Dir:        "/",
		ExtraFiles: []*os.File{theirs, root},
		Stderr:     &p.stderr,
		// What it leaves to stderr after its end is nothing to wait for.
		WaitDelay:   time.Second,
		SysProcAttr: &syscall.SysProcAttr{},
	}
	if c.namespaces {
		p.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	}
	if c.user {
		p.cmd.Env = append(p.cmd.Env, envUserNS+"=1")
		p.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		p.cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		p.cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start a confined process: %w", err), conn.Close())
	}
	p.watchers.Go(p.wait)
	if p.max > 0 {
		p.watchers.Go(p.watch)
	}
	return p, nil
}

// Pair makes both ends of a connection as between a part and the one that started it, for a part that runs
// without being confined.
func Pair() (ours, theirs *net.UnixConn, err error) {
	ours, f, err := socketpair()
	if err != nil {
		return nil, nil, err
	}
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, nil, errors.Join(err, ours.Close())
	}
	return ours, c.(*net.UnixConn), nil
}

// socketpair makes a connection that keeps messages apart, and its other end to pass on.
func socketpair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "connection"), os.NewFile(uintptr(fds[1]), "connection")
	c, err := net.FileConn(ours)
	if err = errors.Join(err, ours.Close()); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return c.(*net.UnixConn), theirs, nil
}

// emptyRoot opens a directory that has nothing in it, no name, and no way to put anything into it.
func emptyRoot(dir string) (*os.File, error) {
	path, err := os.MkdirTemp(dir, "root-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o555); err != nil { //nolint:gosec // The process, which is nobody, has to be able to enter it.
		return nil, errors.Join(err, os.Remove(path))
	}
	f, err := os.Open(path)
	return f, errors.Join(err, os.Remove(path))
}

func (p *Process) wait() {
	p.waitErr = p.cmd.Wait()
	close(p.done)
}

// watch kills the process when it takes more memory than it may. Between two looks it can take more, up to
// what the kernel allows.
func (p *Process) watch() {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-tick.C:
		}
		if used := p.Memory(); used > p.max {
			p.Kill(fmt.Errorf("took %d MiB of memory, at most %d MiB", used>>20, p.max>>20))
			return
		}
	}
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Memory is what the process takes now, without what it has of this binary's file.
func (p *Process) Memory() int64 {
	return p.status("RssAnon:") + p.status("RssShmem:")
}

// Peak is the most that it ever took, the file included.
func (p *Process) Peak() int64 {
	return p.status("VmHWM:")
}

func (p *Process) status(field string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), field); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// Kill ends the process at once. Ended then gives cause.
func (p *Process) Kill(cause error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return
	default:
	}
	if p.cause == nil {
		p.cause = cause
	}
	_ = p.cmd.Process.Kill() // an error means that it is gone
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended waits for the end of the process and says why it ended, nil when its part returned without an error.
func (p *Process) Ended() error {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	switch said := p.stderr.String(); {
	case p.cause != nil:
		return p.cause
	case p.waitErr == nil:
		return nil
	case said == "":
		return p.waitErr
	default:
		return fmt.Errorf("%w: %s", p.waitErr, said)
	}
}

// EndedWithin is Ended for a process that has given up its connection: one that stays is killed after a while.
func (p *Process) EndedWithin(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.Kill(errors.New("closed its connection and went on"))
	}
	return p.Ended()
}

// Close ends the process and waits until it has. A part whose connection ends has nothing more to do, so it
// is not asked for the cause.
func (p *Process) Close() error {
	err := p.Conn.Close()
	p.Kill(errClosed)
	p.watchers.Wait()
	return err
}

var errClosed = errors.New("closed")

// A tail keeps the first bytes that are written to it, which say what went wrong; the rest are goroutines'
// stacks.
type tail struct {
	mu   sync.Mutex
	head []byte
}

var _ io.Writer = (*tail)(nil)

func (t *tail) Write(p []byte) (int, error) {
	const most = 2 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.head = append(t.head, p[:min(len(p), most-len(t.head))]...)
	return len(p), nil
}

// String is the first line, as text that is safe to print.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	line, _, _ := strings.Cut(strings.TrimSpace(string(t.head)), "\n")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(line, "?"))
}
