// Package monitor runs the process of a machine's monitor for drivers, in such a way that it outlives the caller: a
// holder starts it and sees its end (package holder), a record names it, and a later process of the program takes it
// over by that. What a monitor is told to run, and what it may see, is the drivers' business.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
)

const (
	// startTimeout bounds how long a holder may take to start the monitor.
	startTimeout = 20 * time.Second
	// holderGrace is how long a holder may take to write down the end of a monitor.
	holderGrace = 5 * time.Second
	// oomScore makes a monitor a better choice for the host's OOM killer than the agent.
	oomScore = "300"
)

// A Monitor is the process of one machine's monitor, with its holder. It implements what is the same in every
// vm.Machine.
type Monitor struct {
	record vm.Record
	log    *slog.Logger
	group  *cgroup.Group // nil: none
	// remove removes what the driver made for the machine, and release closes what this process has of it.
	remove, release func()

	holder *vm.Process // nil: it has ended
	child  *os.Process // the holder, when it is this process's child
	proc   *vm.Process // the monitor; nil: it has ended
	pid    int
	killed atomic.Bool

	ctx    context.Context // of the goroutine that waits; Release ends it
	cancel context.CancelFunc
	waited sync.WaitGroup
	ended  chan struct{} // closed when everything is over and cleaned up
	exit   vm.Exit       // set before ended is closed
}

// Options say whose a monitor is.
type Options struct {
	Log   *slog.Logger
	Group *cgroup.Group // that the monitor is in, or nil. The Monitor owns it.
	// Remove removes what the driver has made for the machine. It is called once, when the monitor has ended.
	Remove func()
	// Release closes what this process has open of the machine. It is called once: before Remove, or instead.
	Release func()
}

// Run lets a holder that was prepared start the monitor of spec's machine, after the record of it is durable. limit,
// when not nil, is called with the holder's process id before that: what it sets, the monitor inherits. When it fails,
// nothing runs, and neither Remove nor Release is called.
func (p *Pending) Run(driver, jail string, spec vm.Spec, o Options, limit func(pid int) error) (_ *Monitor, err error) {
	defer func() {
		if err != nil {
			p.abandon()
		}
	}()
	record, err := vm.NewRecord(driver, spec, p.process.Pid, time.Now())
	if err != nil {
		return nil, fmt.Errorf("identify the monitor's holder: %w", err)
	}
	record.Jail = jail
	m := newMonitor(record, o)
	m.child = p.process
	if o.Group != nil {
		if err := o.Group.Add(p.process.Pid); err != nil {
			return nil, err
		}
	}
	if limit != nil {
		if err := limit(p.process.Pid); err != nil {
			return nil, err
		}
	}
	if m.holder, err = vm.OpenChild(p.process.Pid); err != nil {
		return nil, err
	}
	if err := record.Write(); err != nil {
		m.holder.Close()
		return nil, fmt.Errorf("record the machine: %w", err)
	}
	if m.pid, err = p.start(); err == nil {
		m.proc, err = record.Monitor(m.holder)
	}
	if err == nil && m.proc != nil {
		err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", m.pid), []byte(oomScore), 0)
		if errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrNotExist) {
			err = nil // it has ended already, which Wait tells
		}
	}
	if err != nil {
		if m.proc != nil {
			err = errors.Join(err, m.proc.Kill())
			m.proc.Close()
		}
		p.abandon()
		m.holder.Close()
		return nil, errors.Join(err, vm.RemoveRecord(spec.Dir))
	}
	_ = p.control.Close() // it has nothing more to say
	m.watch()
	return m, nil
}

func newMonitor(r vm.Record, o Options) *Monitor {
	ctx, cancel := context.WithCancel(context.Background())
	return &Monitor{
		record: r, log: o.Log, group: o.Group, remove: o.Remove, release: o.Release,
		ctx: ctx, cancel: cancel, ended: make(chan struct{}),
	}
}

// Adopt takes over the monitor of a record. It returns nothing but an error that wraps vm.ErrNotOurs unless the holder
// that the record names runs, or has left how the monitor ended. After an error o's functions were not called.
func Adopt(r vm.Record, o Options) (*Monitor, error) {
	m := newMonitor(r, o)
	var err error
	if m.holder, err = r.Holder(); err != nil {
		return nil, err
	}
	if m.holder == nil {
		return m, m.adoptEnded()
	}
	result := r.Result()
	if m.pid = result.PID; m.pid == 0 {
		// Nobody waits for its monitor: it ends by itself, or has not got as far.
		m.holder.Close()
		return nil, fmt.Errorf("%w: its monitor was not started", vm.ErrNotOurs)
	}
	if m.proc, err = r.Monitor(m.holder); err != nil {
		m.holder.Close()
		return nil, err
	}
	m.openGroup()
	m.watch()
	return m, nil
}

