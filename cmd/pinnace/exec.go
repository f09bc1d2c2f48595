package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/guest"
)

// The exit status of exec is that of the command, so Pinnace's own are out of the way of those: what timeout(1), env(1)
// and shells use.
const (
	exitExecTimedOut = 124
	exitExecFailed   = 125
)

// execOptions are what to run, and how.
type execOptions struct {
	stdin, tty    bool
	user, workdir string
	env           []string
	timeout       time.Duration
}

func (c *cli) newExec() *cobra.Command {
	var opts execOptions
	cmd := &cobra.Command{
		Use:   "exec [-it] INSTANCE|APP -- COMMAND [ARG...]",
		Short: "Run a command in an instance, beside its workload",
		Long: `Exec runs a command in the microVM of an instance: as the workload's user, in its directory, with its
environment and within its limits. With the name of an app it takes the first of its instances that
runs. Flags of exec come before INSTANCE.

With -t the command has a terminal: every key goes to it, Ctrl-C included. Without, bytes pass
unchanged in both directions, stdout and stderr apart, and SIGINT, SIGTERM, SIGHUP and SIGQUIT go on to the
command; the same signal a second time gives up. A command whose caller has gone is ended, with
everything that it has started: SIGHUP, and SIGKILL after 2 seconds. The event log keeps who ran which
program where, but no arguments, which may hold secrets.

The exit status is that of the command:
  0-255  what the command ended with; 128+n after signal n
  124    --timeout was over
  125    Pinnace itself failed: no such instance, it does not run, its host is away, the connection
         broke. stderr says what; with --json as {"error", "hint", "status"}, status being one of those
         in pinnace --help
  126    the command cannot be executed
  127    the command is not there
With --json the last line of stderr is a document with instance, attempt, host, code, signal, timed_out
and error.`,
		Example: `  pinnace exec -it hello/0 -- sh
  pinnace exec hello -- cat /etc/hosts
  tar c web | pinnace exec -i hello/0 -- tar x -C /srv
  pinnace exec --user root --timeout 30s hello/0 -- apk info`,
		Args: cobra.ArbitraryArgs, // exec tells of its own, with its own status

		ValidArgsFunction: c.complete(c.appsAndInstances),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.execStatus(c.exec(cmd.Context(), opts, args, c.execThroughServer))
		},
	}
	c.addExec(cmd, &opts)
	return cmd
}

// addExec gives cmd the flags of commands that run commands.
func (c *cli) addExec(cmd *cobra.Command, opts *execOptions) {
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&opts.stdin, "interactive", "i", false, "let the command read what comes in through stdin")
	flags.BoolVarP(&opts.tty, "tty", "t", false, "give the command this terminal; implies -i")
	flags.StringVarP(&opts.user, "user", "u", "", "user of the image, USER[:GROUP], names or numbers (default: the workload's)")
	flags.StringVarP(&opts.workdir, "workdir", "w", "", "directory to run it in (default: the workload's)")
	flags.StringArrayVarP(&opts.env, "setenv", "E", nil, "variable of the command, NAME=VALUE, over the workload's")
	flags.DurationVar(&opts.timeout, "timeout", 0, "end the command after so long: SIGTERM, and SIGKILL after 2 more seconds")
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return c.execStatus(nil, fail(exitInvalid, cmd.CommandPath()+" --help lists the flags", "%w", err))
	})
}

// execOutcome is how a command ended, as --json shows it.
type execOutcome struct {
	Instance string `json:"instance"`
	Attempt  uint32 `json:"attempt"`
	Host     string `json:"host"`
	Code     uint32 `json:"code"`
	Signal   string `json:"signal,omitempty"`
	TimedOut bool   `json:"timed_out,omitempty"`
	Error    string `json:"error,omitempty"`
}

// execFailure is a failure of Pinnace, as --json shows it.
type execFailure struct {
	Error  string `json:"error"`
	Hint   string `json:"hint,omitempty"`
	Status int    `json:"status"`
}

