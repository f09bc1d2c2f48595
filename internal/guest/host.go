package guest

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// HeartbeatInterval is how often a guest says that it lives.
const HeartbeatInterval = time.Second

// Conn is what Host needs of a net.Conn.
type Conn interface {
	io.ReadWriteCloser
	SetWriteDeadline(t time.Time) error
}

// Options of a Host. The zero value is good for everything but Logs.
type Options struct {
	// Logs gets every line in the order of its number, from one goroutine: those together that have come together, at
	// least one. They are acknowledged to the guest after Logs returned nil, and the guest then forgets them: return nil
	// when they are safe. An error ends the session. Their data are valid until Logs returns. nil throws lines away.
	Logs func([]Line) error
	// Resume goes on with a guest that an earlier session has met or was about to meet, which has ended somewhere,
	// perhaps within a frame. What the guest says to that session still is not heard; it says again what counts.
	Resume bool
	// Nonce, when it is not empty, is that of the boot to go on with: the Hello of another ends the session.
	Nonce string
	// AfterLine is the number of the last line that an earlier session of the same boot kept.
	AfterLine uint64
	// HeartbeatTimeout ends the session when the guest, once it has said hello, is silent for so long. Default 30 s: an
	// emulated guest on a busy host can be far behind.
	HeartbeatTimeout time.Duration
	// LogBytesPerSecond bounds how fast log frames are read; the guest's writers wait. Default 8 MiB.
	LogBytesPerSecond int
	// ControlFramesPerSecond bounds how fast control frames are read. Default 50: a heartbeat and the answers to probes
	// are a few.
	ControlFramesPerSecond int
}

// Errors that end a session or say that it has ended.
var (
	ErrSilent   = errors.New("the guest stopped sending heartbeats")
	ErrProtocol = errors.New("the guest broke the protocol")
	ErrClosed   = errors.New("the session with the guest is closed")
)

// StartError says that PID 1 could not start the workload.
type StartError struct {
	Stage   string // the step that failed; "exec" when it is the workload's own command
	Message string
	Errno   string // name such as "ENOENT", or ""
	Code    int    // 125, 126 or 127, as Docker and shells report it
	Marks   []Mark
}

func (e *StartError) Error() string { return fmt.Sprintf("start workload: %s: %s", e.Stage, e.Message) }

const (
	writeTimeout   = 10 * time.Second // of one frame: a guest's init always reads
	execGrace      = 5 * time.Second  // for the answer to an Exec after its own time is up
	maxExecPending = 16
	drainTimeout   = 3 * time.Second // for the last lines, once the exit report is here
)

// Host is the host's end of the conversation with one boot of one VM. Run must be running for the other methods to get
// anywhere; they may all be called concurrently.
type Host struct {
	opts    Options
	control Conn
	logs    Conn
	token   string // of this session, when it goes on with another

	helloc   chan struct{} // closed when hello is set
	startc   chan struct{} // closed when started or failed is set
	exitc    chan Exit     // gets the report, once
	exited   chan struct{} // closed with it
	done     chan struct{} // closed when the session is over
	beat     chan struct{} // something came on the control channel
	lineKept chan struct{} // lastLine has moved
	drained  chan struct{} // closed when the line that the exit report names as the last has been kept
	// logsReady is closed when the log channel is this session's.
	logsReady chan struct{}

	writeMu sync.Mutex // held while a control frame is written
	logsMu  sync.Mutex // held while a log frame is written

	mu        sync.Mutex // guards what follows
	hello     *Hello
	started   *Started
	failed    *Failed
	exit      *Exit
	lastLine  uint64
	isDrained bool
	nextExec  uint64
	execs     map[uint64]chan ExecResult
	bundles   map[bundleKey]chan Bundled
	freezes   map[uint64]chan Frozen
	commands  map[uint64]*hostCommand
	asked     map[uint64]chan Message // questions without an answer yet
	err       error                   // why the session is over
}

