// Package guesttest plays the guest's end of the conversation with a host, as pinnace-init leads it, for a workload
// that a test programs. It is imported by tests only and boots nothing: whoever uses it brings the channels, such
// as those of the fake driver in internal/vm/vmtest.
package guesttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// A Workload is the programmable behaviour of a guest that speaks the protocol as pinnace-init does: hello, configuration, start, heartbeats, log lines, commands, report, reset. Its zero value is a
// process that runs until it is stopped and then exits with 0.
type Workload struct {
	// Silent guests never say hello.
	Silent bool
	// Slow lets the start of the process wait until it is closed.
	Slow <-chan struct{}
	// Fail, if set, is what the guest answers instead of starting the process.
	Fail *guest.Failed
	// Run is the process. It returns its exit code, when ctx ends at the latest: then the process was
	// signalled, and context.Cause(ctx) is a *StopCause. Nil runs until then and returns 0.
	Run func(ctx context.Context, p *Process) int
	// Stubborn processes ignore the stop signal; the guest kills them when the grace is over.
	Stubborn bool
	// Exec answers commands that run beside the process; nil answers all with code 0.
	Exec func(argv []string) guest.ExecResult
	// Command plays commands that somebody talks to, and returns their exit code; it ends when ctx does. Without it the
	// guest is one of an init that knows of no such thing.
	Command func(ctx context.Context, c *Command) int
	// Bundle answers a version of secrets that comes while the process runs, with why it can't be put in place, or "";
	// nil takes all of them.
	Bundle func(guest.Bundle) string
	// Freeze is called when the host wants a volume frozen or, with ForMS 0, a freeze to end. Its answer is the guest's,
	// but for the names. nil freezes everything until the host ends it.
	Freeze func(guest.Freeze) guest.Frozen
	// Heard, if set, is told of every Time and AskStats.
	Heard func(guest.Message)
	// NoReport lets the machine reset without an exit report.
	NoReport bool
	// Panic, if set, is the message of the kernel panic in which the machine ends instead of reporting.
	Panic string
	// OOM reports that the kernel killed the process because memory ran out, and Victim whom it chose; nil for not known.
	OOM    bool
	Victim *guest.Victim
}

// A Process is the fake process of a Workload.
type Process struct {
	// Config is what the host has configured, and Bundles are the secrets that came before it, by name.
	Config  guest.Config
	Bundles map[string]guest.Bundle

	session *session
}

// Log writes a line of output.
func (p *Process) Log(stream, text string) error {
	s := p.session
	s.logMu.Lock()
	defer s.logMu.Unlock()
	s.lines++
	line := guest.Line{Seq: s.lines, Time: time.Now().UnixNano(), Stream: stream, Data: []byte(text)}
	s.keptMu.Lock()
	s.kept = append(s.kept, line)
	s.keptMu.Unlock()
	return send(s.on.Logs, line)
}

// A StopCause is why a process' context ended.
type StopCause struct {
	Stop guest.Stop
}

func (c *StopCause) Error() string { return fmt.Sprintf("stopped by signal %q", c.Stop.Signal) }

// A Machine is what a guest has of its machine.
type Machine struct {
	Control, Logs io.ReadWriteCloser
	// Console gets the guest's complaints; nil drops them.
	Console io.Writer
	// MemoryBytes is what Hello tells.
	MemoryBytes int64
}

// Boot plays a guest on the machine until that resets, panics, or ctx ends because it was killed. It closes both
// channels and returns the message of the kernel panic in which the machine ended, or nothing.
func (w Workload) Boot(ctx context.Context, on Machine) (panicked string) {
	if on.Console == nil {
		on.Console = io.Discard
	}
	s := &session{on: on, w: w, config: make(chan guest.Config, 1), stops: make(chan guest.Stop, 4), acked: make(chan struct{}), commands: map[uint64]*command{}, bundles: map[string]guest.Bundle{}, frozen: map[string]bool{}}
	return s.run(ctx)
}

// session is one boot of the guest.
type session struct {
	on Machine
	w  Workload

	config chan guest.Config
	stops  chan guest.Stop
	acked  chan struct{} // closed by the first AckExit
	ackOne sync.Once

	bundles map[string]guest.Bundle // owned by readControl until the configuration has come
	frozen  map[string]bool         // owned by readControl: volumes, by name

	controlMu sync.Mutex      // held while a control frame is written; guards what follows
	said      []guest.Message // what a host that takes up the session has to hear again
	token     string          // of the last Attach

	logMu sync.Mutex // held while a log frame is written
	lines uint64     // guarded by logMu

	parts     *sync.WaitGroup // what run waits for
	commandMu sync.Mutex
	commands  map[uint64]*command // guarded by commandMu

	keptMu sync.Mutex
	kept   []guest.Line // guarded by keptMu: lines that no host has acknowledged
}

