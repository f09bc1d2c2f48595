package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

// A machine is one Firecracker process in its jail. It owns the goroutines that wait for the process, read what it
// prints, accept its guest's connections and clean up; all of them end with the process.
type machine struct {
	spec     vm.Spec
	log      *slog.Logger
	jail     *jail         // nil until made
	group    *cgroup.Group // nil: none
	channels map[vm.Channel]*channel

	// What the monitor writes to, and what was read from it. Writers keep the readers from seeing an end before the
	// monitor has opened its side; they are closed when it has ended.
	readers, writers []*os.File
	output           output
	console          vm.Console
	metrics          vm.Console
	complaints       head
	monitorStderr    *os.File // the monitor's end, until it has it

	process *os.Process
	record  vm.Record
	killed  atomic.Bool

	// ended is closed when the process is reaped and everything is cleaned up; exit is set before.
	ended   chan struct{}
	exit    vm.Exit
	cleaned sync.Once
}

var _ vm.Machine = (*machine)(nil)

// open opens the host's ends of everything that the monitor will use.
func (m *machine) open() error {
	for name, to := range map[string]interface{ Write([]byte) (int, error) }{
		jailConsole: &m.console, jailLog: &m.complaints, jailMetrics: &m.metrics,
	} {
		reader, writer, err := m.jail.open(name)
		if err != nil {
			return fmt.Errorf("open %s in the jail: %w", name, err)
		}
		m.readers, m.writers = append(m.readers, reader), append(m.writers, writer)
		m.output.follow(reader, to)
	}
	stderr, monitorStderr, err := os.Pipe()
	if err != nil {
		return err
	}
	m.monitorStderr = monitorStderr
	m.readers = append(m.readers, stderr)
	m.output.follow(stderr, &m.complaints)
	m.channels = map[vm.Channel]*channel{}
	for _, ch := range vm.Channels() {
		if m.channels[ch], err = m.jail.listen(ch, m.spec); err != nil {
			delete(m.channels, ch)
			return err
		}
	}
	return nil
}

// spawn starts the jailer, which becomes the monitor. When it fails, nothing runs.
func (m *machine) spawn(h *host, base string) error {
	devNull, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer devNull.Close()
	cgroupVersion := 0
	// A session of its own keeps a terminal's Ctrl-C away from the monitor.
	sys := &syscall.SysProcAttr{Setsid: true}
	if m.group != nil {
		cgroupVersion = h.hierarchy.Version
		sys.CgroupFD, sys.UseCgroupFD = m.group.FD()
	}
	args := append([]string{h.jailer}, jailerArguments(base, h.binary, m.jail.id, m.spec, cgroupVersion)...)
	m.process, err = os.StartProcess(h.jailer, args, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{devNull, m.monitorStderr, m.monitorStderr}, Sys: sys,
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", h.jailer, err)
	}
	m.closeStderr()
	// Not reaped before it is on record, so that its process id cannot be another's meanwhile.
	err = m.accompany()
	go m.finish()
	if err != nil {
		return m.abandon(err)
	}
	return nil
}

// abandon ends a machine that is of no use, and says why.
func (m *machine) abandon(why error) error {
	select {
	case <-m.ended:
	default:
		why = errors.Join(why, m.Kill())
		<-m.ended
	}
	if m.exit.Stderr != "" {
		why = fmt.Errorf("%w; it said: %s", why, m.exit.Stderr)
	}
	return why
}

// accompany does what needs the process to be there. The guest does not run yet.
func (m *machine) accompany() (err error) {
	pid := m.process.Pid
	if m.record, err = vm.NewRecord(driverName, m.spec, pid, time.Now()); err != nil {
		return fmt.Errorf("identify the monitor: %w", err)
	}
	if m.group != nil {
		if err := m.group.Add(pid); err != nil {
			return err
		}
	}
	// A core would hold the guest's memory. Without the capability this works only while the jailer has not yet
	// changed its identity; Probe has told of that.
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil); err != nil && canLimit() {
		return fmt.Errorf("limit the monitor's resources: %w", err)
	}
	// The monitor is a better choice for the host's OOM killer than the agent.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("300"), 0); err != nil {
		return fmt.Errorf("make the monitor the first to be killed: %w", err)
	}
	if err := m.record.Write(); err != nil {
		return fmt.Errorf("record the monitor: %w", err)
	}
	return nil
}

