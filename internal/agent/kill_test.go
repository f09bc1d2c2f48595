package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/network"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// agentEnv tells the test program to be an agent; it holds a testAgent.
const agentEnv = "AGENT_TEST_PROCESS"

// A testAgent is an agent of a test in a process of its own, which can be killed.
type testAgent struct {
	Dir, Server, StandIn string
}

// diskNetwork is a fakeNetwork that outlives the agent's process, as the host's does.
type diskNetwork struct {
	*fakeNetwork
	path string
}

type diskNetworkState struct {
	Attached map[string]map[string]network.Attachment
	Next     byte
}

func openDiskNetwork(path string) (*diskNetwork, error) {
	n := &diskNetwork{newFakeNetwork(), path}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return n, nil
	}
	var s diskNetworkState
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if s.Attached != nil {
		n.attached, n.next = s.Attached, s.Next
	}
	return n, err
}

func (n *diskNetwork) save(err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, jsonErr := json.Marshal(diskNetworkState{n.attached, n.next})
	return errors.Join(err, jsonErr, durable.WriteFile(n.path, b, 0o600))
}

func (n *diskNetwork) EnsureEnvironment(ctx context.Context, env string) (*network.Namespace, error) {
	ns, err := n.fakeNetwork.EnsureEnvironment(ctx, env)
	return ns, n.save(err)
}

func (n *diskNetwork) Attach(ctx context.Context, env, instance string, uid uint32) (*network.Attachment, error) {
	at, err := n.fakeNetwork.Attach(ctx, env, instance, uid)
	return at, n.save(err)
}

func (n *diskNetwork) Detach(ctx context.Context, env, instance string) error {
	return n.save(n.fakeNetwork.Detach(ctx, env, instance))
}

// runTestAgent runs an agent until it is killed or told to end. It says when it has taken over.
func runTestAgent(text string) error {
	var o testAgent
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	store, err := image.Open(filepath.Join(o.Dir, "images"))
	if err != nil {
		return err
	}
	if err := durable.RemoveTemps(o.Dir); err != nil { // as the real network does
		return err
	}
	nets, err := openDiskNetwork(filepath.Join(o.Dir, "network.json"))
	if err != nil {
		return err
	}
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	a, err := New(context.Background(), Options{
		Host: &pinnacev1.HostFacts{Id: "ship"}, Dir: filepath.Join(o.Dir, "data"), RunDir: filepath.Join(o.Dir, "run"),
		Server: pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: transport}, o.Server),
		Driver: &standIn{o.StandIn}, Images: store, Network: nets, Proxy: newFakeProxy(),
		Kernel: &kernel.Kernel{Path: filepath.Join(o.Dir, "vmlinuz"), Initramfs: filepath.Join(o.Dir, "initramfs")},
		Source: func(string) image.Source { return nil }, // the image is in the store
		Scratch: func(_ context.Context, path string, _ int64) error {
			return os.WriteFile(path, []byte("ext4"), 0o600)
		},
		PublicAddress: netip.MustParseAddr("0.0.0.0"), LeaveMachines: true,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	a.timing = labTiming()
	fmt.Println("up")
	ctx, cancel := context.WithCancel(context.Background())
	go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }() // its end is the word to end
	return a.Run(ctx)
}

// process starts an agent in a process of its own and waits until it has taken over.
func (l *lab) process() (cmd *exec.Cmd, end io.Closer, said *bytes.Buffer) {
	l.t.Helper()
	cmd, end, out, said := l.launch()
	word := make([]byte, 3)
	if _, err := io.ReadFull(out, word); err != nil {
		_ = cmd.Wait()
		l.t.Fatalf("the agent does not come up: %v\n%s", err, said)
	}
	return cmd, end, said
}

// launch starts an agent in a process of its own.
func (l *lab) launch() (cmd *exec.Cmd, end io.Closer, out io.Reader, said *bytes.Buffer) {
	l.t.Helper()
	b, err := json.Marshal(testAgent{l.dir, l.server.http.URL, l.other.(*standIn).self})
	if err != nil {
		l.t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentEnv+"="+string(b))
	said = &bytes.Buffer{}
	cmd.Stderr = said
	end, err = cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err = cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	return cmd, end, out, said
}

