//go:build linux

package pid1

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	// endTimeout bounds each step between the end of the main process and the report.
	endTimeout = 2 * time.Second
)

// StartWorkload starts the process and everything that serves it.
func (b *Boot) StartWorkload() error {
	argv := slices.Concat(b.config.Process.Entrypoint, b.config.Process.Cmd)
	if len(argv) == 0 {
		return &execError{exitNotFound, "there is no command: neither image nor manifest has an entrypoint or a command", unix.ENOENT}
	}
	b.env = environment(slices.Concat(b.config.Process.Env, b.secretEnv), b.config.Hostname, b.user.home)
	b.workdir = path.Clean("/" + b.config.Process.WorkDir)
	if err := makeDir(b.workdir); err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	file, err := lookUp(argv[0], lookEnv(b.env, "PATH"), b.workdir, b.user)
	if err != nil {
		return err
	}
	b.processes = newProcesses(b.workload.fd)

	stdin, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer stdin.Close()
	stdoutReader, stdout, err := pipe(b.user)
	if err != nil {
		return err
	}
	defer stdout.Close()
	stderrReader, stderr, err := pipe(b.user)
	if err != nil {
		return err
	}
	defer stderr.Close()
	b.main, err = b.processes.start(command{
		path: file, argv: argv, env: b.env, dir: b.workdir, user: b.user, stdin: stdin, stdout: stdout, stderr: stderr,
	})
	if err != nil {
		return startError(file, err)
	}
	b.output.follow(guest.StreamStdout, stdoutReader)
	b.output.follow(guest.StreamStderr, stderrReader)
	return nil
}

// pipe makes a pipe for a process's output. The writer belongs to the process's user, so that it may open /dev/stdout
// anew. Only the reader does not block: the writer is the workload's to use, which expects a plain one.
func pipe(u user) (reader, writer *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	err = errors.Join(unix.SetNonblock(fds[0], true), unix.Fchown(fds[1], int(u.uid), int(u.gid)))
	reader, writer = os.NewFile(uintptr(fds[0]), "output"), os.NewFile(uintptr(fds[1]), "output")
	if err != nil {
		reader.Close()
		writer.Close()
		return nil, nil, err
	}
	return reader, writer, nil
}

// Supervise waits for the end of the workload, serves stops and health commands meanwhile, and returns when a host has
// the report.
func (b *Boot) Supervise() {
	if err := recovered(func() error { b.supervise(); return nil }); err != nil {
		b.crash(fmt.Errorf("supervise: %w", err))
	}
}

func (b *Boot) supervise() {
	if b.control == nil {
		return // nobody to talk to
	}
	if b.failed {
		b.control.awaitAck(nil)
		return
	}
	started := time.Now()
	b.mu.Lock()
	b.running = &runningWork{cgroup: b.workload, startedAt: started}
	b.mu.Unlock()
	oomBefore := guestOOMKills()
	b.output.commands.serve(b.launch) // the host may ask for one as soon as it knows
	b.control.start(guest.Started{PID: b.main.pid, StartedAt: started.UnixNano(), Marks: b.takeMarks()})
	trap("supervise")
	safely("exec", b.serveExecs)
	safely("secrets", b.serveBundles)
	safely("volumes", b.serveFreezes)
	safely("statistics", b.serveStats)
	safely("memory", b.endThrashing)

	e := oversee(&workload{b.processes, b.main, b.workload, &b.freezer}, b.main.status, b.stops.asked, b.config.Process.StopSignal)
	if b.crashing.Load() {
		select {} // this is the crash's doing, and the crash reports it
	}
	exit := e.report(b.workload.oomKills() > 0 || guestOOMKills() > oomBefore)
	if exit.OOM {
		exit.Victim = b.oomVictim()
	}
	exit.StartedAt, exit.ExitedAt = started.UnixNano(), time.Now().UnixNano()

	b.freezer.thawAll()
	// What the main process leaves behind ends with it, as in a container.
	if err := b.workload.killAll(); err != nil {
		logf(logError, "%v", err)
	}
	if err := b.workload.waitEmpty(endTimeout); err != nil {
		logf(logError, "end the workload: %v", err)
	}
	b.output.commands.finish(endTimeout)
	exit.LastLine = b.output.finish(endTimeout)
	if b.crashing.Load() {
		select {} // of what its output came through
	}
	b.control.report(exit)
	b.printReport(exit)
	b.control.awaitAck(nil)
	b.output.drain(time.Second)
}