// adoptEnded is for a machine whose holder is gone.
func (m *Monitor) adoptEnded() error {
	boot, err := vm.HostBootID()
	if err != nil {
		return err
	}
	result := m.record.Result()
	if m.pid = result.PID; m.record.BootID != boot || m.pid == 0 {
		return vm.ErrNotOurs
	}
	m.openGroup()
	m.watch()
	return nil
}

func (m *Monitor) openGroup() {
	if m.group != nil || m.record.Cgroup == "" {
		return
	}
	h, err := cgroup.Find()
	if err == nil {
		m.group, err = h.Open(m.record.Cgroup)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, cgroup.ErrUnsupported) {
		m.log.Warn("cgroup of an adopted machine cannot be used", "error", err)
	}
}

// watch waits for the end in a goroutine of its own.
func (m *Monitor) watch() {
	m.waited.Go(func() {
		if m.holder != nil {
			if err := m.holder.Wait(m.ctx); err != nil && m.ctx.Err() == nil {
				m.log.Error("machine's holder cannot be waited for", "error", err)
			}
		}
		if m.ctx.Err() != nil {
			return // released
		}
		m.finish()
	})
}

// finish notes how the monitor ended and removes what was made for it.
func (m *Monitor) finish() {
	defer close(m.ended)
	if m.child != nil {
		if _, err := m.child.Wait(); err != nil {
			m.log.Warn("machine's holder cannot be reaped", "error", err)
		}
	}
	m.endOrphan()
	m.exit = m.howItEnded()
	if m.record.Console != "" {
		if err := os.WriteFile(m.record.Console, []byte(m.exit.ConsoleTail), 0o600); err != nil {
			m.log.Warn("console is not kept", "error", err)
		}
	}
	m.closeAll()
	m.remove()
	if m.group != nil {
		if err := m.group.Remove(); err != nil {
			m.log.Warn("cgroup is left behind", "error", err)
		}
	}
	if err := vm.RemoveRecord(m.record.Dir); err != nil {
		m.log.Warn("record is left behind", "error", err)
	}
}

// endOrphan ends a monitor whose holder ended before it, which somebody must have killed.
func (m *Monitor) endOrphan() {
	if m.proc == nil {
		return
	}
	if err := m.proc.Kill(); err != nil {
		m.log.Error("monitor without a holder cannot be killed", "error", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), holderGrace)
	defer cancel()
	if err := m.proc.Wait(ctx); err != nil {
		m.log.Error("monitor without a holder does not end", "error", err)
	}
}

func (m *Monitor) howItEnded() vm.Exit {
	result := m.record.Result()
	if !result.Ended {
		return m.blame(vm.Exit{Code: -1, Unknown: true, Killed: m.killed.Load()})
	}
	var console vm.Console
	_, _ = console.Write([]byte(result.Console)) // never fails
	return m.blame(vm.Exit{
		Code: result.Code, Signal: syscall.Signal(result.Signal),
		Killed:      syscall.Signal(result.Signal) == syscall.SIGKILL && m.killed.Load(),
		ConsoleTail: console.Tail(), Panic: console.Panic(), Stderr: trim(result.Complaints),
	})
}

// blame finds out whether memory ran out, which looks like any other kill.
func (m *Monitor) blame(exit vm.Exit) vm.Exit {
	if m.group == nil || exit.Killed || (exit.Signal != syscall.SIGKILL && !exit.Unknown) {
		return exit
	}
	oom, err := m.group.OOMKilled()
	if err != nil {
		m.log.Warn("cgroup does not tell whether memory ran out", "error", err)
	}
	exit.OOM = oom
	return exit
}

func (m *Monitor) closeAll() {
	m.release()
	if m.holder != nil {
		m.holder.Close()
	}
	if m.proc != nil {
		m.proc.Close()
	}
}

// Ended is closed when the monitor has ended and everything is cleaned up.
func (m *Monitor) Ended() <-chan struct{} { return m.ended }

// Kill is that of vm.Machine.
func (m *Monitor) Kill() error {
	select {
	case <-m.ended:
		return nil
	default:
	}
	m.killed.Store(true)
	victim := m.proc
	if victim == nil {
		victim = m.holder
	}
	if victim == nil {
		return nil
	}
	if err := victim.Kill(); err != nil {
		return fmt.Errorf("kill machine %s: %w", m.record.ID, err)
	}
	return nil
}

// Wait is that of vm.Machine.
func (m *Monitor) Wait(ctx context.Context) (vm.Exit, error) {
	select {
	case <-m.ended:
		return m.exit, nil
	case <-ctx.Done():
		return vm.Exit{}, ctx.Err()
	}
}

// PID is that of vm.Machine.
func (m *Monitor) PID() int { return m.pid }

// Record is that of vm.Machine.
func (m *Monitor) Record() vm.Record { return m.record }

// Release is that of vm.Machine.
func (m *Monitor) Release() {
	m.cancel()
	m.waited.Wait()
	select {
	case <-m.ended:
		return // it ended before it could be let go of
	default:
	}
	m.closeAll()
	if m.group != nil {
		m.group.Close()
	}
}
