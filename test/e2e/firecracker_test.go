package e2e

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/vm/cgroup"
	"github.com/pinnacehq/pinnace/internal/vm/firecracker/firecrackertest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// firecrackerGuests are what the stand-in for Firecracker plays.
var firecrackerGuests = map[string]firecrackertest.Guest{
	firecrackertest.RealInit: playsInit(guesttest.Workload{
		Run: func(ctx context.Context, p *guesttest.Process) int {
			if err := p.Log(guest.StreamStdout, "the workload runs"); err != nil {
				return 1
			}
			<-ctx.Done()
			return 0
		},
		Exec: func(argv []string) guest.ExecResult {
			if argv[0] != "/bin/healthy" {
				return guest.ExecResult{Code: 127}
			}
			return guest.ExecResult{}
		},
	}),
}

// playsInit is a guest of the stand-in that speaks pinnace-init's protocol and runs w.
func playsInit(w guesttest.Workload) firecrackertest.Guest {
	return func(ctx context.Context, m *firecrackertest.Machine) vmtest.End {
		return vmtest.End{Panic: w.Boot(ctx, guesttest.Machine{
			Control: m.Stream(guest.ControlPort), Logs: m.Stream(guest.LogsPort), Console: m.Console, MemoryBytes: m.MemoryBytes,
		})}
	}
}

// TestFirecracker runs all of Pinnace on the stand-in for Firecracker and its jailer, from a deploy to the end, and lets
// an agent with another driver take the machine over.
func TestFirecracker(t *testing.T) {
	if skip != "" {
		t.Skip(skip)
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs a /dev/kvm that opens, whether it works or not: ", err)
	}
	kvm.Close()
	program, jailer := firecrackertest.Install(t)
	fc := []string{"--firecracker", program, "--jailer", jailer}
	// Where the disk under the lab cannot be bounded, agents that are told to refuse to start machines.
	if _, err := cgroup.DevicesOf([]string{os.TempDir()}); err == nil {
		fc = append(fc, "--vm-io-rate", "100MiB", "--vm-io-operations", "5000")
	}
	l := newLab(t, append([]string{"--driver", "auto"}, fc...)...)
	if out := l.out.String(); !strings.Contains(out, "firecracker "+firecrackertest.Version+" (kvm)") || !strings.Contains(out, "it works here") {
		t.Errorf("pinnace dev said:\n%s", out)
	}
	app := l.manifest("app", `schema = "v1"
name = "app"
resources = { memory = "128MiB", disk = "64MiB" }
rollout = { hold = "200ms" }
stop = { timeout = "5s" }
health.ready = { type = "exec", command = ["/bin/healthy"], interval = "1s", timeout = "1s" }
`)
	l.must("deploy", "-f", app, "--image", l.push("app", "v1", workloadImage(t, "1", nil)))
	before := l.instances()
	if len(before) != 1 || before[0].State != "ready" || before[0].Booted == nil || before[0].Booted.Driver != "firecracker" ||
		before[0].Booted.DriverVersion != firecrackertest.Version {
		t.Fatalf("got %+v", before)
	}
	if out := l.must("logs", "app"); !strings.Contains(out, "the workload runs") {
		t.Errorf("its output is %q", out)
	}
	l.wantBounded(t, before[0].ID+".1")
	jails := filepath.Join(l.dir, "data", "agent", "jails", "*", "vm-*")
	if n := count(t, jails); n != 1 {
		t.Errorf("%d jails for one machine", n)
	}

	// Whoever comes next has another driver for new machines, and goes on with this one.
	l.kill()
	l.flags = append([]string{"--driver", "qemu", "--accel", "tcg"}, fc...)
	l.start()
	l.eventually(30*time.Second, "the next agent has the instance", func() error {
		if list := l.instances(); len(list) != 1 || list[0].State != "ready" || list[0].Attempt != 1 || list[0].ID != before[0].ID {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	if n := count(t, jails); n != 1 {
		t.Errorf("%d jails for one machine", n)
	}
	l.must("stop", "app")
	if n := count(t, jails); n != 0 {
		t.Errorf("%d jails are left", n)
	}
	if n := count(t, filepath.Join(l.dir, "data", "agent", "disks", "*")); n != 0 {
		t.Errorf("%d scratch disks are left", n)
	}
}

// wantBounded looks at what the cgroup of a machine says of its bounds: 128 MiB for the guest, and the default request of a
// quarter of a processor.
func (l *lab) wantBounded(t *testing.T, machine string) {
	t.Helper()
	h, err := cgroup.Find()
	if err != nil || len(h.Missing()) > 0 {
		t.Logf("nothing is bounded here: %v, missing %v", err, h.Missing())
		return
	}
	parent := fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(l.dir, "run", "agent"))))[:12]
	group := filepath.Join("pinnace", parent, machine)
	want := map[string]string{"memory.max": fmt.Sprint((128 + 64) << 20), "cpu.weight": "10", "pids.max": "257"}
	dirs := map[string]string{}
	if h.Version == 1 {
		want = map[string]string{"memory.limit_in_bytes": want["memory.max"], "cpu.shares": "256", "pids.max": "257"}
		dirs = map[string]string{"cpu.shares": "../cpu", "pids.max": "../pids"}
	}
	for file, value := range want {
		b, err := os.ReadFile(filepath.Join(h.Mount, dirs[file], group, file))
		if got := strings.TrimSpace(string(b)); err != nil || got != value {
			t.Errorf("%s of the machine's cgroup: got %q, %v, want %q", file, got, err, value)
		}
	}
}
