//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// processes starts children and waits for them. One goroutine owns every wait of PID 1; a wait beside it, such as that
// of os/exec, would race with it for the status.
type processes struct {
	cgroupFD int
	spawns   chan spawnRequest
	born     chan struct{} // wakes the reaper: there is something to wait for

	mu       sync.Mutex // held from before a fork until the child is in children, so that no status comes too early
	children map[int]chan syscall.WaitStatus
}

// child is a process that was started.
type child struct {
	pid    int
	status <-chan syscall.WaitStatus // gets its status, once
}

// command is what to start.
type command struct {
	path   string // already looked up
	argv   []string
	env    []string
	dir    string
	user   user
	stdin  *os.File
	stdout *os.File
	stderr *os.File
	tty    bool // stdin is to be its controlling terminal
	// cgroupFD is where it runs; 0 for the workload's cgroup.
	cgroupFD int
}

type spawnRequest struct {
	command
	result chan<- spawnResult
}

type spawnResult struct {
	child *child
	err   error
}

// newProcesses starts the two goroutines of processes. Children go into the cgroup. It is called when the root is the
// workload's, because the spawner's thread keeps its own from then on.
func newProcesses(cgroupFD int) *processes {
	p := &processes{
		cgroupFD: cgroupFD,
		spawns:   make(chan spawnRequest),
		born:     make(chan struct{}, 1),
		children: map[int]chan syscall.WaitStatus{},
	}
	safely("spawner", p.spawner)
	safely("reaper", p.reaper)
	return p
}

// start starts a command; the error is what the kernel said.
func (p *processes) start(c command) (*child, error) {
	result := make(chan spawnResult, 1)
	p.spawns <- spawnRequest{c, result}
	r := <-result
	return r.child, r.err
}

// spawner starts all children from one thread whose umask, directory and bounding set are the workload's. A child
// inherits them at fork, which Go offers no way to change between fork and exec, and which would otherwise take a
// second program between PID 1 and the workload.
func (p *processes) spawner() {
	runtime.LockOSThread() // for good: no other goroutine may ever run on this thread
	ready := prepareSpawner()
	for r := range p.spawns {
		if ready != nil {
			r.result <- spawnResult{err: ready}
			continue
		}
		c, err := p.fork(r.command)
		r.result <- spawnResult{c, err}
	}
}

func prepareSpawner() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("give the spawner its own directory: %w", err)
	}
	unix.Umask(0o022)
	return dropBoundingSet()
}

// keptCapabilities are the 14 that Docker leaves a container.
var keptCapabilities = []uintptr{
	unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_MKNOD, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP,
	unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
}

// dropBoundingSet takes all other capabilities out of this thread's bounding set: what it forks can never get them, not
// even as root. The thread itself still has them, because it needs some to change the child's user.
func dropBoundingSet() error {
	var kept uint64
	for _, c := range keptCapabilities {
		kept |= 1 << c
	}
	for c := range uintptr(64) {
		if kept&(1<<c) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // beyond the kernel's last capability
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// fork runs on the spawner's thread.
func (p *processes) fork(c command) (*child, error) {
	// As root, before the user changes: an image may have a working directory that its user can't enter by itself.
	if err := unix.Chdir(c.dir); err != nil {
		return nil, &os.PathError{Op: "enter directory", Path: c.dir, Err: err}
	}
	cgroupFD := p.cgroupFD
	if c.cgroupFD != 0 {
		cgroupFD = c.cgroupFD
	}
	attr := &syscall.ProcAttr{
		Env:   c.env,
		Files: []uintptr{c.stdin.Fd(), c.stdout.Fd(), c.stderr.Fd()},
		Sys: &syscall.SysProcAttr{
			Setsid:      true,
			Credential:  &syscall.Credential{Uid: c.user.uid, Gid: c.user.gid, Groups: c.user.groups},
			Setctty:     c.tty, // Ctty 0 is stdin
			UseCgroupFD: cgroupFD >= 0,
			CgroupFD:    cgroupFD,
		},
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(c.path, c.argv, attr)
	_ = unix.Chdir("/") // which is there: in the directory of a volume, PID 1 would keep it from being unmounted
	if err != nil {
		return nil, err
	}
	status := make(chan syscall.WaitStatus, 1)
	p.children[pid] = status
	select {
	case p.born <- struct{}{}:
	default:
	}
	return &child{pid: pid, status: status}, nil
}

// reaper collects every child that ends, the workload's orphans included.
func (p *processes) reaper() {
	for {
		// Look without taking: taking needs the lock, and waiting with it held would stop every fork.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ECHILD):
			<-p.born // without children there are no orphans to come either
		case err == nil:
			p.reap()
		}
	}
}

func (p *processes) reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	trap("reap")
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c, ok := p.children[pid]; ok {
			delete(p.children, pid)
			c <- status
		}
	}
}

// signal sends sig to a child that has not been collected yet, so that it can't hit a process that got its number
// later.
func (p *processes) signal(c *child, sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.children[c.pid]; !ok {
		return nil
	}
	return unix.Kill(c.pid, sig)
}

// signalGroup sends sig to a child and what it started, as far as that stayed in its process group.
func (p *processes) signalGroup(c *child, sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.children[c.pid]; ok {
		_ = unix.Kill(-c.pid, sig) // ESRCH: it has just ended
	}
}

// killSession kills a child and what it started, as far as that stayed in its process group.
func (p *processes) killSession(c *child) { p.signalGroup(c, unix.SIGKILL) }