// printReport puts the report on the console, for a host that lost the channel. The nonce, which the workload doesn't
// know, tells it from what a workload might print there.
func (b *Boot) printReport(exit guest.Exit) {
	body, err := json.Marshal(exit)
	if err != nil {
		return
	}
	fd, err := unix.Openat(b.devices, "console", unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return // no console: the VMM gave none
	}
	console := os.NewFile(uintptr(fd), "console")
	defer console.Close()
	fmt.Fprintf(console, "\n%s\n", guest.ConsoleLine(b.nonce, body))
}

// target is what oversee acts on.
type target interface {
	signal(sig syscall.Signal) error // to the main process
	killAll() error                  // everything
}

type workload struct {
	processes *processes
	main      *child
	cgroup    *cgroup
	freezer   *freezer
}

// A process that waits for a frozen volume takes no signal.

func (w *workload) signal(sig syscall.Signal) error {
	w.freezer.thawAll()
	return w.processes.signal(w.main, sig)
}

func (w *workload) killAll() error {
	w.freezer.thawAll()
	return w.cgroup.killAll()
}

// ending is how the workload ended.
type ending struct {
	status  syscall.WaitStatus
	stopped bool // it was asked to
	killed  bool // it did not within its time
}

// oversee waits for the status of the main process and carries out stops on the way: each sends its signal, and the
// earliest end of their times kills everything. Killing is repeated every second: a process can be created while the
// first kill is under way.
func oversee(t target, ended <-chan syscall.WaitStatus, stops <-chan guest.Stop, defaultSignal string) ending {
	var e ending
	var killAt time.Time
	kill := time.NewTimer(0)
	kill.Stop()
	defer kill.Stop()
	for {
		select {
		case e.status = <-ended:
			return e
		case stop := <-stops:
			e.stopped = true
			if err := t.signal(stopSignal(stop.Signal, defaultSignal)); err != nil {
				logf(logError, "stop the workload: %v", err)
			}
			at := time.Now().Add(time.Duration(max(stop.TimeoutMS, 0)) * time.Millisecond)
			if killAt.IsZero() || at.Before(killAt) {
				killAt = at
				kill.Reset(time.Until(at))
			}
		case <-kill.C:
			e.killed = true
			if err := t.killAll(); err != nil {
				logf(logError, "kill the workload: %v", err)
			}
			kill.Reset(time.Second)
		}
	}
}

// stopSignal reads the first of the names that is given; a wrong one is SIGTERM, because a stop must not fail.
func stopSignal(asked, configured string) syscall.Signal {
	if asked == "" {
		asked = configured
	}
	sig, err := parseSignal(asked)
	if err != nil {
		logf(logError, "stop signal: %v; SIGTERM instead", err)
		return unix.SIGTERM
	}
	return sig
}

// report makes the exit report, without times and log numbers. oomKill says that the OOM killer was at work; it ended
// the main process only when that died of SIGKILL without a stop's doing.
func (e ending) report(oomKill bool) guest.Exit {
	exit := guest.Exit{Stopped: e.stopped, Killed: e.killed}
	if !e.status.Signaled() {
		exit.Code = e.status.ExitStatus()
		return exit
	}
	sig := e.status.Signal()
	exit.Code = 128 + int(sig)
	exit.Signal = signalName(sig)
	exit.OOM = oomKill && sig == unix.SIGKILL && !e.killed
	return exit
}
