package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestMain lets the test binary be a proxy, so that one can be killed.
func TestMain(m *testing.M) {
	if socket := os.Getenv("PROXY_TEST_SOCKET"); socket != "" {
		err := Run(context.Background(), Options{Socket: socket, TakeOver: os.Getenv("PROXY_TEST_TAKE_OVER") != "", Build: os.Getenv("PROXY_TEST_BUILD")})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A process is a proxy of its own.
type process struct {
	*exec.Cmd
	ended chan error
}

// spawn starts a proxy and returns when it is the one that answers on socket.
func spawn(t testing.TB, socket string, takeOver bool) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PROXY_TEST_SOCKET="+socket)
	if takeOver {
		cmd.Env = append(cmd.Env, "PROXY_TEST_TAKE_OVER=1")
	}
	cmd.Stderr = os.Stderr
	check(t, cmd.Start())
	p := &process{cmd, make(chan error, 1)}
	go func() { p.ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	eventually(t, "the proxy answers", func() (bool, string) {
		s, err := ask(t, socket)
		if err != nil {
			return false, err.Error()
		}
		return s.PID == cmd.Process.Pid, fmt.Sprintf("pid %d, not %d", s.PID, cmd.Process.Pid)
	})
	return p
}

func (p *process) wait(t testing.TB) {
	t.Helper()
	select {
	case err := <-p.ended:
		p.ended <- err
	case <-time.After(patience):
		t.Fatalf("process %d does not end", p.Process.Pid)
	}
}

func (p *process) kill(t testing.TB) {
	t.Helper()
	check(t, p.Process.Kill())
	p.wait(t)
}

func ask(t testing.TB, socket string) (*Status, error) {
	t.Helper()
	c, err := Dial(t.Context(), socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	return c.Status(t.Context())
}

func tell(t testing.TB, socket string, c Config) *Status {
	t.Helper()
	client, err := Dial(t.Context(), socket)
	check(t, err)
	defer func() { _ = client.Close() }()
	s, err := client.Apply(t.Context(), c)
	check(t, err)
	for _, l := range s.Listeners {
		if l.Error != "" {
			t.Fatalf("listener %s: %s", l.ID, l.Error)
		}
	}
	return s
}

// everything is a configuration with one of each.
func everything(t testing.TB, backend, datagrams netip.AddrPort) (c Config, tcp, udp, name netip.AddrPort) {
	tcp, udp, name = freePort(t), freeUDP(t), freePort(t)
	return Config{
		Listeners: []Listener{
			{ID: "tcp", Address: tcp, Backends: []Backend{active("a", backend)}},
			{ID: "udp", Address: udp, Protocol: UDP, Backends: []Backend{active("u", datagrams)}},
		},
		DNS: []DNS{{Addresses: []netip.AddrPort{name}, Records: testRecords}},
	}, tcp, udp, name
}

// A proxy that was killed serves again as soon as it is started, without an agent.
func TestKilledProxyComesBackWithItsConfiguration(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "proxy.sock")
	first := spawn(t, socket, false)
	c, tcp, udp, name := everything(t, named(t, "a"), echoing(t, "u"))
	revision := tell(t, socket, c).Revision
	first.kill(t)
	second := spawn(t, socket, false)
	serves := func() {
		t.Helper()
		if who, err := once(tcp); who != "a" || err != nil {
			t.Errorf("tcp: %q, %v", who, err)
		}
		if who, err := say(talkTo(t, udp), "x"); who != "u:x" || err != nil {
			t.Errorf("udp: %q, %v", who, err)
		}
		if got := describe(query(t, "udp", name, new(dns.Msg).SetQuestion("web.internal.", dns.TypeA))); got != "NOERROR 10.101.0.1" {
			t.Errorf("dns: %s", got)
		}
	}
	serves()
	if s, err := ask(t, socket); err != nil || s.Revision != revision {
		t.Errorf("revision %d, want %d (%v)", s.Revision, revision, err)
	}
	// What is not a configuration is not taken for one, and keeps nobody from serving.
	second.kill(t)
	check(t, os.WriteFile(socket+".config", []byte(`{"listeners":[{"id":`), 0o600))
	third := spawn(t, socket, false)
	tell(t, socket, c)
	serves()
	// One that is told to end leaves nothing.
	client, err := Dial(t.Context(), socket)
	check(t, err)
	check(t, client.Shutdown(t.Context()))
	third.wait(t)
	for _, path := range []string{socket, socket + ".config"} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

// load makes new connections, datagrams and questions all the time, and counts what fails.
type load struct {
	stop               chan struct{}
	clients            sync.WaitGroup
	requests, failures atomic.Int64
}

func (l *load) run(t *testing.T, what string, f func() error) {
	l.clients.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
			}
			l.requests.Add(1)
			if err := f(); err != nil {
				l.failures.Add(1)
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func (l *load) end(t *testing.T) {
	close(l.stop)
	l.clients.Wait()
	t.Logf("%d requests, %d failures", l.requests.Load(), l.failures.Load())
	if l.requests.Load() < 20 {
		t.Errorf("only %d requests were made", l.requests.Load())
	}
}

// Upgrades under load: nothing is refused, reset or forgotten, and long connections stay.
func TestUpgradeLosesNothing(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "proxy.sock")
	processes := []*process{spawn(t, socket, false)}
	backend, datagrams := named(t, "a"), echoing(t, "u")
	c, tcp, udp, name := everything(t, backend, datagrams)
	tell(t, socket, c)
	long := mustCall(t, tcp)
	session := talkTo(t, udp)
	for range 3 {
		_, err := say(session, "x")
		check(t, err)
	}
	l := load{stop: make(chan struct{})}
	l.run(t, "tcp", func() error { _, err := once(tcp); return err })
	l.run(t, "udp", func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(udp))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = say(c, "x")
		return err
	})
	l.run(t, "dns", func() error {
		c := dns.Client{Timeout: patience}
		_, _, err := c.Exchange(new(dns.Msg).SetQuestion("web.internal.", dns.TypeA), name.String())
		return err
	})
	l.run(t, "control", func() error {
		// A request that is under way may be cut off; connecting must never be refused.
		c, err := Dial(context.Background(), socket)
		if err != nil {
			return err
		}
		_, _ = c.Status(context.Background())
		return c.Close()
	})
	var before ListenerStatus
	for round := range 3 {
		processes = append(processes, spawn(t, socket, true))
		if who, err := long.ask(); who != "a" || err != nil {
			t.Fatalf("round %d: the long connection: %q, %v", round, who, err)
		}
		if got, err := say(session, "y"); got != "u:y" || err != nil {
			t.Fatalf("round %d: the session: %q, %v", round, got, err)
		}
		s, err := ask(t, socket)
		check(t, err)
		if s.OpenTo("a") < 1 || s.Leaving < 1 {
			t.Errorf("round %d: the old proxy's connection is not counted: %+v", round, s)
		}
		before, _ = s.Listener("udp")
		if before.Open < 1 {
			t.Errorf("round %d: no session came over", round)
		}
	}
	l.end(t)
	// A configuration reaches the oldest proxy: its connection ends with its backend.
	c.Listeners[0].Backends = []Backend{draining("a", backend), active("b", named(t, "b"))}
	if n := tell(t, socket, c).OpenTo("a"); n != 1 {
		t.Errorf("%d connections to the draining backend", n)
	}
	if who, err := once(tcp); who != "b" || err != nil {
		t.Errorf("a new connection: %q, %v", who, err)
	}
	if who, err := long.ask(); who != "a" || err != nil {
		t.Errorf("the draining connection: %q, %v", who, err)
	}
	c.Listeners[0].Backends = c.Listeners[0].Backends[1:]
	tell(t, socket, c)
	if _, err := long.ask(); err == nil {
		t.Error("the connection outlived its backend")
	}
	for _, old := range processes[:3] {
		old.wait(t) // it had nothing left to do
	}
	if who, err := once(tcp); who != "b" || err != nil {
		t.Errorf("after the old ones have ended: %q, %v", who, err)
	}
}

// A newer proxy that fails half way changes nothing.
func TestHandoverThatFails(t *testing.T) {
	p := start(t, Options{})
	c, tcp, udp, _ := everything(t, named(t, "a"), echoing(t, "u"))
	p.apply(c)
	session := talkTo(t, udp)
	_, err := say(session, "x")
	check(t, err)
	for cut := range 5 {
		raw, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.socket, Net: "unix"})
		check(t, err)
		check(t, writeMessage(raw, request{Op: opHandover}))
		_ = raw.SetDeadline(time.Now().Add(patience))
		switch cut {
		case 0: // it goes at once
		case 4: // or says something else when it has got everything
			_, _ = io.CopyN(io.Discard, raw, 200)
			check(t, writeMessage(raw, request{Op: opStatus}))
		default:
			_, _ = io.CopyN(io.Discard, raw, int64(cut*100))
		}
		_ = raw.Close()
		if got, err := say(session, "y"); got != "u:y" || err != nil {
			t.Fatalf("cut %d: the session: %q, %v", cut, got, err)
		}
		if who, err := once(tcp); who != "a" || err != nil {
			t.Fatalf("cut %d: %q, %v", cut, who, err)
		}
	}
	if s := p.status(); s.Leaving != 0 || s.PID != os.Getpid() {
		t.Errorf("%+v", s)
	}
	// One may have no right to the socket's directory, or nothing to take over.
	if err := Run(t.Context(), Options{Socket: filepath.Join(t.TempDir(), "no", "dir"), TakeOver: true}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("without a directory: %v", err)
	}
}

