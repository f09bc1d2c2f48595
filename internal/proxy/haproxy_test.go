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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// The gates: parts of what HAProxy does with the same core in the same run.
	gateThroughput  = 0.9
	gateConnections = 0.5
)

// TestAgainstHAProxy measures the proxy and HAProxy (TCP mode; splice for the stream, because it slows connections
// down) in turn: new connections per second with wrk, and a stream from sendfile to a receiver that has the kernel
// drop what comes, so that neither end is the bottleneck. The two have one core, load and backends the other one: run it as `make bench-proxy` does.
func TestAgainstHAProxy(t *testing.T) {
	if os.Getenv("PINNACE_BENCH_PROXY") != "1" {
		t.Skip("a benchmark: make bench-proxy")
	}
	rounds, err := strconv.Atoi(os.Getenv("ROUNDS"))
	if err != nil || rounds < 1 {
		rounds = 5
	}
	web, sink := freePort(t), sinkhole(t)
	haWeb, haSink, ourWeb, ourSink := freePort(t), freePort(t), freePort(t), freePort(t)
	haproxy(t, "0", fmt.Sprintf(`
defaults
  mode http
  timeout connect 3s
  timeout client 60s
  timeout server 60s
frontend web
  bind %s
  http-request return status 200 content-type text/plain string "hello"
`, web))
	theirs := haproxy(t, "1", fmt.Sprintf(`
defaults
  mode tcp
  timeout connect 3s
  timeout client 60s
  timeout server 60s
listen web
  bind %s
  server s %s
listen sink
  bind %s
  option splice-request
  option splice-response
  server s %s
`, haWeb, web, haSink, sink))
	socket := filepath.Join(t.TempDir(), "proxy.sock")
	ours := pinned(t, "1", os.Args[0])
	ours.Env = append(os.Environ(), "PROXY_TEST_SOCKET="+socket, "GOMAXPROCS=1")
	begin(t, ours)
	eventually(t, "the proxy answers", func() (bool, string) { _, err := ask(t, socket); return err == nil, fmt.Sprint(err) })
	tell(t, socket, Config{Listeners: []Listener{
		{ID: "web", Address: ourWeb, Backends: []Backend{active("web", web)}},
		{ID: "sink", Address: ourSink, Backends: []Backend{active("sink", sink)}},
	}})
	for _, at := range []netip.AddrPort{web, haWeb} {
		eventually(t, "HAProxy listens", func() (bool, string) {
			c, err := call(at)
			if err == nil {
				_ = c.Close()
			}
			return err == nil, fmt.Sprint(err)
		})
	}
	var conns, streams comparison
	for range rounds {
		conns.direct = append(conns.direct, connect(t, web, 0).rate)
		conns.theirs = append(conns.theirs, connect(t, haWeb, theirs.Process.Pid))
		conns.ours = append(conns.ours, connect(t, ourWeb, ours.Process.Pid))
		streams.direct = append(streams.direct, stream(t, sink, 0).rate)
		streams.theirs = append(streams.theirs, stream(t, haSink, theirs.Process.Pid))
		streams.ours = append(streams.ours, stream(t, ourSink, ours.Process.Pid))
	}
	conns.report(t, "connections/s", "µs of CPU each", 1e6, gateConnections)
	streams.report(t, "MiB/s", "ms of CPU for a GiB", 1024e3, gateThroughput)
	s, err := ask(t, socket)
	check(t, err)
	if l, _ := s.Listener("sink"); l.SplicedIn < l.Received*9/10 {
		t.Errorf("only %d of %d bytes were spliced", l.SplicedIn, l.Received)
	}
}

// A measurement is a rate, and what it cost the proxy: seconds of CPU for each unit.
type measurement struct{ rate, cost float64 }

type comparison struct {
	direct       []float64
	theirs, ours []measurement
}