// execStatus tells the user how a command ended, or why it is not known, and makes that the exit status.
func (c *cli) execStatus(o *execOutcome, err error) error {
	if err != nil {
		status, message, hint := describe(err)
		if c.json {
			c.tellJSON(execFailure{message, hint, status})
			return errReported{exitExecFailed}
		}
		return fail(exitExecFailed, hint, "%s", message)
	}
	status := int(o.Code)
	switch {
	case o.TimedOut:
		status = exitExecTimedOut
		if !c.json {
			c.say("the command was ended: --timeout was over")
		}
	case o.Error != "" && !c.json:
		return fail(status, "", "%s", printable(o.Error))
	}
	if c.json {
		c.tellJSON(o)
	}
	if status == 0 {
		return nil
	}
	return errReported{status}
}

// tellJSON writes a document to stderr: stdout is the command's.
func (c *cli) tellJSON(v any) {
	enc := json.NewEncoder(c.stderr)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // there is nobody left to tell
}

// execPath is how a command gets to where it runs.
type execPath struct {
	client      pinnacev1connect.ControlServiceClient
	environment string
	unreachable error // what is wrong when nobody listens there
}

// execThroughServer is the way of commands in instances that a server has placed.
func (c *cli) execThroughServer(string) (*execPath, error) {
	server, err := c.target()
	if err != nil {
		return nil, err
	}
	client, env, err := c.clientOver(streamHTTPClient())
	if err == nil && env == "" {
		err = errNoEnvironment()
	}
	return &execPath{client, env, unreachable(server.server)}, err
}

// exec runs a command and talks to it until it has ended.
func (c *cli) exec(ctx context.Context, opts execOptions, args []string, through func(target string) (*execPath, error)) (*execOutcome, error) {
	const usage = "pinnace exec [-it] INSTANCE -- COMMAND [ARG...]"
	if len(args) == 0 {
		return nil, fail(exitInvalid, usage, "no instance was named")
	}
	target, argv := args[0], args[1:]
	switch {
	case len(argv) > 0 && argv[0] == "--":
		argv = argv[1:]
	case len(argv) > 0 && strings.HasPrefix(argv[0], "-"):
		return nil, fail(exitInvalid, usage, "%s is behind the instance: flags of exec come before it, the command after --", argv[0])
	}
	if len(argv) == 0 || argv[0] == "" {
		return nil, fail(exitInvalid, usage, "there is no command to run in %s", target)
	}
	for _, e := range opts.env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return nil, fail(exitInvalid, "", "--setenv %s: want NAME=VALUE", e)
		}
	}
	if opts.timeout < 0 {
		return nil, fail(exitInvalid, "", "--timeout %s: it is in the past", opts.timeout)
	}
	path, err := through(target)
	if err != nil {
		return nil, err
	}
	start := &pinnacev1.ExecStart{
		IdempotencyKey: newKey(),
		Environment:    path.environment, Target: target, Argv: argv, Env: opts.env, Workdir: opts.workdir, User: opts.user, Tty: opts.tty,
		Stdin: opts.stdin || opts.tty, TimeoutMs: opts.timeout.Milliseconds(),
	}
	call := &execCall{cli: c, credit: guest.NewCredit(0)}
	if opts.tty {
		if call.terminal, err = openTerminal(c.stdin, c.stdout); err != nil {
			return nil, err
		}
		defer call.terminal.restore()
		size := call.terminal.size()
		start.Size = &pinnacev1.TerminalSize{Rows: uint32(size.Rows), Columns: uint32(size.Cols)}
		if name := c.getenv("TERM"); name != "" {
			start.Env = append([]string{"TERM=" + name}, start.Env...)
		}
	} else {
		// Ctrl-C is for the command, and does not end this process.
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	call.cancel, call.done, call.stream = cancel, ctx.Done(), path.client.Exec(ctx)
	outcome, err := call.run(ctx, start)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = path.unreachable
	}
	return outcome, err
}

