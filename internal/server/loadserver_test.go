package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// What has the test binary be another process of a run under load: the server, with its log in that directory, at these
// addresses, or the agents, that many.
const (
	asLoadServer = "PINNACE_TEST_LOAD_SERVER"
	asLoadAgents = "PINNACE_TEST_LOAD_AGENTS"
	loadAPIAt    = "PINNACE_TEST_LOAD_API"
	loadAgentsAt = "PINNACE_TEST_LOAD_AGENTS_AT"
)

// asChild is what such a process does. It ends when its stdin does.
func asChild(t *testing.T) {
	t.Helper()
	switch {
	case os.Getenv(asLoadServer) != "":
		serveLoad(t, os.Getenv(asLoadServer))
	case os.Getenv(asLoadAgents) != "":
		n, err := strconv.Atoi(os.Getenv(asLoadAgents))
		if err != nil {
			t.Fatal(err)
		}
		beAgents(t, n)
	default:
		return
	}
	t.SkipNow()
}

// load is a server under load, and those who load it.
type load struct {
	*testing.T
	size     loadSize
	dir      string
	api, at  string // addresses of the API and for agents
	server   *child
	agents   *child
	client   pinnacev1connect.ControlServiceClient
	releases [][2]string // of each app

	mu    sync.Mutex
	last  loadStatus        // guarded by mu
	found chan loadFindings // what a check has found
}

// loadStatus is what the agents say of themselves.
type loadStatus struct {
	joined, back, running int
	bytes                 int64
}

// loadFindings are what became of a comparison.
type loadFindings struct {
	agree, differ int
	first         string
}

func (b *load) instances() int { return b.size.environments * b.size.apps * b.size.instances }