// configure tells the monitor what to run. When it returns nil, the guest runs.
func (m *machine) configure(ctx context.Context) error {
	if n := commandLineLength(len(m.spec.Disks) + otherDevices); n > maxCommandLine {
		return fmt.Errorf("the kernel's command line may grow to %d bytes, and Firecracker takes %d", n, maxCommandLine)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	configured := make(chan struct{})
	defer close(configured)
	go func() {
		select {
		case <-m.ended:
			cancel(errors.New("the monitor ended before the guest ran: " + m.exit.String()))
		case <-configured:
		}
	}()
	if err := m.awaitAPI(ctx); err != nil {
		return fmt.Errorf("wait for firecracker's API: %w", err)
	}
	a := newAPI(m.dialAPI)
	defer a.close()
	for _, r := range requests(m.spec) {
		if err := a.put(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// awaitAPI waits until the monitor takes connections.
func (m *machine) awaitAPI(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		conn, err := m.dialAPI(ctx)
		if err == nil {
			return conn.Close()
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// dialAPI connects to the monitor. It is used only before the guest runs, when nobody hostile can have put anything
// in the socket's place.
func (m *machine) dialAPI(ctx context.Context) (net.Conn, error) {
	path, done, err := m.jail.socket(jailAPI)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

func (m *machine) closeStderr() {
	if m.monitorStderr != nil {
		m.monitorStderr.Close()
		m.monitorStderr = nil
	}
}

// finish waits for the process, records how it ended and removes what was made for it.
func (m *machine) finish() {
	defer close(m.ended)
	state, err := m.process.Wait()
	m.drain()
	if err != nil {
		m.log.Error("machine's process cannot be waited for", "error", err)
		m.exit.Code = -1
	} else {
		m.exit.Code, m.exit.Signal = exitOf(state)
	}
	m.exit.Killed = m.exit.Signal == syscall.SIGKILL && m.killed.Load()
	m.exit.ConsoleTail, m.exit.Panic = m.console.Tail(), m.console.Panic()
	m.exit.Stderr = strings.TrimSpace(m.complaints.String())
	if m.exit.Signal == syscall.SIGKILL && !m.exit.Killed && m.group != nil {
		oom, err := m.group.OOMKilled()
		if err != nil {
			m.log.Warn("cgroup does not tell whether memory ran out", "error", err)
		}
		m.exit.OOM = oom
	}
	if m.exit.Code > 0 || (m.exit.Signal != 0 && !m.exit.Killed) {
		m.log.Debug("monitor failed", "exit", m.exit.String(), "metrics", lastLine(m.metrics.Tail()))
	}
	if m.spec.Console != "" {
		if err := os.WriteFile(m.spec.Console, []byte(m.exit.ConsoleTail), 0o600); err != nil {
			m.log.Warn("console is not kept", "error", err)
		}
	}
	m.cleanUp()
}

// drain reads what is left of the monitor's output.
func (m *machine) drain() {
	m.closeStderr()
	for _, w := range m.writers {
		w.Close()
	}
	m.writers = nil
	m.output.wait()
}

// lastLine is the last whole set of metrics; the one after it may be cut off.
func lastLine(text string) string {
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-2)]
}

func exitOf(state *os.ProcessState) (code int, signal syscall.Signal) {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return -1, status.Signal()
	}
	return state.ExitCode(), 0
}

// cleanUp closes and removes what was made for the machine, once. The machine does not run.
func (m *machine) cleanUp() {
	m.cleaned.Do(m.remove)
}

func (m *machine) remove() {
	for _, c := range m.channels {
		c.close()
	}
	m.drain()
	for _, r := range m.readers {
		r.Close()
	}
	if m.group != nil {
		if err := m.group.Remove(); err != nil {
			m.log.Warn("cgroup is left behind", "error", err)
		}
	}
	if m.jail != nil {
		if err := m.jail.remove(); err != nil {
			m.log.Warn("jail is left behind", "error", err)
		}
	}
	if err := vm.RemoveRecord(m.spec.Dir); err != nil {
		m.log.Warn("record is left behind", "error", err)
	}
}

// Dial implements vm.Machine. Writing waits until the guest has connected.
func (m *machine) Dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	conn, err := m.dial(ctx, ch)
	if err != nil {
		return nil, fmt.Errorf("dial channel %s of machine %s: %w", ch, m.spec.ID, err)
	}
	return conn, nil
}

func (m *machine) dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, ok := m.channels[ch]
	if !ok {
		return nil, errors.New("there is no such channel")
	}
	return c.dial()
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

// PID implements vm.Machine. The jailer becomes the monitor, so that it is the same throughout.
func (m *machine) PID() int { return m.record.PID }

// Record implements vm.Machine.
func (m *machine) Record() vm.Record { return m.record }