// NewHost makes the host's end from the two channels of a VM. The Host owns them: Run closes both.
func NewHost(control, logs Conn, opts Options) *Host {
	if opts.HeartbeatTimeout == 0 {
		opts.HeartbeatTimeout = 30 * time.Second
	}
	if opts.LogBytesPerSecond == 0 {
		opts.LogBytesPerSecond = 8 << 20
	}
	if opts.ControlFramesPerSecond == 0 {
		opts.ControlFramesPerSecond = 50
	}
	if opts.Logs == nil {
		opts.Logs = func([]Line) error { return nil }
	}
	seed := newSeed()
	return &Host{
		opts: opts, token: hex.EncodeToString(seed[:16]),
		// Answers to commands of an earlier session must not be taken for those of this one.
		nextExec: uint64(binary.BigEndian.Uint32(seed[16:])) << 24,
		control:  control, logs: logs, lastLine: opts.AfterLine,
		helloc: make(chan struct{}), startc: make(chan struct{}), exitc: make(chan Exit, 1), exited: make(chan struct{}),
		done: make(chan struct{}), beat: make(chan struct{}, 1), lineKept: make(chan struct{}, 1), drained: make(chan struct{}),
		logsReady: make(chan struct{}), execs: map[uint64]chan ExecResult{}, bundles: map[bundleKey]chan Bundled{}, freezes: map[uint64]chan Frozen{},
		commands: map[uint64]*hostCommand{}, asked: map[uint64]chan Message{},
	}
}

// Run serves the session until ctx is done, a channel ends or the guest breaks a rule, closes both channels, and
// returns why. It never returns nil: io.EOF means that the guest's end went away, which is what the orderly end of a VM
// looks like.
func (h *Host) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var parts sync.WaitGroup
	all := []func(context.Context) error{h.readControl, h.followLogs, h.sendAcks, h.watchHeartbeat}
	if h.opts.Resume {
		all = append(all, h.attach(h.control, Attach{Version: Version, Token: h.token}),
			h.attach(h.logs, Resume{Token: h.token, After: h.opts.AfterLine}))
	}
	for _, part := range all {
		parts.Go(func() { cancel(part(ctx)) })
	}
	<-ctx.Done()
	err := context.Cause(ctx)
	h.mu.Lock()
	h.err = err
	h.mu.Unlock()
	close(h.done)
	_ = h.control.Close() // unblocks the readers; what a close has to say does not matter any more
	_ = h.logs.Close()
	parts.Wait()
	return err
}

// attach begins a session on a channel that had another. The guest may yet have to boot or to connect, so that this has
// no deadline but the caller's for the Hello.
func (h *Host) attach(to Conn, first Message) func(context.Context) error {
	return func(ctx context.Context) error {
		frame, err := Encode(AppendRestart(nil), first)
		if err != nil {
			return err
		}
		if _, err := to.Write(frame); err != nil {
			return fmt.Errorf("take up the session with the guest: %w", err)
		}
		<-ctx.Done()
		return context.Cause(ctx)
	}
}

// followLogs reads the log channel. When both channels end at once, what is still in the control channel, such
// as the exit report, is more than the end of the logs: it gets a moment to be read.
func (h *Host) followLogs(ctx context.Context) error {
	err := h.readLogs(ctx)
	if errors.Is(err, io.EOF) {
		late := time.NewTimer(time.Second)
		defer late.Stop()
		select {
		case <-late.C:
		case <-ctx.Done():
		}
	}
	return err
}

// Done is closed when the session is over.
func (h *Host) Done() <-chan struct{} { return h.done }

