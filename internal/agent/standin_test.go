package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/holder"
	"github.com/pinnacehq/pinnace/internal/vm/monitor"
)

// standInName is what the test program is called when it is to be the monitor of a stand-in.
const standInName = "stand-in"

// TestMain is also the holder and the monitor of stand-ins.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case holder.Name:
		os.Exit(holder.Main(os.Args))
	case standInName:
		playStandIn(os.Args[1])
		os.Exit(0)
	}
	if text := os.Getenv(agentEnv); text != "" {
		if err := runTestAgent(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A standIn is a driver whose machines are real processes with real holders, records and sockets, and no virtual
// machine: the monitor plays the guest itself. It is for what an agent does with processes that outlive it.
type standIn struct {
	self string // the test program
}

var _ vm.Driver = (*standIn)(nil)

func newStandIn(t testing.TB) *standIn {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A monitor is told from the test program by its name.
	link := filepath.Join(t.TempDir(), standInName)
	if err := os.Symlink(self, link); err != nil {
		t.Fatal(err)
	}
	return &standIn{link}
}

func (s *standIn) Name() string { return standInName }

func (s *standIn) Probe(context.Context) (vm.Capabilities, error) {
	return vm.Capabilities{Driver: s.Name(), Version: "1", Accelerator: "tcg", Reason: "it only stands in", MaxDisks: 22}, nil
}

type standInMachine struct {
	*monitor.Monitor
	dir string
}

func (s *standIn) Start(_ context.Context, spec vm.Spec) (vm.Machine, error) {
	result, err := monitor.OpenResult(spec.Dir)
	if err != nil {
		return nil, err
	}
	defer result.Close()
	devNull, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer devNull.Close()
	l := monitor.Launch{Holder: s.self, Argv: []string{s.self, spec.Dir}, UID: -1, GID: -1, Tied: true}
	pending, err := monitor.Prepare(l, result, devNull)
	if err != nil {
		return nil, err
	}
	m := &standInMachine{dir: spec.Dir}
	m.Monitor, err = pending.Run(s.Name(), "", spec, m.options(), nil)
	return m, err
}

func (m *standInMachine) options() monitor.Options {
	return monitor.Options{Log: slog.New(slog.DiscardHandler), Release: func() {}, Remove: func() {
		for _, ch := range vm.Channels() {
			_ = os.Remove(filepath.Join(m.dir, string(ch))) // a test that looks will find it
		}
	}}
}

func (s *standIn) Adopt(_ context.Context, r vm.Record) (vm.Machine, error) {
	m := &standInMachine{dir: r.Dir}
	var err error
	if m.Monitor, err = monitor.Adopt(r, m.options()); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *standInMachine) Dial(ctx context.Context, ch vm.Channel) (net.Conn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.dir, string(ch)))
		if err == nil {
			return conn, nil
		}
		select {
		case <-m.Ended():
			return nil, vm.ErrEnded
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond): // it is about to listen
		}
	}
}

// playStandIn plays a guest with the channels in dir until its workload is stopped.
func playStandIn(dir string) {
	machine := guesttest.Machine{Control: listenPort(dir, vm.Control), Logs: listenPort(dir, vm.Logs), MemoryBytes: 96 << 20}
	guesttest.Workload{Run: func(ctx context.Context, p *guesttest.Process) int {
		for n := 1; ; n++ {
			_ = p.Log(guest.StreamStdout, fmt.Sprint("line ", n))
			select {
			case <-ctx.Done():
				return 0
			case <-time.After(time.Duration(n%40/39) * 20 * time.Millisecond): // in bursts
			}
		}
	}}.Boot(context.Background(), machine)
}

// A socketPort is the guest's end of a channel: a socket on which one host after the other connects.
type socketPort struct {
	l net.Listener

	mu   sync.Mutex
	conn net.Conn // guarded by mu; nil while there is no host
}

