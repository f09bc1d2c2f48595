package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// A machine is one QEMU process. It owns a thread, which waits for the process, and the goroutines that read
// its console and stderr and clean up; all of them end with the process.
type machine struct {
	spec  vm.Spec
	log   *slog.Logger
	files *files
	group *cgroup.Group // nil: none

	// The caller's ends of the monitor's console and stderr, and what was read from them.
	consolePipe, stderrPipe *os.File
	monitorStderr           *os.File // the monitor's end, until it has it
	output                  output
	console                 vm.Console
	stderr                  head

	process *os.Process
	record  vm.Record
	killed  atomic.Bool

	// ended is closed when the process is reaped and everything is cleaned up; exit is set before.
	ended   chan struct{}
	exit    vm.Exit
	cleaned sync.Once
}

var _ vm.Machine = (*machine)(nil)

// open opens every file that the monitor will inherit.
func (m *machine) open() error {
	m.files = &files{}
	if err := m.files.openBootFiles(m.spec, jailed()); err != nil {
		return err
	}
	if err := m.files.openDisks(m.spec.Disks); err != nil {
		return err
	}
	console, monitorConsole, err := os.Pipe()
	if err != nil {
		return err
	}
	m.consolePipe = console
	m.files.console = m.files.add(monitorConsole)
	if m.stderrPipe, m.monitorStderr, err = os.Pipe(); err != nil {
		return err
	}
	if err := m.files.listen(m.spec.Dir); err != nil {
		return err
	}
	if m.spec.NIC != nil {
		m.files.tap = m.files.add(nil)
	}
	return nil
}

// jailed tells whether monitors get a mount namespace of their own, which takes root.
func jailed() bool { return os.Geteuid() == 0 }

// spawn starts the monitor and everything that accompanies it. When it fails, nothing runs.
func (m *machine) spawn(binary string, args []string, kvm bool) error {
	if jailed() && !jailable(binary) {
		return fmt.Errorf("%s is in none of /%s, which is all that a monitor can see", binary, strings.Join(jailDirs, ", /"))
	}
	started := make(chan error, 1)
	proceed := make(chan struct{})
	reaped := make(chan func())
	onOwnThread(func() {
		err := m.startHere(binary, args, kvm)
		started <- err
		if err != nil {
			return
		}
		// Not reaped before it is on record, so that its process id cannot be another's meanwhile.
		<-proceed
		// The thread stays: the kernel sends the parent-death signal when it, not the process, ends.
		state, err := m.process.Wait()
		reaped <- func() { m.finish(state, err) }
	})
	if err := <-started; err != nil {
		return err
	}
	// Not on that thread, which sees nothing of the host.
	go func() { (<-reaped)() }()
	m.closeInherited()
	m.output.follow(m.consolePipe, &m.console)
	m.output.follow(m.stderrPipe, &m.stderr)
	err := m.accompany()
	close(proceed)
	if err != nil {
		err = errors.Join(err, m.Kill())
		<-m.ended
	}
	return err
}

// startHere starts the process from the calling thread, which is in the machine's namespaces afterwards.
func (m *machine) startHere(binary string, args []string, kvm bool) error {
	devNull, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer devNull.Close()
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/bin:/bin", "LC_ALL=C"},
		Files: []*os.File{devNull, m.monitorStderr, m.monitorStderr},
		// A session of its own keeps a terminal's Ctrl-C away from the monitor.
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if err := m.enter(attr.Sys, kvm); err != nil {
		return err
	}
	attr.Files = append(attr.Files, m.files.inherited...)
	m.process, err = os.StartProcess(binary, append([]string{binary}, args...), attr)
	if err != nil {
		return fmt.Errorf("start %s: %w", binary, err)
	}
	return nil
}