func startLoad(t *testing.T, size loadSize) *load {
	t.Helper()
	b := &load{T: t, size: size, dir: t.TempDir(), api: freePort(t), at: freePort(t), found: make(chan loadFindings, 1)}
	b.serve()
	b.client = pinnacev1connect.NewControlServiceClient(httpClient(adminToken), "http://"+b.api)
	b.agents = b.spawn(asLoadAgents+"="+strconv.Itoa(size.agents), loadAgentsAt+"="+b.at, loadAPIAt+"="+b.api)
	go func() {
		for line := range b.agents.lines {
			var s loadStatus
			if n, _ := fmt.Sscanf(line, "agents %d %d %d %d", &s.joined, &s.back, &s.running, &s.bytes); n == 4 {
				b.mu.Lock()
				b.last = s
				b.mu.Unlock()
			}
			var f loadFindings
			if n, _ := fmt.Sscanf(line, "found %d %d %q", &f.agree, &f.differ, &f.first); n == 3 {
				b.found <- f
			}
		}
	}()
	return b
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// child is another process of the run.
type child struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

func (b *load) spawn(env ...string) *child {
	b.Helper()
	args := []string{"-test.run=TestBenchAgents$", "-test.v", "-test.timeout=0"}
	if profile := os.Getenv("PINNACE_BENCH_PROFILE"); profile != "" && strings.HasPrefix(env[0], asLoadServer) {
		args = append(args, "-test.cpuprofile="+profile, "-test.memprofile="+profile+".heap", "-test.memprofilerate=65536")
	}
	cmd := exec.CommandContext(context.WithoutCancel(b.Context()), os.Args[0], args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	c := &child{cmd: cmd, in: in, lines: make(chan string, 64)}
	b.Cleanup(c.end)
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	return c
}

// end has the process end, and waits for that.
func (c *child) end() {
	c.in.Close()
	_ = c.cmd.Wait()
}

// serve starts the server.
func (b *load) serve() {
	b.Helper()
	b.server = b.spawn(asLoadServer+"="+b.dir, loadAPIAt+"="+b.api, loadAgentsAt+"="+b.at)
	for line := range b.server.lines {
		if line == "serving" {
			go func() {
				for range b.server.lines { // nothing more of interest
				}
			}()
			return
		}
	}
	b.Fatal("the server did not start")
}

// restart kills the server and starts another one on its log.
func (b *load) restart() {
	b.Helper()
	_, _ = fmt.Fprintln(b.agents.in, "gone") // those that come back are counted anew
	if os.Getenv("PINNACE_BENCH_PROFILE") == "" {
		_ = b.server.cmd.Process.Kill()
	}
	b.server.end()
	b.serve()
}

// keptAuthority is that of a file, which is made when there is none: hosts know the server by it when it starts again.
func keptAuthority(path string) (*identity.Authority, error) {
	a, err := identity.LoadAuthority(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	text, err := identity.GenerateAuthority(time.Now())
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		return nil, err
	}
	return identity.ParseAuthority([]byte(text))
}

// serveLoad is the server's process.
func serveLoad(t *testing.T, dir string) {
	authority, err := keptAuthority(filepath.Join(dir, "authority"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Options{
		Engine: sqlite.New(sqlite.Options{Dir: dir}), Logger: slog.New(slog.DiscardHandler), AdminToken: adminToken, Authority: authority,
		DerivedDir: dir, LostAfter: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	api, agents := &http.Server{Handler: s.Handler()}, &http.Server{Handler: s.AgentHandler(), HTTP2: AgentHTTP2(), TLSConfig: authority.ServerTLS([]string{"127.0.0.1"}, time.Now)}
	for _, srv := range []*http.Server{api, agents} {
		srv.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(true)
	}
	api.Protocols.SetUnencryptedHTTP2(true)
	agents.Protocols.SetHTTP2(true)
	serve := func(at string, serve func(net.Listener) error) {
		l, err := net.Listen("tcp", os.Getenv(at))
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _ = serve(l) }()
	}
	serve(loadAPIAt, api.Serve)
	serve(loadAgentsAt, func(l net.Listener) error { return agents.ServeTLS(l, "", "") })
	fmt.Println("serving")
	_, _ = bufio.NewReader(os.Stdin).ReadByte()
	_ = api.Close()
	_ = agents.Close()
	cancel()
	if err := errors.Join(<-ended, s.Close()); err != nil {
		t.Error(err)
	}
}

// status is what the agents have said last.
func (b *load) status() loadStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// until waits until the agents say what is wanted.
func (b *load) until(what string, holds func(loadStatus) bool) {
	b.Helper()
	b.wait(what, func() (bool, string) {
		s := b.status()
		return holds(s), fmt.Sprintf("%+v", s)
	})
}

// wait waits until something holds, and gives up when nothing has changed of it for a minute.
func (b *load) wait(what string, holds func() (bool, string)) {
	b.Helper()
	last, since := "", time.Now()
	for {
		ok, state := holds()
		if ok {
			return
		}
		if state != last {
			last, since = state, time.Now()
		}
		if time.Since(since) > time.Minute {
			b.Fatalf("%s: %s, and nothing else for a minute", what, state)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// check has some of the agents compare what they know by changes with a set that is made anew.
func (b *load) check() {
	b.Helper()
	last := ""
	b.wait("agents know by changes what a whole set says", func() (bool, string) {
		if _, err := fmt.Fprintln(b.agents.in, "check"); err != nil {
			b.Fatal(err)
		}
		select {
		case f := <-b.found:
			last = f.first
			return f.differ == 0 && f.agree > 0, fmt.Sprintf("%d agree, %d do not: %s", f.agree, f.differ, last)
		case <-time.After(time.Minute):
			return false, "no answer"
		}
	})
}

// memory is what the server has of it, in MiB.
func (b *load) memory(key string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.server.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			if err != nil {
				b.Fatal(err)
			}
			return float64(n) / 1024
		}
	}
	b.Fatalf("no %s in /proc on %s", key, runtime.GOOS)
	return 0
}

// cpu is what the server has used.
func (b *load) cpu() time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.server.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(after)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / 100
}

// overTLS is what an agent of a run under load speaks over: a connection of its own.
func overTLS(certificate []byte) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols), TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // who the server is, is not the question
	if certificate != nil {
		transport.TLSClientConfig.Certificates = []tls.Certificate{{Certificate: [][]byte{certificate}, PrivateKey: testKey()}}
	}
	transport.Protocols.SetHTTP2(true)
	return &http.Client{Transport: transport}
}
