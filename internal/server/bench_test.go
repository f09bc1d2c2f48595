package server

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/scheduler"
)

// TestBenchScheduler measures what it costs to plan for a large fleet, as far as the bytes of the events, and fails
// where a gate is not met: make bench-control.
func TestBenchScheduler(t *testing.T) {
	if os.Getenv("PINNACE_BENCH_CONTROL") == "" {
		t.Skip("measures; run with make bench-control")
	}
	const rounds = 7
	fmt.Printf("\n%-46s %12s %10s %10s\n", "scheduler, on 10,000 hosts in 5 zones", "measured", "gate", "goal")
	for _, b := range []struct {
		what       string
		apps, each int
		gate, goal time.Duration
	}{
		{"1,000 apps of 100, a third by a label", 1000, 100, 400 * time.Millisecond, 250 * time.Millisecond},
		{"one app of 1,200, spread", 1, 1200, 50 * time.Millisecond, 50 * time.Millisecond},
	} {
		var cpu []time.Duration
		placed, size := 0, 0
		for range rounds {
			hosts := benchHosts(10_000)
			before := cpuTime(t)
			placed, size = planAll(t, hosts, b.apps, b.each)
			cpu = append(cpu, cpuTime(t)-before)
		}
		slices.Sort(cpu)
		got := cpu[rounds/2]
		mark := ""
		if got > b.gate {
			mark = "  MISSED"
			t.Errorf("%s: %v of CPU, the gate is %v", b.what, got, b.gate)
		}
		fmt.Printf("%-46s %9.1f ms %7d ms %7d ms%s\n", b.what, float64(got.Microseconds())/1000, b.gate.Milliseconds(), b.goal.Milliseconds(), mark)
		fmt.Printf("  %.0f placements/s of CPU, %d bytes of events; %.1f to %.1f ms in %d rounds\n", float64(placed)/got.Seconds(), size,
			float64(cpu[0].Microseconds())/1000, float64(cpu[rounds-1].Microseconds())/1000, rounds)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchHosts(n int) []scheduler.Host {
	hosts := make([]scheduler.Host, 0, n)
	for i := range n {
		hosts = append(hosts, scheduler.Host{
			ID: fmt.Sprintf("host-%05d", i), Architecture: "amd64", Zone: fmt.Sprint("zone-", i%5), Connected: true,
			Labels:      map[string]string{"disk": []string{"nvme", "hdd", "hdd"}[i%3]},
			MemoryBytes: 64 << 30, DiskBytes: 1 << 40, CPUMilli: 16000,
		})
	}
	return hosts
}

// planAll places all instances of the apps and encodes the events that say so. It returns how many were placed, and
// how many bytes the events have.
func planAll(t *testing.T, hosts []scheduler.Host, apps, each int) (placed, size int) {
	t.Helper()
	cluster := scheduler.NewCluster(hosts)
	for app := range apps {
		req := scheduler.Request{
			Ordinals: firstOrdinals(each), MemoryBytes: []int64{256 << 20, 512 << 20, 1 << 30}[app%3], DiskBytes: 1 << 30, CPUMilli: 250,
			Architectures: []string{"amd64"},
		}
		if apps > 1 && app%3 == 0 {
			req.Labels = map[string]string{"disk": "nvme"}
		}
		places, err := cluster.Place(req)
		if err != nil {
			t.Fatal(err)
		}
		deployment := fmt.Sprintf("dep-%012d", app)
		plan := &fleet.InstancesPlanned{Deployment: deployment}
		for _, p := range places {
			plan.Start = append(plan.Start, fleet.PlannedStart{
				Instance: fmt.Sprintf("app-%d-%06x", app, p.Ordinal), Ordinal: p.Ordinal, Host: p.Host, Deployment: deployment,
				Release: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			})
		}
		b, err := fleet.Encode(plan)
		if err != nil {
			t.Fatal(err)
		}
		placed, size = placed+len(places), size+len(b)
	}
	return placed, size
}