// enter moves the calling thread to where the monitor is to be born, outermost first: after the jail, no
// file of the host is in reach.
func (m *machine) enter(sys *syscall.SysProcAttr, kvm bool) error {
	if m.group != nil {
		sys.CgroupFD, sys.UseCgroupFD = m.group.FD()
	}
	if m.spec.Netns != "" {
		if err := enterNetns(m.spec.Netns); err != nil {
			return err
		}
	}
	if m.spec.NIC != nil {
		tap, err := openTap(m.spec.NIC.Tap)
		if err != nil {
			return err
		}
		m.files.inherited[m.files.tap-firstFD] = tap
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if !jailed() {
		return nil
	}
	sys.Credential = &syscall.Credential{Uid: m.spec.UID, Gid: m.spec.GID}
	j := jail{
		dir: m.spec.Dir, uid: int(m.spec.UID), gid: int(m.spec.GID),
		kernel: m.spec.Kernel, initramfs: m.spec.Initramfs, kvm: kvm,
	}
	if err := j.enter(); err != nil {
		return fmt.Errorf("build the monitor's jail: %w", err)
	}
	return nil
}

// accompany does what needs the process to be there: limits, record, and reading what it says.
func (m *machine) accompany() (err error) {
	if m.record, err = vm.NewRecord("qemu", m.spec, m.process.Pid, time.Now()); err != nil {
		return fmt.Errorf("identify the monitor: %w", err)
	}
	if m.group != nil {
		if err := m.group.Add(m.process.Pid); err != nil {
			return err
		}
	}
	if !jailed() || canLimit() {
		if err := limitResources(m.process.Pid); err != nil {
			return err
		}
	}
	if err := offerToOOM(m.process.Pid); err != nil {
		return err
	}
	if err := m.record.Write(); err != nil {
		return fmt.Errorf("record the monitor: %w", err)
	}
	return nil
}

// closeInherited closes the caller's copies of what the monitor has, so that their other ends see its end.
func (m *machine) closeInherited() {
	if m.files != nil {
		m.files.close()
	}
	if m.monitorStderr != nil {
		m.monitorStderr.Close()
		m.monitorStderr = nil
	}
}

// finish records how the process ended and removes what was made for it.
func (m *machine) finish(state *os.ProcessState, waitErr error) {
	defer close(m.ended)
	m.output.wait()
	if waitErr != nil {
		m.log.Error("machine's process cannot be waited for", "error", waitErr)
		m.exit.Code = -1
	} else {
		m.exit.Code, m.exit.Signal = exitOf(state)
	}
	m.exit.Killed = m.exit.Signal == syscall.SIGKILL && m.killed.Load()
	m.exit.ConsoleTail, m.exit.Panic = m.console.Tail(), m.console.Panic()
	m.exit.Stderr = strings.TrimSpace(m.stderr.String())
	if m.group != nil && m.exit.Signal == syscall.SIGKILL && !m.exit.Killed {
		oom, err := m.group.OOMKilled()
		if err != nil {
			m.log.Warn("cgroup does not tell whether memory ran out", "error", err)
		}
		m.exit.OOM = oom
	}
	if m.spec.Console != "" {
		if err := os.WriteFile(m.spec.Console, []byte(m.exit.ConsoleTail), 0o600); err != nil {
			m.log.Warn("console is not kept", "error", err)
		}
	}
	m.cleanUp()
}

// cleanUp closes and removes what was made for the machine, once. The machine does not run.
func (m *machine) cleanUp() {
	m.cleaned.Do(m.remove)
}

func (m *machine) remove() {
	m.closeInherited()
	for _, pipe := range []*os.File{m.consolePipe, m.stderrPipe} {
		if pipe != nil {
			pipe.Close()
		}
	}
	if m.group != nil {
		if err := m.group.Remove(); err != nil {
			m.log.Warn("cgroup is left behind", "error", err)
		}
	}
	for _, ch := range vm.Channels() {
		if err := os.Remove(filepath.Join(m.spec.Dir, string(ch))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("socket is left behind", "error", err)
		}
	}
	if err := vm.RemoveRecord(m.spec.Dir); err != nil {
		m.log.Warn("record is left behind", "error", err)
	}
}

// Dial implements vm.Machine.
func (m *machine) Dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	select {
	case <-m.ended:
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.spec.ID, vm.ErrEnded)
	default:
	}
	path, done, err := shortPath(m.spec.Dir, string(ch))
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		// Nobody listens: the process has ended and is about to be reaped.
		err = vm.ErrEnded
	}
	if err != nil {
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.spec.ID, err)
	}
	return conn, nil
}

// Kill implements vm.Machine.
func (m *machine) Kill() error {
	m.killed.Store(true)
	if err := m.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill machine %s: %w", m.spec.ID, err)
	}
	return nil
}

// Wait implements vm.Machine.
func (m *machine) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-m.ended:
		return m.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

// PID implements vm.Machine.
func (m *machine) PID() int { return m.record.PID }

// Record implements vm.Machine.
func (m *machine) Record() vm.Record { return m.record }