func (c *comparison) report(t *testing.T, unit, cost string, scale, gate float64) {
	t.Helper()
	var rates, costs []float64
	for i := range c.ours {
		rates = append(rates, c.ours[i].rate/c.theirs[i].rate)
		costs = append(costs, c.theirs[i].cost/c.ours[i].cost)
	}
	line := func(name string, m []measurement) {
		var rate, cpu []float64
		for _, one := range m {
			rate, cpu = append(rate, one.rate), append(cpu, one.cost*scale)
		}
		t.Logf("%-8s %s %s, %s %s", name, spread(rate), unit, spread(cpu), cost)
	}
	t.Logf("%-8s %s %s", "direct", spread(c.direct), unit)
	line("HAProxy", c.theirs)
	line("Pinnace", c.ours)
	got := median(rates)
	t.Logf("ratio of rates %s, by CPU %s; the gate is %.2f", spread(rates), spread(costs), gate)
	if got < gate {
		t.Errorf("%s: %.2f of HAProxy's, less than %.2f", unit, got, gate)
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func spread(v []float64) string {
	return fmt.Sprintf("%.4g (%.4g to %.4g)", median(v), slices.Min(v), slices.Max(v))
}

// cpuOf is how many seconds of CPU the process has used.
func cpuOf(t *testing.T, pid int) float64 {
	t.Helper()
	if pid == 0 {
		return 0
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(t, err)
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err := strconv.ParseFloat(fields[11], 64)
	check(t, err)
	system, err := strconv.ParseFloat(fields[12], 64)
	check(t, err)
	return (user + system) / 100 // the kernel's unit for this, on all machines
}

var wrkTotals = regexp.MustCompile(`(\d+) requests in [\s\S]*Requests/sec:\s+([\d.]+)`)

// connect makes a new connection for each request, from 32 clients at once.
func connect(t *testing.T, at netip.AddrPort, pid int) measurement {
	t.Helper()
	before := cpuOf(t, pid)
	out, err := exec.Command("wrk", "-t1", "-c32", "-d3s", "-H", "Connection: close", "http://"+at.String()+"/").CombinedOutput()
	check(t, err)
	m := wrkTotals.FindStringSubmatch(string(out))
	if m == nil || strings.Contains(string(out), "Socket errors") || strings.Contains(string(out), "Non-2xx") {
		t.Fatalf("wrk says:\n%s", out)
	}
	n, _ := strconv.ParseFloat(m[1], 64)
	rate, _ := strconv.ParseFloat(m[2], 64)
	return measurement{rate, (cpuOf(t, pid) - before) / n}
}

// stream sends for two seconds.
func stream(t *testing.T, at netip.AddrPort, pid int) measurement {
	t.Helper()
	const chunk = 16 << 20
	file, err := os.Create(filepath.Join(t.TempDir(), "chunk"))
	check(t, err)
	defer func() { _ = file.Close() }()
	_, err = file.Write(make([]byte, chunk))
	check(t, err)
	c := mustCall(t, at)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	before, began, sent := cpuOf(t, pid), time.Now(), int64(0)
	for time.Since(began) < 2*time.Second {
		_, err := file.Seek(0, io.SeekStart)
		check(t, err)
		n, err := c.ReadFrom(file) // sendfile
		check(t, err)
		sent += n
	}
	check(t, c.CloseWrite())
	_, err = c.Read(make([]byte, 1)) // all of it has arrived
	if !errors.Is(err, io.EOF) {
		t.Fatalf("the end of the stream: %v", err)
	}
	took, mib := time.Since(began), float64(sent)/(1<<20)
	_ = c.Close()
	return measurement{mib / took.Seconds(), (cpuOf(t, pid) - before) / mib}
}

// sinkhole is a server that has the kernel drop what it is sent.
func sinkhole(t *testing.T) netip.AddrPort {
	t.Helper()
	return server(t, func(c *net.TCPConn) {
		raw, err := c.SyscallConn()
		if err != nil {
			return
		}
		b := make([]byte, 1<<20)
		for n := 1; n > 0; {
			if raw.Read(func(fd uintptr) bool {
				n, _, err = unix.Recvfrom(int(fd), b, unix.MSG_TRUNC)
				return !errors.Is(err, unix.EAGAIN)
			}) != nil || err != nil {
				return
			}
		}
	})
}

// haproxy runs with one thread on one core, until the end of the test.
func haproxy(t *testing.T, core, config string) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	check(t, os.WriteFile(path, []byte("global\n  maxconn 2000\n  nbthread 1\n  maxpipes 500\n"+config), 0o600))
	cmd := pinned(t, core, "haproxy", "-db", "-f", path)
	begin(t, cmd)
	return cmd
}

func pinned(t *testing.T, core, name string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.Command("taskset", append([]string{"-c", core, name}, args...)...)
}

func begin(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stderr = os.Stderr
	check(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
}

// TestHAProxyUnderstandsUs has HAProxy read our PROXY header, and us read HAProxy's.
func TestHAProxyUnderstandsUs(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil || os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("needs haproxy and PINNACE_E2E=1")
	}
	between := freePort(t)
	heard := make(chan string, 1)
	p := start(t, Options{})
	in, out := freePort(t), freePort(t)
	end := server(t, func(c *net.TCPConn) {
		from, _, err := readHeader(c)
		heard <- fmt.Sprint(from, err)
	})
	haproxy(t, "0", fmt.Sprintf(`
defaults
  mode tcp
  timeout connect 3s
  timeout client 60s
  timeout server 60s
listen l
  bind %s accept-proxy
  server s %s send-proxy-v2
`, between, out))
	p.apply(Config{Listeners: []Listener{
		{ID: "in", Address: in, Backends: []Backend{active("ha", between)}, ProxyProtocol: ProxyV2},
		{
			ID: "out", Address: out, Backends: []Backend{active("end", end)}, ProxyProtocol: ProxyV2,
			AcceptProxy: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		},
	}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		// HAProxy may not listen yet: then the connection is reset.
		c, err := call(in)
		if err == nil {
			defer func() { _ = c.Close() }()
			_, _ = io.WriteString(c, "x")
		}
		select {
		case got := <-heard:
			if want := fmt.Sprint(c.LocalAddr(), nil); got != want {
				t.Errorf("through both, the client is %s, want %s", got, want)
			}
			return
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("nothing came through")
		}
	}
}