func listenPort(dir string, ch vm.Channel) *socketPort {
	l, err := net.Listen("unix", filepath.Join(dir, string(ch)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return &socketPort{l: l}
}

func (p *socketPort) host() (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == nil {
		conn, err := p.l.Accept()
		if err != nil {
			return nil, err
		}
		p.conn = conn
	}
	return p.conn, nil
}

func (p *socketPort) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn == conn {
		_ = conn.Close() // it is broken already
		p.conn = nil
	}
}

func (p *socketPort) Read(b []byte) (int, error) {
	return p.do(func(c net.Conn) (int, error) { return c.Read(b) })
}

func (p *socketPort) Write(b []byte) (int, error) {
	return p.do(func(c net.Conn) (int, error) { return c.Write(b) })
}
func (p *socketPort) Close() error { return p.l.Close() }

func (p *socketPort) do(f func(net.Conn) (int, error)) (int, error) {
	for {
		conn, err := p.host()
		if err != nil {
			return 0, err
		}
		if n, err := f(conn); err == nil {
			return n, nil
		}
		p.drop(conn)
	}
}

// deployMany starts machines of stand-ins and waits until all are ready.
func (l *lab) deployMany(n int) (pids []int) {
	l.t.Helper()
	l.other = newStandIn(l.t)
	l.start()
	for i := range n {
		l.assign("dev", fmt.Sprintf("api-%d", i), l.app("api"))
	}
	l.allReady(n)
	for i := range n {
		rec, err := vm.ReadRecord(filepath.Join(l.dir, "run", "vm", fmt.Sprintf("api-%d.1", i)))
		if err != nil {
			l.t.Fatal(err)
		}
		pids = append(pids, rec.Result().PID)
	}
	return pids
}

func (l *lab) allReady(n int) {
	l.t.Helper()
	l.eventually("all are ready, in their first attempt", func() bool {
		ready := 0
		for i := range n {
			all := l.server.reports[fmt.Sprintf("api-%d", i)]
			if len(all) > 0 && all[len(all)-1].State == stateReady && all[len(all)-1].Attempt == 1 {
				ready++
			}
		}
		return ready == n
	})
}

// TestProcessesAreTakenOver has machines that are processes: those that are on record are taken over, one that nobody
// can prove to be ours is ended, and nothing is left of it.
func TestProcessesAreTakenOver(t *testing.T) {
	l := newLab(t)
	pids := l.deployMany(4)
	l.leave()
	stray := filepath.Join(l.dir, "run", "vm", "api-3.1")
	if err := os.WriteFile(filepath.Join(stray, keptName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.forgetReports()
	l.start()
	l.await("api-3", "starts anew", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
	for i := range 3 {
		id := fmt.Sprintf("api-%d", i)
		if r := l.awaitState(id, stateReady); r.Attempt != 1 {
			t.Errorf("%s: attempt %d", id, r.Attempt)
		}
		rec, err := vm.ReadRecord(filepath.Join(l.dir, "run", "vm", id+".1"))
		if err != nil || rec.Result().PID != pids[i] {
			t.Errorf("%s: process %d, %v, want %d", id, rec.Result().PID, err, pids[i])
		}
	}
	if p, err := os.FindProcess(pids[3]); err == nil && p.Signal(nil) == nil {
		t.Errorf("process %d of the stray lives", pids[3])
	}
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stray's directory: %v", err)
	}
}

// The gates of an agent that starts: so many machines are taken over within so long, and cost so much memory each.
const (
	adopted     = 30
	adoptWithin = 2 * time.Second
	adoptMemory = 2 << 20
)

// BenchmarkAdopt measures how long an agent takes from its start until it has heard from the guests of 30 machines that
// another has left, and what its memory grows by. The machines are stand-ins: what is measured is the agent's path, with
// real processes, holders, records and channels.
func BenchmarkAdopt(b *testing.B) {
	l := newLab(b)
	l.deployMany(adopted)
	l.leave()
	var took []time.Duration
	var memory uint64
	for b.Loop() {
		b.StopTimer()
		before := heap()
		b.StartTimer()
		began := time.Now()
		if err := l.make(); err != nil {
			b.Fatal(err)
		}
		for i := range adopted {
			inst := l.agent.instances[fmt.Sprintf("api-%d", i)]
			if inst == nil {
				b.Fatalf("api-%d was not taken over", i)
			}
			if _, err := inst.adopted.guest.Hello(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		took = append(took, time.Since(began))
		b.StopTimer()
		memory = max(memory, (heap()-min(heap(), before))/adopted)
		l.run()
		l.leave()
		b.StartTimer()
	}
	slices.Sort(took)
	median := took[len(took)/2]
	b.ReportMetric(float64(median.Milliseconds()), "ms/30-machines")
	b.ReportMetric(float64(memory)/1024, "KiB/machine")
	if median > adoptWithin || memory > adoptMemory {
		b.Errorf("%d machines in %s, with %d KiB each; the gates are %s and %d KiB", adopted, median, memory>>10, adoptWithin, adoptMemory>>10)
	}
	b.StopTimer()
	l.forgetReports()
	l.start()
	l.allReady(adopted)
}

// BenchmarkAgentMemory measures what an agent's process grows by with 30 machines that write lines, all of it: heap,
// stacks and the runtime's own.
func BenchmarkAgentMemory(b *testing.B) {
	l := newLab(b)
	l.deploy2Store()
	l.other = newStandIn(b)
	cmd, end, _ := l.process()
	stop := func() { _ = end.Close(); _ = cmd.Wait() }
	empty := resident(b, cmd.Process.Pid)
	for i := range adopted {
		l.assign("dev", fmt.Sprintf("api-%d", i), l.app("api"))
	}
	l.allReady(adopted)
	for b.Loop() {
		stop()
		l.forgetReports()
		cmd, end, _ = l.process()
		l.allReady(adopted)
		time.Sleep(3 * time.Second) // of lines
		each := (resident(b, cmd.Process.Pid) - empty) / adopted
		b.ReportMetric(float64(each), "KiB/machine")
		if each > adoptMemory>>10 {
			b.Errorf("the agent has %d KiB for each machine; the gate is %d", each, adoptMemory>>10)
		}
	}
	b.StopTimer()
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		for _, a := range set.Assignments {
			a.Stop = true
		}
	})
	l.poll("all has stopped", func() bool { return l.standIns() == 0 })
	stop()
}

// resident is the memory of a process in KiB.
func resident(t testing.TB, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "VmRSS:")
	kib := 0
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
