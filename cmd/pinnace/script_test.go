package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/pinnacehq/pinnace/internal/sandbox"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker/firecrackertest"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
)

// TestMain is also the command line, the holder of monitors, and the stand-in for Firecracker, when it is started as
// one of them.
func TestMain(m *testing.M) {
	holder.Enter()
	if code, ok := firecrackertest.Main(firecrackerGuests); ok {
		os.Exit(code)
	}
	if sandbox.Possible() {
		confined()
	}
	if os.Getenv(asCLI) != "" {
		c := &cli{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
		os.Exit(c.run(context.Background(), os.Args[1:]))
	}
	testscript.Main(m, map[string]func(){
		"pinnace": func() {
			c := &cli{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
			os.Exit(c.run(context.Background(), os.Args[1:]))
		},
	})
}

// TestScript runs testdata/script: each file is one promise to the user.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": status,
			"server": scriptServer,
			"kernel": scriptKernel,
			// cut-pin takes the fingerprint of the server's authority out of the token.
			"cut-pin": func(ts *testscript.TestScript, _ bool, _ []string) {
				token, _, _ := strings.Cut(ts.Getenv("PINNACE_TOKEN"), ".")
				ts.Setenv("PINNACE_TOKEN", token)
			},
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_CONFIG_HOME", "")
			return nil
		},
	})
}

// scriptServers are what stops the servers that run, by the working directory of their script.
var scriptServers sync.Map

func freePort(ts *testscript.TestScript) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	return l.Addr().String()
}

// scriptServer starts and stops a server in ./data, which the commands of the script then talk to: server start.
// The public key of its log is in $LOG_KEY.
func scriptServer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: server start|stop")
	}
	if args[0] == "stop" {
		stop, ok := scriptServers.LoadAndDelete(ts.Getenv("WORK"))
		if !ok {
			ts.Fatalf("no server runs")
		}
		stop.(func())()
		return
	}
	role := serverRole{dir: ts.MkAbs("data/server"), log: slog.New(slog.DiscardHandler), agentListen: freePort(ts)}
	// The same address each time: what is remembered of a server is remembered by its address.
	if _, role.listen, _ = strings.Cut(ts.Getenv("PINNACE_SERVER"), "://"); role.listen == "" {
		role.listen = freePort(ts)
	}
	role.secure.everywhere = ts.Getenv("SERVER_TLS") != ""
	held, err := lock(role.dir)
	ts.Check(err)
	ctx, cancel := context.WithCancel(context.Background())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- errors.Join(role.run(ctx, func() { close(up) }), held.Unlock()) }()
	select {
	case <-up:
	case err := <-done:
		ts.Fatalf("server: %v", err)
	}
	stop := sync.OnceFunc(func() {
		cancel()
		ts.Check(<-done)
	})
	ts.Defer(stop)
	url, token, _, err := role.local()
	ts.Check(err)
	ts.Setenv("PINNACE_SERVER", url)
	ts.Setenv("PINNACE_TOKEN", token)
	ts.Setenv("LOG_KEY", fmt.Sprintf("%x", role.loaded.log.Public()))
	scriptServers.Store(ts.Getenv("WORK"), stop)
}

// status runs a command and compares its exit status: status 2 pinnace check bad.toml
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command [args...]")
	}
	want := args[0]
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		got = statusText(err)
	}
	if got != want {
		ts.Fatalf("%v: exit status %s, want %s", args[1:], got, want)
	}
}

func statusText(err error) string {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}
