package scheduler

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

const gib = 1 << 30

func host(id string, change ...func(*Host)) Host {
	h := Host{ID: id, Architecture: "amd64", Connected: true, MemoryBytes: 8 * gib, DiskBytes: 100 * gib, CPUMilli: 4000}
	for _, c := range change {
		c(&h)
	}
	return h
}

func request(n int, memory int64) Request {
	return Request{Instances: n, MemoryBytes: memory, DiskBytes: gib, CPUMilli: 250, Architectures: []string{"amd64"}}
}

func TestPlace(t *testing.T) {
	fuller := func(h *Host) { h.MemoryBooked = 4 * gib }
	busyCPU := func(h *Host) { h.CPUBooked = 4000 * cpuFactor }
	tests := []struct {
		name  string
		req   Request
		hosts []Host
		want  []string
	}{
		{"one host takes all", request(3, gib), []Host{host("a")}, []string{"a", "a", "a"}},
		{"spread comes first, ties go to the lower id", request(4, gib), []Host{host("b"), host("a"), host("c")}, []string{"a", "b", "c", "a"}},
		{"the fuller host is taken among equals", request(1, gib), []Host{host("a"), host("b", fuller)}, []string{"b"}},
		{"hosts that run the app already come later", request(2, gib), []Host{host("a", func(h *Host) { h.AppInstances = 2 }), host("b")}, []string{"b", "b"}},
		{"busy CPUs are taken last", request(1, gib), []Host{host("a", busyCPU), host("b")}, []string{"b"}},
		{"busy CPUs are taken", request(1, gib), []Host{host("a", busyCPU)}, []string{"a"}},
		{"architecture is hard", request(1, gib), []Host{host("a", func(h *Host) { h.Architecture = "arm64" }), host("b")}, []string{"b"}},
		{"a host that is away is left out", request(1, gib), []Host{host("a", func(h *Host) { h.Connected = false }), host("b")}, []string{"b"}},
		{"nothing asked for", request(0, gib), nil, []string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(tt.hosts)
			got, err := Place(tt.req, tt.hosts)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if !slices.Equal(tt.hosts, before) {
				t.Error("Place changed its input")
			}
		})
	}
}

func TestRefusalCountsReasons(t *testing.T) {
	full := func(h *Host) { h.MemoryBooked = h.MemoryBytes - 100*mib }
	fullDisk := func(h *Host) { h.DiskBooked = h.DiskBytes }
	away := func(h *Host) { h.Connected = false }
	arm := func(h *Host) { h.Architecture = "arm64" }
	tests := []struct {
		name  string
		req   Request
		hosts []Host
		want  string
	}{
		{
			"no hosts", request(1, gib), nil,
			"no host can take the instance: no host has joined; start `pinnace agent` on one",
		},
		{
			"memory", request(1, 512*mib),
			[]Host{host("a", full), host("b", full), host("c", full), host("d", away), host("e", arm)},
			"no host can take the instance: 1 of 5 hosts is not connected, 1 of 5 hosts is of another architecture (the release runs on amd64), 3 of 5 hosts lack memory (584 MiB needed with overhead, at most 100 MiB free)",
		},
		{
			"disk", request(2, 512*mib),
			[]Host{host("a", fullDisk)},
			"no host can take any of the 2 instances: 1 of 1 host lacks disk (1024 MiB needed, at most 0 MiB free)",
		},
		{
			"some fit", request(9, gib),
			[]Host{host("a")},
			"there is room for 7 of 9 instances only: 1 of 1 host lacks memory (1104 MiB needed with overhead, at most 464 MiB free)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Place(tt.req, tt.hosts)
			if _, ok := errors.AsType[*Refusal](err); !ok {
				t.Fatalf("got %v, want a refusal", err)
			}
			if err.Error() != tt.want {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
		})
	}
}

// TestPlaceDoesNotDependOnOrder shuffles the hosts: a fold or a map must not be able to change a decision.
func TestPlaceDoesNotDependOnOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var hosts []Host
	for i := range 40 {
		hosts = append(hosts, host(fmt.Sprintf("h%02d", i), func(h *Host) {
			h.MemoryBooked = rng.Int64N(8) * gib
			h.DiskBooked = rng.Int64N(100) * gib
			h.AppInstances = rng.IntN(3)
		}))
	}
	want, err := Place(request(30, gib), hosts)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
		got, err := Place(request(30, gib), hosts)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
}

func TestPlaceNeverOverbooks(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var hosts []Host
		for i := range 1 + rng.IntN(6) {
			hosts = append(hosts, host(fmt.Sprint(i), func(h *Host) { h.MemoryBytes = rng.Int64N(4 * gib); h.DiskBytes = rng.Int64N(8 * gib) }))
		}
		req := request(1+rng.IntN(8), 96*mib+rng.Int64N(gib))
		placed, err := Place(req, hosts)
		if err != nil {
			continue
		}
		for _, h := range hosts {
			n := int64(0)
			for _, id := range placed {
				if id == h.ID {
					n++
				}
			}
			if n*Footprint(req.MemoryBytes) > h.MemoryBytes || n*req.DiskBytes > h.DiskBytes {
				t.Fatalf("%d instances of %d bytes on a host with %d", n, req.MemoryBytes, h.MemoryBytes)
			}
		}
	}
}

func BenchmarkPlace(b *testing.B) {
	var hosts []Host
	for i := range 10000 {
		hosts = append(hosts, host(fmt.Sprintf("h%05d", i)))
	}
	for b.Loop() {
		if _, err := Place(request(10, gib), hosts); err != nil {
			b.Fatal(err)
		}
	}
}
