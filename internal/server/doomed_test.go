package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/failpoint"
	"github.com/pinnacehq/pinnace/internal/identity"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// What makes the test binary a server that is to be killed: a directory, the database when it is not SQLite, and the
// failpoint that kills it. Its two listeners it inherits, or somebody else could have their addresses while it is dead.
const (
	doomedDir      = "PINNACE_TEST_DOOMED_DIR"
	doomedKeys     = "PINNACE_TEST_DOOMED_KEYS" // where its keys and what they seal are
	doomedDatabase = "PINNACE_TEST_DOOMED_DATABASE"
	doomedPoint    = "PINNACE_TEST_DOOMED_POINT"
	doomedTTL      = "PINNACE_TEST_DOOMED_TTL" // of its lease
	// doomedLeads is the line that it prints once it leads.
	doomedLeads = "this one leads"
)

// doomedEngine has a lease that runs out soon, because a killed process can't give it back.
func doomedEngine(dir, database string) eventlog.Engine {
	if database != "" {
		ttl, err := time.ParseDuration(os.Getenv(doomedTTL))
		if err != nil {
			ttl = 150 * time.Millisecond
		}
		return postgres.New(postgres.Options{URL: database, TTL: ttl})
	}
	return sqlite.New(sqlite.Options{Dir: filepath.Join(dir, "log")})
}

func serveDoomed(t *testing.T) {
	dir := os.Getenv(doomedDir)
	if point := os.Getenv(doomedPoint); point != "" {
		if err := failpoint.Arm(point); err != nil {
			t.Fatal(err)
		}
	}
	opts, err := doomedOptions(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	api, agents := s.Handler(), s.AgentHandler()
	proven := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		provenHost(r)
		agents.ServeHTTP(w, r)
	})
	var servers []*http.Server
	for i, h := range []http.Handler{api, proven} {
		l, err := net.FileListener(os.NewFile(uintptr(3+i), "listener"))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
		srv.Protocols.SetHTTP1(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		servers = append(servers, srv)
		go func() { _ = srv.Serve(l) }() // until it is closed below
	}
	go func() {
		select {
		case <-s.ledger.log.Leads():
			fmt.Println(doomedLeads)
		case <-ctx.Done():
		}
	}()
	told := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		close(told)
	}()
	select {
	case <-told:
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	}
	for _, srv := range servers {
		_ = srv.Close()
	}
	cancel()
	if err := errors.Join(<-ended, s.Close()); err != nil {
		t.Error(err)
	}
}

func doomedOptions(dir string) (Options, error) {
	shared := os.Getenv(doomedKeys)
	authority, err := identity.LoadAuthority(filepath.Join(shared, "ca.key"))
	if err != nil {
		return Options{}, err
	}
	text, err := os.ReadFile(filepath.Join(shared, "secrets.key"))
	if err != nil {
		return Options{}, err
	}
	keys, err := secret.ParseKeys(text)
	if err != nil {
		return Options{}, err
	}
	store, err := secret.OpenDir(filepath.Join(shared, "secrets"))
	return Options{
		Engine: doomedEngine(dir, os.Getenv(doomedDatabase)), Follow: true, Logger: slog.New(slog.DiscardHandler), AdminToken: adminToken,
		Authority: authority, LogKey: eventlogtest.Key, DerivedDir: filepath.Join(dir, "derived"), HostTimeout: time.Minute, Keys: keys, Secrets: store,
	}, err
}

// doomed is a server that is started again and again, and those who speak to it.
type doomed struct {
	*testing.T
	dir, database string
	keys          string        // the directory with the keys; dir, unless two servers share them
	ttl           time.Duration // of the lease; short when 0
	listen        [2]string
	listeners     []*os.File
	client        pinnacev1connect.ControlServiceClient
	// acknowledged counts what clients were told is done.
	acknowledged atomic.Int64

	// Of the process that runs, or ran last.
	cmd    *exec.Cmd
	point  string
	in     interface{ Close() error }
	leads  chan struct{} // closed when it leads
	ended  chan struct{} // closed when it has ended
	killed bool          // it was killed; set before ended is closed
	output bytes.Buffer  // read after ended is closed
}