func (s *session) run(ctx context.Context) string {
	defer s.on.Control.Close()
	defer s.on.Logs.Close()
	if s.w.Silent {
		<-ctx.Done()
		return ""
	}
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	// Reading ends when the channels do.
	defer s.on.Control.Close()
	defer s.on.Logs.Close()
	defer cancel()
	s.parts = &parts
	parts.Go(s.readControl)
	parts.Go(func() { s.readLogs(ctx, &parts) })

	hello := guest.Hello{
		Version: guest.Version, Nonce: fmt.Sprintf("%032x", time.Now().UnixNano()), Init: "fake", Kernel: "fake",
		MemTotalBytes: s.on.MemoryBytes, Marks: []guest.Mark{{Name: "hello", MS: 1}},
		Can: []string{guest.CanVolumes, guest.CanSecrets, guest.CanAttend},
	}
	if s.w.Command != nil {
		hello.Can = append(hello.Can, guest.CanCommands)
	}
	s.sayAgain(hello)
	var config guest.Config
	select {
	case config = <-s.config:
	case <-ctx.Done():
		return ""
	}
	parts.Go(func() { s.heartbeat(ctx) })
	if s.w.Slow != nil {
		select {
		case <-s.w.Slow:
		case <-ctx.Done():
			return ""
		}
	}
	if s.w.Fail != nil {
		return s.report(ctx, *s.w.Fail)
	}
	started := time.Now()
	s.sayAgain(guest.Started{PID: 2, StartedAt: started.UnixNano(), Marks: []guest.Mark{{Name: "exec", MS: 2}}})
	exit := s.runProcess(ctx, &Process{Config: config, Bundles: s.bundles, session: s})
	switch {
	case ctx.Err() != nil, s.w.NoReport:
		return ""
	case s.w.Panic != "":
		return s.w.Panic
	}
	exit.StartedAt, exit.ExitedAt = started.UnixNano(), time.Now().UnixNano()
	return s.report(ctx, exit)
}

// runProcess runs the process and stops it when the host says so.
func (s *session) runProcess(ctx context.Context, p *Process) guest.Exit {
	running, signal := context.WithCancelCause(ctx)
	defer signal(nil)
	code := make(chan int, 1)
	go func() {
		if s.w.Run == nil {
			<-running.Done()
			code <- 0
			return
		}
		code <- s.w.Run(running, p)
	}()
	var exit guest.Exit
	var grace <-chan time.Time
	for {
		select {
		case exit.Code = <-code:
			exit.OOM = s.w.OOM
			exit.Victim = s.w.Victim
			if exit.OOM {
				exit.Code, exit.Signal = 128+int(syscall.SIGKILL), "SIGKILL"
			}
			s.logMu.Lock()
			exit.LastLine = s.lines
			s.logMu.Unlock()
			return exit
		case stop := <-s.stops:
			exit.Stopped = true
			if !s.w.Stubborn {
				signal(&StopCause{stop})
			}
			grace = time.After(time.Duration(stop.TimeoutMS) * time.Millisecond)
		case <-grace:
			signal(&StopCause{guest.Stop{Signal: "SIGKILL"}})
			<-code
			exit.Code, exit.Signal, exit.Killed = 128+int(syscall.SIGKILL), "SIGKILL", true
			return exit
		}
	}
}

// report sends m every second until the host has acknowledged it, and resets the machine.
func (s *session) report(ctx context.Context, m guest.Message) string {
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for first := true; ; first = false {
		if first {
			s.sayAgain(m)
		} else {
			s.say(m)
		}
		select {
		case <-s.acked:
			return ""
		case <-ctx.Done():
			return ""
		case <-again.C:
		}
	}
}

// readControl handles what the host says, until the machine is off.
func (s *session) readControl() {
	r := guest.NewRestartableReader(s.on.Control, guest.MaxHostFrame)
	configured := false
	for {
		t, body, err := r.Next()
		if err != nil {
			return
		}
		m, err := guest.Decode(t, body)
		if errors.Is(err, guest.ErrUnknownType) {
			continue
		}
		if err != nil {
			fmt.Fprintf(s.on.Console, "control channel: %v\r\n", err)
			return
		}
		switch m := m.(type) {
		case guest.Attach:
			s.attach(m)
		case guest.Bundle:
			if configured {
				s.say(s.bundle(m))
			} else {
				s.bundles[m.Name] = m
			}
		case guest.Freeze:
			s.say(s.freeze(m))
		case guest.Config:
			configured = true
			s.configured()
			offer(s.config, m)
		case guest.Time:
			s.heard(m)
			s.say(guest.Clock{ID: m.ID})
		case guest.AskStats:
			s.heard(m)
			s.say(guest.Stats{ID: m.ID, MemoryBytes: s.on.MemoryBytes / 2, MemoryMaxBytes: s.on.MemoryBytes, PIDs: 1})
		case guest.Stop:
			offer(s.stops, m)
		case guest.AckExit:
			s.ackOne.Do(func() { close(s.acked) })
		case guest.Exec:
			s.say(s.exec(m))
		}
	}
}

