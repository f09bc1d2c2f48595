package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
)

// failoverPatience bounds the waits of TestLossyFailoverIsSeen; a lease that nobody gives back takes ten seconds of it.
const failoverPatience = time.Minute

// aServer runs a server on a database until it is stopped or ends by itself.
type aServer struct {
	role serverRole
	stop context.CancelFunc
	done chan error
}

func startOn(t *testing.T, dir, url string, addresses [2]string) *aServer {
	t.Helper()
	s := &aServer{done: make(chan error, 1), role: serverRole{
		dir: filepath.Join(dir, "server"), log: slog.New(slog.DiscardHandler), listen: addresses[0], agentListen: addresses[1], database: url,
	}}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s.stop = cancel
	up := make(chan struct{})
	go func() { s.done <- s.role.run(ctx, func() { close(up) }) }()
	t.Cleanup(cancel)
	select {
	case <-up:
	case err := <-s.done:
		t.Fatalf("the server ended: %v", err)
	case <-time.After(failoverPatience):
		t.Fatal("the server does not start")
	}
	return s
}

// TestLossyFailoverIsSeen fails over to a real replica that lacks the last events. The server that made them ends; a new
// server on the replica cannot know, and whoever has seen those events refuses it: the command line does, and a host is
// not given what it asks to be shown.
func TestLossyFailoverIsSeen(t *testing.T) {
	if os.Getenv("PINNACE_E2E") != "1" && os.Getenv("PINNACE_TORTURE") == "" {
		t.Skip("makes two clusters; run with make test")
	}
	primary := pgtest.Start(t)
	primary.NewDatabase(t, "log")
	replica := primary.Replica(t)
	url := fmt.Sprintf("postgres:///log?user=pinnace&host=%s,%s&target_session_attrs=read-write", primary.Dir(), replica.Dir())
	dir := t.TempDir()
	var addresses [2]string
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[i] = l.Addr().String()
		l.Close()
	}
	first := startOn(t, dir, url, addresses)
	api, token, control, err := first.role.local()
	if err != nil {
		t.Fatal(err)
	}
	pinnace := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
		cmd.Env = append(os.Environ(), asCLI+"=1", "HOME="+dir, "XDG_STATE_HOME=", "XDG_CONFIG_HOME=", "PINNACE_SERVER="+api, "PINNACE_TOKEN="+token)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) {
		t.Helper()
		for end := time.Now().Add(failoverPatience); ; time.Sleep(50 * time.Millisecond) { // it has to lead first
			out, err := pinnace(args...)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%q: %v\n%s", args, err, out)
			}
		}
	}
	must("env", "create", "one")
	host := agentRole{dirs: directories{data: filepath.Join(dir, "host")}, servers: []string{"https://" + addresses[1]}, log: slog.New(slog.DiscardHandler)}
	host.join = func(ctx context.Context) (string, error) {
		res, err := control.CreateJoinToken(ctx, connect.NewRequest(&pinnacev1.CreateJoinTokenRequest{Host: "h1"}))
		if err != nil {
			return "", err
		}
		return res.Msg.Secret, nil
	}
	_, agents, err := host.connect(t.Context(), "h1")
	if err != nil {
		t.Fatal(err)
	}
	join := func(seen uint64) (*pinnacev1.JoinResponse, error) {
		res, err := agents.Join(t.Context(), connect.NewRequest(&pinnacev1.JoinRequest{SeenSeq: seen, Host: &pinnacev1.HostFacts{
			Id: "h1", Name: "h1", Architecture: "amd64", MemoryBytes: 1 << 30, CpuMilli: 1000, DiskBytes: 1 << 30, Driver: "none",
		}}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	if _, err := join(0); err != nil {
		t.Fatal(err)
	}
	want := primary.SQL(t, "log", "SELECT max(seq) FROM pinnace_event")
	for end := time.Now().Add(failoverPatience); ; time.Sleep(10 * time.Millisecond) {
		if n, err := replica.TrySQL("log", "SELECT max(seq) FROM pinnace_event"); err == nil && n == want {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the replica does not follow")
		}
	}
	replica.Stop(syscall.SIGINT)
	must("env", "create", "lost")
	seen, err := join(0)
	if err != nil {
		t.Fatal(err)
	}
	primary.Stop(syscall.SIGKILL)
	replica.Start(t)
	replica.Promote(t)

	// The first server finds out with the next decision at the latest, and ends.
	_, _ = pinnace("env", "create", "next")
	select {
	case err := <-first.done:
		if err == nil {
			t.Error("the first server ended without a reason")
		}
	case <-time.After(failoverPatience):
		t.Fatal("the first server goes on")
	}
	second := startOn(t, filepath.Join(dir), url, addresses)
	out, err := pinnace("env", "list")
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitConflict || !strings.Contains(out, "was seen before") {
		t.Errorf("the command line: %v\n%s", err, out)
	}
	var again *pinnacev1.JoinResponse
	for end := time.Now().Add(failoverPatience); ; time.Sleep(100 * time.Millisecond) { // who follows lets no host join
		if again, err = join(seen.Head.Seq); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if string(again.SeenHash) == string(seen.Head.Hash) {
		t.Errorf("the host is shown event %d, which is lost", seen.Head.Seq)
	}
	second.stop()
	if err := <-second.done; err != nil {
		t.Errorf("the second server: %v", err)
	}
}