func newDoomed(t *testing.T, database string) *doomed {
	d := &doomed{T: t, dir: t.TempDir(), database: database}
	d.keys = d.dir
	for i := range d.listen {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d.listen[i] = l.Addr().String()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		d.listeners = append(d.listeners, f)
		t.Cleanup(func() { f.Close() })
	}
	key, err := secret.GenerateKey()
	if err == nil {
		err = os.WriteFile(filepath.Join(d.dir, "secrets.key"), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	authority, err := identity.GenerateAuthority(time.Now())
	if err == nil {
		err = os.WriteFile(filepath.Join(d.dir, "ca.key"), []byte(authority), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.client = pinnacev1connect.NewControlServiceClient(httpClient(adminToken), "http://"+d.listen[0])
	t.Cleanup(func() {
		if d.cmd != nil {
			d.kill() // when the test has failed it may run on
		}
	})
	return d
}

// start starts the server, to be killed at a point unless that is "".
func (d *doomed) start(point string) {
	d.Helper()
	// The rest of the test's environment is of no use to it.
	d.cmd = exec.CommandContext(context.WithoutCancel(d.Context()), os.Args[0], "-test.run=TestKillServer$", "-test.timeout=0")
	d.cmd.Env = append(os.Environ(), doomedDir+"="+d.dir, doomedKeys+"="+d.keys, doomedDatabase+"="+d.database, doomedPoint+"="+point)
	if d.ttl > 0 {
		d.cmd.Env = append(d.cmd.Env, doomedTTL+"="+d.ttl.String())
	}
	d.cmd.ExtraFiles = d.listeners
	d.output.Reset()
	d.cmd.Stderr = &d.output
	in, err := d.cmd.StdinPipe()
	if err != nil {
		d.Fatal(err)
	}
	out, err := d.cmd.StdoutPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		d.Fatal(err)
	}
	d.point, d.in, d.leads, d.ended = point, in, make(chan struct{}), make(chan struct{})
	cmd, leads, ended := d.cmd, d.leads, d.ended
	go func() {
		defer close(ended)
		var said strings.Builder
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if lines.Text() == doomedLeads {
				close(leads)
				continue
			}
			fmt.Fprintln(&said, lines.Text())
		}
		err := cmd.Wait()
		exit, failed := errors.AsType[*exec.ExitError](err)
		d.killed = failed && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		d.output.WriteString(said.String())
	}()
}

// awaitLead waits until the server leads, or was killed at its point.
func (d *doomed) awaitLead() {
	d.Helper()
	select {
	case <-d.leads:
	case <-d.ended:
		d.mustBeKilled()
	case <-time.After(killPatience):
		d.Fatal("the server does not lead")
	}
}

// mustBeKilled is called when the server has ended.
func (d *doomed) mustBeKilled() {
	d.Helper()
	if !d.killed {
		d.Fatalf("the server ended by itself, with %q armed:\n%s", d.point, &d.output)
	}
}

func (d *doomed) dead() bool {
	select {
	case <-d.ended:
		return d.killed
	default:
		return false
	}
}

// dies waits until the server has ended, and tells whether it was killed by its point. It must not end by itself unless
// it was asked to.
func (d *doomed) dies(patience time.Duration) bool {
	d.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		return false
	}
	if d.in != nil {
		d.mustBeKilled()
	}
	return d.killed
}

// kill kills the server.
func (d *doomed) kill() {
	_ = d.cmd.Process.Kill()
	<-d.ended
}

// endInOrder asks the server to end.
func (d *doomed) endInOrder() {
	_ = d.in.Close()
	d.in = nil
}

// stop ends the server in order.
func (d *doomed) stop() {
	d.Helper()
	d.endInOrder()
	select {
	case <-d.ended:
	case <-time.After(killPatience):
		d.Fatal("the server does not end")
	}
	if d.killed || d.cmd.ProcessState.ExitCode() != 0 {
		d.Errorf("the server did not end in order:\n%s", &d.output)
	}
}

// awaitChanges waits until clients were told of n changes more, or the server was killed.
func (d *doomed) awaitChanges(n int64) {
	d.Helper()
	end := time.Now().Add(killPatience)
	for from := d.acknowledged.Load(); d.acknowledged.Load() < from+n; {
		select {
		case <-d.ended:
			d.mustBeKilled()
			return
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(end) {
			d.Fatal("no client is answered")
		}
	}
}

// live starts hosts and clients, has the server go through what during does, and judges what is left of it.
func (d *doomed) live(during func()) {
	d.Helper()
	d.start("")
	d.awaitLead()
	d.prepare()
	ctx, cancel := context.WithCancel(d.Context())
	var hosts, clients sync.WaitGroup
	defer hosts.Wait()
	defer cancel()
	for n := range 3 {
		a := &loadAgent{id: fmt.Sprint("host-", n), running: map[string]bool{}, again: 20 * time.Millisecond}
		a.client = admitPlainly(d.T, d.client, "http://"+d.listen[1], a.id)
		hosts.Go(func() { a.run(ctx) })
	}
	asking, enough := context.WithCancel(ctx)
	defer clients.Wait()
	defer enough()
	d.ask(asking, &clients)
	d.kill()

	during()
	d.start("")
	d.awaitEnds("a deployment has succeeded", succeeded)
	enough()
	clients.Wait()
	d.judgeRollouts(d.awaitEnds("no deployment is under way", allEnded))
	d.stop()
	d.judge()
}