// Hello waits for the guest's first word.
func (h *Host) Hello(ctx context.Context) (Hello, error) {
	if err := h.wait(ctx, h.helloc); err != nil {
		return Hello{}, fmt.Errorf("wait for the guest's hello: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return *h.hello, nil
}

// Configure sends the bundles and the configuration, unless the guest has one from an earlier session, and waits until the workload's
// process runs. It fills in Nonce, and Now and Entropy when they are empty. A workload that can't be started is a
// *StartError.
func (h *Host) Configure(ctx context.Context, c Config, bundles ...Bundle) (Started, error) {
	hello, err := h.Hello(ctx)
	if err != nil {
		return Started{}, err
	}
	if err := unable(hello, c); err != nil && !hello.Configured {
		return Started{}, err
	}
	c.Nonce = hello.Nonce
	if c.Now == 0 {
		c.Now = time.Now().UnixNano()
	}
	if len(c.Entropy) == 0 {
		c.Entropy = newSeed()
	}
	if !hello.Configured {
		for _, b := range bundles {
			if err := h.send(b); err != nil {
				return Started{}, err
			}
		}
		if err := h.send(c); err != nil {
			return Started{}, err
		}
	}
	if err := h.wait(ctx, h.startc); err != nil {
		return Started{}, fmt.Errorf("wait for the workload's start: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.failed; f != nil {
		return Started{}, &StartError{Stage: f.Stage, Message: f.Error, Errno: f.Errno, Code: f.Code, Marks: f.Marks}
	}
	return *h.started, nil
}

// Stop asks the guest to end the workload: signal ("" for the configured one), and SIGKILL for what is left after
// timeout. It returns when the exit report has come; calling it again sends another signal and shortens the time.
// Without a report at timeout and five seconds the error is context.DeadlineExceeded: kill the VM then.
func (h *Host) Stop(ctx context.Context, signal string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+5*time.Second)
	defer cancel()
	if err := h.send(Stop{Signal: signal, TimeoutMS: timeout.Milliseconds()}); err != nil {
		return err
	}
	if err := h.wait(ctx, h.exited); err != nil {
		return fmt.Errorf("wait for the workload's end: %w", err)
	}
	return nil
}

// Exec runs argv in the guest as the workload's user, in its directory and with its environment, and kills it after
// timeout. A command that can't be started is a result with code 126 or 127, not an error.
func (h *Host) Exec(ctx context.Context, argv []string, timeout time.Duration) (ExecResult, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout+execGrace)
	defer cancel()
	answer := make(chan ExecResult, 1)
	h.mu.Lock()
	if len(h.execs) >= maxExecPending {
		h.mu.Unlock()
		return ExecResult{}, fmt.Errorf("run %q in the guest: %d commands are running there already", argv, maxExecPending)
	}
	h.nextExec++
	id := h.nextExec
	h.execs[id] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.execs, id)
		h.mu.Unlock()
	}()

	if err := h.send(Exec{ID: id, Argv: argv, TimeoutMS: timeout.Milliseconds()}); err != nil {
		return ExecResult{}, err
	}
	select {
	case r := <-answer:
		return r, nil
	case <-ctx.Done():
		return ExecResult{}, fmt.Errorf("run %q in the guest: %w", argv, context.Cause(ctx))
	case <-h.done:
		return ExecResult{}, fmt.Errorf("run %q in the guest: %w", argv, h.closedErr())
	}
}

// Exit gets the report of the workload's end, once. It gets nothing when the VM ends without one, which never is a
// success: watch Done as well.
func (h *Host) Exit() <-chan Exit { return h.exitc }

// LastLine is the number of the last line that was kept.
func (h *Host) LastLine() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lastLine
}

// AckExit lets the guest shut down: it has reported an Exit or a Failed and the host has made that durable. Before, it
// waits some seconds at most for the last log lines.
func (h *Host) AckExit(ctx context.Context) error {
	select {
	case <-h.exited:
		late := time.NewTimer(drainTimeout)
		defer late.Stop()
		select {
		case <-h.drained:
		case <-late.C:
		case <-ctx.Done():
		case <-h.done:
		}
	default:
	}
	return h.send(AckExit{})
}

// wait for what closes event, for ctx or for the end of the session. What has happened already wins.
func (h *Host) wait(ctx context.Context, event <-chan struct{}) error {
	select {
	case <-event:
		return nil
	default:
	}
	select {
	case <-event:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-h.done:
		select {
		case <-event:
			return nil
		default:
			return h.closedErr()
		}
	}
}

func (h *Host) closedErr() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return fmt.Errorf("%w: %w", ErrClosed, h.err)
}

// send writes one control frame. When it fails the stream may end within a frame, so that nothing can follow: the
// channel is closed.
func (h *Host) send(m Message) error {
	frame, err := Encode(nil, m)
	if err != nil {
		return err
	}
	h.writeMu.Lock()
	defer h.writeMu.Unlock()
	if err := writeFrame(h.control, frame); err != nil {
		select {
		case <-h.done:
			return h.closedErr()
		default:
		}
		_ = h.control.Close() // Run finds out and says why
		return fmt.Errorf("send %T to the guest: %w", m, err)
	}
	return nil
}

func writeFrame(c Conn, frame []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.Write(frame)
	return err
}