// The old proxy may die in the middle: the connections that it had are lost with it, but nothing else.
func TestOldProxyDiesAfterHandover(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "proxy.sock")
	old := spawn(t, socket, false)
	c, tcp, _, _ := everything(t, named(t, "a"), echoing(t, "u"))
	tell(t, socket, c)
	long := mustCall(t, tcp)
	_, err := long.ask()
	check(t, err)
	spawn(t, socket, true)
	old.kill(t)
	if _, err := long.ask(); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a connection of the dead one: %v", err)
	}
	if who, err := once(tcp); who != "a" || err != nil {
		t.Errorf("%q, %v", who, err)
	}
	if s := tell(t, socket, c); s.Leaving != 0 || s.Connections > 1 {
		t.Errorf("%+v", s)
	}
	// And there is a lock again, the new one's.
	if err := Run(t.Context(), Options{Socket: socket}); err == nil || !strings.Contains(err.Error(), "another proxy") {
		t.Errorf("another one: %v", err)
	}
}

// Wherever a control connection is cut, the last configuration stays in force.
func TestControlCutAnywhere(t *testing.T) {
	p := start(t, Options{})
	at := freePort(t)
	p.apply(one(at, active("a", named(t, "a"))))
	good, err := os.ReadFile(p.socket + ".config")
	check(t, err)
	var message strings.Builder
	check(t, writeMessage(&message, request{Op: opApply, Config: []byte(`{"listeners":[]}`)}))
	for cut := range message.Len() {
		c, err := net.Dial("unix", p.socket)
		check(t, err)
		_, err = io.WriteString(c, message.String()[:cut])
		check(t, err)
		check(t, c.(*net.UnixConn).CloseWrite())
		_, _ = io.Copy(io.Discard, c) // until the proxy has understood
		check(t, c.Close())
	}
	if who, err := once(at); who != "a" || err != nil {
		t.Errorf("%q, %v", who, err)
	}
	if kept, err := os.ReadFile(p.socket + ".config"); err != nil || string(kept) != string(good) {
		t.Errorf("kept %s, %v", kept, err)
	}
}
