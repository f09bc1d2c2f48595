package scheduler

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
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

func in(zone string) func(*Host) { return func(h *Host) { h.Zone = zone } }
func labelled(l, v string) func(*Host) {
	return func(h *Host) { h.Labels = map[string]string{l: v} }
}

func request(n int, memory int64, change ...func(*Request)) Request {
	r := Request{MemoryBytes: memory, DiskBytes: gib, CPUMilli: 250, Architectures: []string{"amd64"}}
	for o := range n {
		r.Ordinals = append(r.Ordinals, o)
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func hostsOf(placed []Placement) []string {
	ids := make([]string, 0, len(placed))
	for _, p := range placed {
		ids = append(ids, p.Host)
	}
	return ids
}

func TestPlace(t *testing.T) {
	fuller := func(h *Host) { h.MemoryBooked = 4 * gib }
	busyCPU := func(h *Host) { h.CPUBooked = 4000 * DefaultCPUFactor / 100 }
	running := func(on map[string]int) func(*Request) { return func(r *Request) { r.Running = on } }
	bound := func(at map[int]string) func(*Request) { return func(r *Request) { r.Bound = at } }
	wants := func(l, v string) func(*Request) {
		return func(r *Request) { r.Labels = map[string]string{l: v} }
	}
	tests := []struct {
		name  string
		req   Request
		hosts []Host
		want  []string
	}{
		{"one host takes all", request(3, gib), []Host{host("a")}, []string{"a", "a", "a"}},
		{"spread comes first, ties go to the lower id", request(4, gib), []Host{host("b"), host("a"), host("c")}, []string{"a", "b", "c", "a"}},
		{"the fuller host is taken among equals", request(1, gib), []Host{host("a"), host("b", fuller)}, []string{"b"}},
		{"hosts that run the app already come later", request(2, gib, running(map[string]int{"a": 2})), []Host{host("a"), host("b")}, []string{"b", "b"}},
		{"a host that is unknown runs nothing that counts", request(1, gib, running(map[string]int{"x": 2})), []Host{host("a")}, []string{"a"}},
		{"busy CPUs are taken last", request(1, gib), []Host{host("a", busyCPU), host("b")}, []string{"b"}},
		{"busy CPUs are taken", request(1, gib), []Host{host("a", busyCPU)}, []string{"a"}},
		{"a host's own factor", request(1, gib), []Host{host("a", busyCPU, func(h *Host) { h.CPUFactor = 800 }), host("b")}, []string{"a"}},
		{"CPU that is promised counts as fullness", request(1, gib), []Host{host("a"), host("b", func(h *Host) { h.CPUBooked = 8000 })}, []string{"b"}},
		{"architecture is hard", request(1, gib), []Host{host("a", func(h *Host) { h.Architecture = "arm64" }), host("b")}, []string{"b"}},
		{"a host that is away is left out", request(1, gib), []Host{host("a", func(h *Host) { h.Connected = false }), host("b")}, []string{"b"}},
		{"a host that drains is left out", request(1, gib), []Host{host("a", func(h *Host) { h.Draining = true }), host("b")}, []string{"b"}},
		{"labels are hard", request(2, gib, wants("disk", "nvme")), []Host{host("a", labelled("disk", "hdd")), host("b", labelled("disk", "nvme")), host("c")}, []string{"b", "b"}},
		{"an empty label is not an absent one", request(1, gib, wants("ingress", "")), []Host{host("a"), host("b", labelled("ingress", ""))}, []string{"b"}},
		{
			"zones come before hosts",
			request(4, gib),
			[]Host{host("a", in("x")), host("b", in("x")), host("c", in("x")), host("d", in("y"))},
			[]string{"a", "d", "b", "d"},
		},
		{
			"a full zone does not hold up the others",
			request(3, 3*gib),
			[]Host{host("a", in("x")), host("b", in("y"), func(h *Host) { h.MemoryBooked = 4 * gib })},
			[]string{"b", "a", "a"},
		},
		{
			"what drains counts for its zone",
			request(1, gib, running(map[string]int{"a": 1})),
			[]Host{host("a", in("x"), func(h *Host) { h.Draining = true }), host("b", in("x")), host("c", in("y"))},
			[]string{"c"},
		},
		{"volumes are hard", request(3, gib, bound(map[int]string{1: "b", 2: "b"})), []Host{host("a"), host("b")}, []string{"a", "b", "b"}},
		{
			"what is bound gets its room first",
			request(2, 4*gib, bound(map[int]string{1: "a"})),
			[]Host{host("a"), host("b")},
			[]string{"b", "a"},
		},
		{"nothing asked for", request(0, gib), nil, []string{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(tt.hosts)
			got, err := Place(tt.req, tt.hosts)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(hostsOf(got), tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			for n, p := range got {
				if p.Ordinal != tt.req.Ordinals[n] {
					t.Errorf("placement %d is of ordinal %d", n, p.Ordinal)
				}
			}
			if !reflect.DeepEqual(tt.hosts, before) {
				t.Error("Place changed its input")
			}
		})
	}
}

func TestRefusalCountsReasons(t *testing.T) {
	full := func(h *Host) { h.MemoryBooked = h.MemoryBytes - 100*mib }
	fullDisk := func(h *Host) { h.DiskBooked = h.DiskBytes }
	away := func(h *Host) { h.Connected = false }
	drains := func(h *Host) { h.Draining = true }
	arm := func(h *Host) { h.Architecture = "arm64" }
	quota := func(q Quota) func(*Request) { return func(r *Request) { r.Quota = &q } }
	tests := []struct {
		name   string
		req    Request
		hosts  []Host
		placed []string
		want   string
	}{
		{
			"no hosts", request(1, gib), nil, nil,
			"no host can take the instance: no host has joined; start `pinnace agent` on one",
		},
		{
			"memory", request(1, 512*mib),
			[]Host{host("a", full), host("b", full), host("c", full), host("d", away), host("e", arm)},
			nil,
			"no host can take the instance: 1 of 5 hosts is not connected, 1 of 5 hosts is of another architecture (the release runs on amd64), 3 of 5 hosts lack memory (584 MiB needed with overhead, at most 100 MiB free)",
		},
		{
			"drains and labels", request(1, 512*mib, func(r *Request) { r.Labels = map[string]string{"disk": "nvme", "zone": "x"} }),
			[]Host{host("a", drains), host("b", drains), host("c", labelled("disk", "nvme"))},
			nil,
			"no host can take the instance: 2 of 3 hosts are draining, 1 of 3 hosts has not the labels that the app is placed by (disk=nvme, zone=x)",
		},
		{
			"disk", request(2, 512*mib),
			[]Host{host("a", fullDisk)},
			nil,
			"no host can take any of the 2 instances: 1 of 1 host lacks disk (1024 MiB needed, at most 0 MiB free)",
		},
		{
			"some fit", request(9, gib),
			[]Host{host("a")},
			[]string{"a", "a", "a", "a", "a", "a", "a"},
			"there is room for 7 of 9 instances only: 1 of 1 host lacks memory (1104 MiB needed with overhead, at most 464 MiB free)",
		},
		{
			"volumes", request(3, gib, func(r *Request) { r.Bound = map[int]string{0: "a", 1: "gone"} }),
			[]Host{host("a", drains), host("b")},
			[]string{"b"},
			"there is room for 1 of 3 instances only: instance 0 can only run on host a, where its volumes are, which is draining; instance 1 can only run on host gone, where its volumes are, which is not one of the hosts any more",
		},
		{
			"volumes need room", request(2, gib, func(r *Request) {
				r.VolumesBytes, r.Bound, r.Grown = 50*gib, map[int]string{0: "a"}, map[int]int64{0: 10 * gib}
			}),
			[]Host{
				host("a", func(h *Host) { h.VolumesBooked = 95 * gib }), host("b", func(h *Host) { h.VolumesBooked = 200 * gib }),
				host("c", func(h *Host) { h.DiskBooked, h.VolumesBooked = 20*gib, 40*gib }), host("d", away), host("e", away),
			},
			nil,
			"no host can take any of the 2 instances: 2 of 5 hosts are not connected, 3 of 5 hosts lack disk (52224 MiB needed with its volumes, at most 40960 MiB free); instance 0 can only run on host a, where its volumes are, which lacks disk (11264 MiB needed)",
		},
		{
			// What was promised once is no reason to keep an instance from the volumes that it has.
			"volumes that are there", request(1, gib, func(r *Request) { r.Bound, r.VolumesBytes = map[int]string{0: "a"}, gib }),
			[]Host{host("a", func(h *Host) { h.VolumesBooked = 200 * gib; h.MemoryBooked = h.MemoryBytes })},
			nil,
			"no host can take the instance: instance 0 can only run on host a, where its volumes are, which lacks memory (1104 MiB needed with overhead)",
		},
		{
			"quota of memory", request(3, gib, quota(Quota{Instances: 10, MemoryBytes: gib + 1, CPUMilli: 10000})),
			[]Host{host("a")},
			[]string{"a"},
			"there is room for 1 of 3 instances only: the environment's quota leaves 1024 MiB of memory (each needs 1024 MiB)",
		},
		{
			"quota of all", request(2, gib, quota(Quota{Instances: -1, MemoryBytes: -1, CPUMilli: 100})),
			[]Host{host("a")},
			nil,
			"no host can take any of the 2 instances: the environment's quota leaves 0 instances and 0 MiB of memory (each needs 1024 MiB) and 0.100 of CPU (each needs 0.250)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			placed, err := Place(tt.req, tt.hosts)
			refusal, ok := errors.AsType[*Refusal](err)
			if !ok {
				t.Fatalf("got %v, want a refusal", err)
			}
			if err.Error() != tt.want {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
			if !slices.Equal(hostsOf(placed), tt.placed) || refusal.Placed != len(tt.placed) {
				t.Errorf("placed %v (%d), want %v", placed, refusal.Placed, tt.placed)
			}
		})
	}
}

// naive decides as the documentation of Place says, one instance after the other, by looking at all hosts.
func naive(req Request, hosts []Host) []Placement {
	hosts = slices.Clone(hosts)
	slices.SortFunc(hosts, func(a, b Host) int { return cmp.Compare(a.ID, b.ID) })
	running := maps.Clone(req.Running)
	if running == nil {
		running = map[string]int{}
	}
	room := req.Quota.room(req, len(req.Ordinals))
	got := map[int]string{}
	put := func(ordinal int, h *Host, volumes int64) {
		h.book(&req, volumes)
		running[h.ID]++
		got[ordinal] = h.ID
	}
	for _, o := range req.Ordinals {
		for i := range hosts {
			if id, ok := req.Bound[o]; ok && hosts[i].ID == id && lacksFor(&req, &hosts[i], o) == fits && len(got) < room {
				put(o, &hosts[i], req.Grown[o])
			}
		}
	}
	for _, o := range req.Ordinals {
		if _, ok := req.Bound[o]; ok || len(got) == room {
			continue
		}
		zones := map[string]int{}
		for i := range hosts {
			zones[hosts[i].Zone] += running[hosts[i].ID]
		}
		busy := func(h *Host) int {
			if h.CPUBooked >= h.promisable() {
				return 1
			}
			return 0
		}
		var best *Host
		for i := range hosts {
			h := &hosts[i]
			if lacks(&req, h) != fits {
				continue
			}
			if best == nil || cmp.Or(
				cmp.Compare(zones[h.Zone], zones[best.Zone]), cmp.Compare(running[h.ID], running[best.ID]),
				cmp.Compare(busy(h), busy(best)), cmp.Compare(best.fullness(), h.fullness()),
			) < 0 {
				best = h
			}
		}
		if best != nil {
			put(o, best, req.VolumesBytes)
		}
	}
	placed := []Placement{}
	for _, o := range req.Ordinals {
		if id, ok := got[o]; ok {
			placed = append(placed, Placement{o, id})
		}
	}
	return placed
}

func randomHosts(rng *rand.Rand, n int) []Host {
	var hosts []Host
	for i := range n {
		hosts = append(hosts, host(fmt.Sprintf("h%03d", i), func(h *Host) {
			h.Zone = []string{"", "x", "y"}[rng.IntN(3)]
			h.MemoryBooked, h.DiskBooked, h.CPUBooked = rng.Int64N(8)*gib, rng.Int64N(100)*gib, rng.Int64N(20000)
			if rng.IntN(3) == 0 {
				h.VolumesBooked = rng.Int64N(120) * gib // more than there is, now and then
			}
			h.Connected, h.Draining = rng.IntN(10) > 0, rng.IntN(10) == 0
			h.Labels = map[string]string{"disk": []string{"hdd", "nvme"}[rng.IntN(2)]}
			if rng.IntN(8) == 0 {
				h.Architecture = "arm64"
			}
		}))
	}
	return hosts
}

func randomRequest(rng *rand.Rand, hosts []Host) Request {
	return request(rng.IntN(40), 96*mib+rng.Int64N(2*gib), func(r *Request) {
		r.Running = map[string]int{}
		for range rng.IntN(10) {
			r.Running[hosts[rng.IntN(len(hosts))].ID] = rng.IntN(4)
		}
		if rng.IntN(3) == 0 {
			r.Labels = map[string]string{"disk": "nvme"}
		}
		if rng.IntN(4) == 0 {
			r.Architectures = append(r.Architectures, "arm64")
		}
		if rng.IntN(3) == 0 && len(r.Ordinals) > 0 {
			r.Bound = map[int]string{rng.IntN(len(r.Ordinals)): hosts[rng.IntN(len(hosts))].ID}
			if rng.IntN(2) == 0 {
				r.Grown = map[int]int64{slices.Collect(maps.Keys(r.Bound))[0]: rng.Int64N(20 * gib)}
			}
		}
		if rng.IntN(3) == 0 {
			r.VolumesBytes = rng.Int64N(20 * gib)
		}
		if rng.IntN(4) == 0 {
			r.Quota = &Quota{Instances: rng.IntN(40), MemoryBytes: rng.Int64N(40 * gib), CPUMilli: rng.Int64N(10000)}
		}
	})
}

// TestPlaceAsDocumented compares with a scheduler that is too simple to be wrong, for several requests in a row.
func TestPlaceAsDocumented(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	refused := 0
	for round := range 400 {
		hosts := randomHosts(rng, 1+rng.IntN(60))
		c := NewCluster(hosts)
		for range 5 {
			req := randomRequest(rng, hosts)
			want := naive(req, c.hosts)
			got, err := c.Place(req)
			if !slices.Equal(got, want) {
				t.Fatalf("round %d: got %v, want %v", round, got, want)
			}
			if (err == nil) != (len(want) == len(req.Ordinals)) {
				t.Fatalf("round %d: %d of %d placed, and the error is %v", round, len(want), len(req.Ordinals), err)
			}
			if err != nil {
				refused++
			}
			for _, z := range c.zones {
				for n, r := range z.order {
					if r != c.rank(r.index()) || n > 0 && z.order[n-1] >= r {
						t.Fatalf("round %d: the order of the hosts is wrong at %d", round, n)
					}
				}
			}
		}
	}
	if refused < 100 || refused > 1900 {
		t.Errorf("%d of 2000 requests were refused: that leaves something untested", refused)
	}
}

// TestPlaceDoesNotDependOnOrder shuffles the hosts: a fold or a map must not be able to change a decision.
func TestPlaceDoesNotDependOnOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	hosts := randomHosts(rng, 60)
	for range 20 {
		req := randomRequest(rng, hosts)
		want, wantErr := Place(req, hosts)
		for range 10 {
			rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
			got, err := Place(req, hosts)
			if !slices.Equal(got, want) || fmt.Sprint(err) != fmt.Sprint(wantErr) {
				t.Fatalf("got %v, %v, want %v, %v", got, err, want, wantErr)
			}
		}
	}
}

func TestPlaceNeverOverbooks(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var hosts []Host
		for i := range 1 + rng.IntN(6) {
			hosts = append(hosts, host(fmt.Sprint(i), func(h *Host) { h.MemoryBytes = rng.Int64N(4 * gib); h.DiskBytes = rng.Int64N(8 * gib) }))
		}
		req := request(1+rng.IntN(8), 96*mib+rng.Int64N(gib))
		placed, _ := Place(req, hosts)
		for _, h := range hosts {
			n := int64(0)
			for _, p := range placed {
				if p.Host == h.ID {
					n++
				}
			}
			if n*Footprint(req.MemoryBytes) > h.MemoryBytes || n*req.DiskBytes > h.DiskBytes {
				t.Fatalf("%d instances of %d bytes on a host with %d", n, req.MemoryBytes, h.MemoryBytes)
			}
		}
	}
}

// fleet is n hosts in 5 zones, of which every third has fast disks.
func fleet(n int) []Host {
	hosts := make([]Host, 0, n)
	for i := range n {
		h := host(fmt.Sprintf("h%05d", i), in(fmt.Sprint("zone", i%5)), labelled("disk", []string{"nvme", "hdd", "hdd"}[i%3]))
		h.MemoryBytes, h.CPUMilli, h.DiskBytes = 64*gib, 16000, 1000*gib
		hosts = append(hosts, h)
	}
	return hosts
}

// BenchmarkFill places 100,000 instances of 1,000 apps on 10,000 hosts, every third app by a label.
func BenchmarkFill(b *testing.B) {
	hosts := fleet(10_000)
	for b.Loop() {
		c := NewCluster(hosts)
		for app := range 1000 {
			req := request(100, []int64{256 * mib, 512 * mib, 1 * gib}[app%3])
			if app%3 == 0 {
				req.Labels = map[string]string{"disk": "nvme"}
			}
			if placed, err := c.Place(req); err != nil || len(placed) != 100 {
				b.Fatal(len(placed), err)
			}
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "placements/s")
}

// BenchmarkSingles places 100,000 apps of one instance each.
func BenchmarkSingles(b *testing.B) {
	hosts := fleet(10_000)
	for b.Loop() {
		c := NewCluster(hosts)
		for range 100_000 {
			if _, err := c.Place(request(1, 512*mib)); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.N)*100_000/b.Elapsed().Seconds(), "placements/s")
}

// BenchmarkJob1200 places one job of 1,200 instances, spread over zones and hosts, on 10,000 hosts.
func BenchmarkJob1200(b *testing.B) {
	hosts := fleet(10_000)
	for b.Loop() {
		if _, err := Place(request(1200, 512*mib), hosts); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1200/b.Elapsed().Seconds(), "placements/s")
}