// TestKillAgentProcess kills an agent that is a process, with machines that are processes, again and again at random:
// while it takes over, in starts and stops of some instances, and in the flood of lines of others. PINNACE_KILLS says how
// often.
func TestKillAgentProcess(t *testing.T) {
	const steady = 3
	kills := 6
	if text := os.Getenv("PINNACE_KILLS"); text != "" {
		var err error
		if kills, err = strconv.Atoi(text); err != nil {
			t.Fatalf("PINNACE_KILLS: %v", err)
		}
	}
	l := newLab(t)
	t.Cleanup(func() {
		// A test that fails leaves what runs.
		if _, err := vm.Sweep(context.Background(), filepath.Join(l.dir, "run", "vm")); err != nil {
			t.Error(err)
		}
	})
	l.deploy2Store()
	l.other = newStandIn(t)
	for i := range steady {
		l.assign("dev", fmt.Sprintf("steady-%d", i), l.app("steady"))
	}
	cmd, end, said := l.process()
	for i := range steady {
		l.awaitState(fmt.Sprintf("steady-%d", i), stateReady)
	}
	pids := map[string]int{}
	for i := range steady {
		id := fmt.Sprintf("steady-%d", i)
		pids[id] = l.monitorOf(id, 1)
	}
	churned := 0
	for round := range kills {
		// One more starts, and one that may be at any point stops or is taken away.
		l.assign("dev", fmt.Sprintf("churn-%d", round), l.app("churn"))
		if round >= 2 {
			if gone := fmt.Sprintf("churn-%d", round-2); round%2 == 0 {
				l.stop(gone)
			} else {
				l.take(gone)
			}
			churned++
		}
		time.Sleep(rand.N(150 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if rand.N(3) == 0 {
			half, _, _, _ := l.launch()
			time.Sleep(rand.N(60 * time.Millisecond))
			_ = half.Process.Kill()
			_ = half.Wait()
		}
		cmd, end, said = l.process()
	}
	l.forgetReports()
	for round := range kills {
		id := fmt.Sprintf("churn-%d", round)
		// A start that was cut is taken up again, or made again under its number: nothing has run under it.
		if round >= kills-2 {
			if r := l.awaitState(id, stateReady); r.Attempt != 1 {
				t.Errorf("%s: attempt %d", id, r.Attempt)
			}
		} else if round%2 == 0 {
			if r := l.awaitEnd(id); r.Attempt > 1 {
				t.Errorf("%s: attempt %d", id, r.Attempt)
			}
		}
	}
	for id, pid := range pids {
		if r := l.awaitState(id, stateReady); r.Attempt != 1 {
			t.Errorf("%s: attempt %d", id, r.Attempt)
		}
		if got := l.monitorOf(id, 1); got != pid {
			t.Errorf("%s: process %d, want %d", id, got, pid)
		}
	}
	l.poll("nothing is left but what runs", func() bool {
		dirs, err := os.ReadDir(filepath.Join(l.dir, "run", "vm"))
		nets, netErr := openDiskNetwork(filepath.Join(l.dir, "network.json"))
		return err == nil && netErr == nil && len(dirs) == steady+2 && len(nets.attached["dev"]) == steady+2 && l.standIns() == steady+2
	})
	l.poll("no file is unfinished", func() bool { return unfinished(l.dir) == nil })

	// All of it stops in order, so that every line has been stored.
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		for _, a := range set.Assignments {
			a.Stop = true
		}
	})
	for id := range pids {
		if e := l.awaitEnd(id).End; e.Kind != causeExited || e.Code != 0 || !e.Planned {
			t.Errorf("%s: %v", id, e)
		}
		l.wantLines(id)
	}
	l.poll("all has stopped", func() bool { return l.standIns() == 0 })
	_ = end.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the agent ended with %v\n%s", err, said)
	}
	t.Logf("%d kills, %d instances stopped or taken away meanwhile", kills, churned)
}

// deploy2Store has an agent of this process run an instance, so that its image is in the store.
func (l *lab) deploy2Store() {
	l.t.Helper()
	l.start()
	l.deploy("first-1", l.app("first"))
	l.take("first-1")
	l.poll("it is gone", func() bool { return len(l.server.lastInstances()) == 0 })
	l.end()
	l.end = nil
	l.forgetReports()
}

func (s *fakeServer) lastInstances() []*pinnacev1.InstanceReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last.GetInstances()
}

// monitorOf is the process that plays an instance's machine.
func (l *lab) monitorOf(id string, attempt int) int {
	l.t.Helper()
	pid := 0
	l.poll("the machine of "+id+" runs", func() bool {
		b, err := os.ReadFile(filepath.Join(l.dir, "run", "vm", fmt.Sprintf("%s.%d", id, attempt), "monitor"))
		if err != nil {
			return false
		}
		_, err = fmt.Sscanf(string(b), "pid %d\n", &pid)
		return err == nil
	})
	return pid
}

// standIns counts the lab's stand-ins and their holders that run, and fails when there are not as many of each.
func (l *lab) standIns() int {
	monitors, holders := 0, 0
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		text := string(b)
		switch {
		case !strings.Contains(text, l.dir):
		case strings.HasPrefix(text, "pinnace-holder\x00"):
			holders++
		default:
			monitors++
		}
	}
	if monitors != holders {
		return -1
	}
	return monitors
}

// unfinished says which file below dir was begun and not finished. One that is being written is, for a moment.
func unfinished(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(filepath.Base(path), durable.TempPattern) {
			return fmt.Errorf("%s is not finished", path)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was, just now
		}
		return err
	})
}

// wantLines checks that the stored lines of an instance are all that it wrote, once and in order.
func (l *lab) wantLines(id string) {
	l.t.Helper()
	s, err := openLogStore(filepath.Join(l.dir, "data", "logs"), time.Now)
	if err != nil {
		l.t.Fatal(err)
	}
	n := uint64(0)
	err = s.read(l.t.Context(), id, 0, false, func(r logRecord) error {
		n++
		if r.Seq != n || r.Dropped != 0 || string(r.Data) != fmt.Sprint("line ", n) {
			return fmt.Errorf("line %d is %+v: %q", n, r, r.Data)
		}
		return nil
	})
	if err != nil || n < 10 {
		l.t.Errorf("%s: %d lines, %v", id, n, err)
	}
	l.t.Logf("%s: %d lines", id, n)
}