func (s *session) freeze(m guest.Freeze) guest.Frozen {
	answer := guest.Frozen{Whole: m.ForMS == 0 && s.frozen[m.Volume]}
	if s.w.Freeze != nil {
		answer = s.w.Freeze(m)
	}
	s.frozen[m.Volume] = m.ForMS > 0
	answer.ID, answer.Volume = m.ID, m.Volume
	return answer
}

func (s *session) bundle(m guest.Bundle) guest.Bundled {
	answer := guest.Bundled{Name: m.Name, Version: m.Version}
	if s.w.Bundle != nil {
		answer.Error = s.w.Bundle(m)
	}
	return answer
}

func (s *session) heard(m guest.Message) {
	if s.w.Heard != nil {
		s.w.Heard(m)
	}
}

func (s *session) exec(m guest.Exec) guest.ExecResult {
	var result guest.ExecResult
	if s.w.Exec != nil {
		result = s.w.Exec(m.Argv)
	}
	result.ID = m.ID
	return result
}

// offer hands v over, or drops it when nobody takes what came before.
func offer[T any](to chan<- T, v T) {
	select {
	case to <- v:
	default:
	}
}

func (s *session) heartbeat(ctx context.Context) {
	started := time.Now()
	tick := time.NewTicker(guest.HeartbeatInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.say(guest.Heartbeat{MS: time.Since(started).Milliseconds()})
		}
	}
}

// say sends a control message. An error means that the machine is off, which everybody learns from ctx.
func (s *session) say(m guest.Message) {
	s.controlMu.Lock()
	defer s.controlMu.Unlock()
	s.write(m)
}

// send writes one frame.
func send(to io.Writer, m guest.Message) error {
	frame, err := guest.Encode(nil, m)
	if err != nil {
		return err
	}
	_, err = to.Write(frame)
	return err
}

// readLogs takes acknowledgements, and the beginnings of further sessions.
func (s *session) readLogs(ctx context.Context, parts *sync.WaitGroup) {
	r := guest.NewRestartableReader(s.on.Logs, guest.MaxHostFrame)
	for {
		t, body, err := r.Next()
		if err != nil {
			return
		}
		m, err := guest.Decode(t, body)
		if err != nil {
			continue
		}
		switch m := m.(type) {
		case guest.Ack:
			s.forget(m.Seq)
		case guest.Resume:
			s.endCommands()
			s.forget(m.After)
			parts.Go(func() { s.sendKept(m.Token) })
		default:
			if s.w.Command != nil {
				s.handleCommand(ctx, m)
			}
		}
	}
}

func (s *session) forget(upTo uint64) {
	s.keptMu.Lock()
	defer s.keptMu.Unlock()
	for len(s.kept) > 0 && s.kept[0].Seq <= upTo {
		s.kept = s.kept[1:]
	}
}

// sendKept sends what no host has acknowledged to one that has taken up the session.
func (s *session) sendKept(token string) {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	s.keptMu.Lock()
	kept, next := slices.Clone(s.kept), s.lines+1
	s.keptMu.Unlock()
	if len(kept) > 0 {
		next = kept[0].Seq
	}
	frames, err := guest.Encode(guest.AppendRestart(nil), guest.Resumed{Token: token, Next: next})
	for _, line := range kept {
		if err == nil {
			frames, err = guest.Encode(frames, line)
		}
	}
	if err == nil {
		_, err = s.on.Logs.Write(frames)
	}
	if err != nil {
		fmt.Fprintf(s.on.Console, "log channel: %v\r\n", err)
	}
}

// sayAgain says what every session has to hear, this one and those to come.
func (s *session) sayAgain(m guest.Message) {
	s.controlMu.Lock()
	defer s.controlMu.Unlock()
	first := len(s.said) == 0
	s.said = append(s.said, m)
	if first && s.token != "" {
		s.introduce()
		return
	}
	s.write(m)
}

// configured notes that a configuration has come.
func (s *session) configured() {
	s.controlMu.Lock()
	defer s.controlMu.Unlock()
	for i, m := range s.said {
		if hello, ok := m.(guest.Hello); ok {
			hello.Configured = true
			s.said[i] = hello
		}
	}
}

// attach begins the session of another host.
func (s *session) attach(a guest.Attach) {
	s.controlMu.Lock()
	defer s.controlMu.Unlock()
	s.token = a.Token
	if len(s.said) > 0 {
		s.introduce()
	}
}

// introduce is called with controlMu held.
func (s *session) introduce() {
	if _, err := s.on.Control.Write(guest.AppendRestart(nil)); err != nil {
		return // the machine is off
	}
	for _, m := range s.said {
		if hello, ok := m.(guest.Hello); ok {
			hello.Token = s.token
			m = hello
		}
		s.write(m)
	}
}

// write is called with controlMu held.
func (s *session) write(m guest.Message) {
	if err := send(s.on.Control, m); err != nil {
		fmt.Fprintf(s.on.Console, "control channel: %v\r\n", err)
	}
}