// execCall is a command that is talked to.
type execCall struct {
	cli      *cli
	terminal *terminal // nil without
	credit   *guest.Credit
	cancel   context.CancelCauseFunc
	done     <-chan struct{}
	stream   *connect.BidiStreamForClient[pinnacev1.ExecRequest, pinnacev1.ExecResponse]

	sendMu sync.Mutex // held while a message is sent
}

func (x *execCall) run(ctx context.Context, start *pinnacev1.ExecStart) (*execOutcome, error) {
	x.send(&pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Start{Start: start}})
	if start.Stdin {
		go x.passInput()
	}
	go x.passSignals(ctx)
	// What it has to say ends with this process, and an open stream would keep it.
	defer func() { _ = x.stream.CloseResponse() }()
	var outcome execOutcome
	for {
		m, err := x.stream.Receive()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = fail(exitUnreachable, "", "the server did not say how the command ended")
			}
			return nil, err
		}
		switch what := m.GetMessage().(type) {
		case *pinnacev1.ExecResponse_Started:
			outcome.Instance, outcome.Attempt, outcome.Host = what.Started.Instance, what.Started.Attempt, what.Started.Host
		case *pinnacev1.ExecResponse_InputCredit:
			x.credit.Give(int(what.InputCredit))
		case *pinnacev1.ExecResponse_Output:
			to := x.cli.stdout
			if what.Output.Stream == guest.StreamStderr {
				to = x.cli.stderr
			}
			if _, err := to.Write(what.Output.Data); err != nil {
				return nil, err
			}
		case *pinnacev1.ExecResponse_Ended:
			end := what.Ended
			if end.Code > 255 {
				return nil, fail(exitInternal, "", "the command ended with status %d, which cannot be", end.Code)
			}
			outcome.Code, outcome.Signal, outcome.TimedOut, outcome.Error = end.Code, end.Signal, end.TimedOut, end.Error
			return &outcome, nil
		}
	}
}

// send sends a message. When that can't be done, whoever receives learns why.
func (x *execCall) send(m *pinnacev1.ExecRequest) {
	x.sendMu.Lock()
	defer x.sendMu.Unlock()
	_ = x.stream.Send(m)
}

// passInput sends stdin to its end, as fast as the command reads it.
func (x *execCall) passInput() {
	buf := make([]byte, guest.MaxCommandData)
	for {
		n, err := x.cli.stdin.Read(buf)
		if n > 0 {
			if !x.credit.Take(x.done, n+guest.FrameCost) {
				return
			}
			x.send(&pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Input{Input: &pinnacev1.ExecInput{Data: buf[:n]}}})
		}
		switch {
		case errors.Is(err, io.EOF):
			x.send(&pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Input{Input: &pinnacev1.ExecInput{Eof: true}}})
			return
		case err != nil:
			// The command must not take half of its input for all of it.
			x.cancel(fail(exitInternal, "", "read stdin: %w", err))
			return
		}
	}
}

// passSignals passes on what happens to this process or to its terminal.
func (x *execCall) passSignals(ctx context.Context) {
	if x.terminal != nil {
		for sizes := x.terminal.resizes(ctx); ; {
			select {
			case size := <-sizes:
				x.send(&pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Size{Size: &pinnacev1.TerminalSize{Rows: uint32(size.Rows), Columns: uint32(size.Cols)}}})
			case <-ctx.Done():
				x.closeRequest()
				return
			}
		}
	}
	for names := signals(ctx, func() { x.cancel(fail(exitInternal, "", "interrupted; the command is ended")) }); ; {
		select {
		case name := <-names:
			x.send(&pinnacev1.ExecRequest{Message: &pinnacev1.ExecRequest_Signal{Signal: name}})
		case <-ctx.Done():
			x.closeRequest()
			return
		}
	}
}

// closeRequest lets the stream take note of its context: while it waits for what is sent next, it does not.
func (x *execCall) closeRequest() {
	x.sendMu.Lock()
	defer x.sendMu.Unlock()
	_ = x.stream.CloseRequest() // it is over
}
