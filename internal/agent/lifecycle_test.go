package agent

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/proxy"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

const (
	webPort    = `ports.web = { port = 8080, expose = "public", edge = "raw", public_port = 80 }`
	httpHealth = `health.ready = { type = "http", port = "web", path = "/readyz", interval = "1s", timeout = "1s" }`
)

// TestAssignmentBecomesReady goes through the whole life of an instance, once with each kind of check.
func TestAssignmentBecomesReady(t *testing.T) {
	tests := map[string]struct {
		manifest []string
		guest    func(l *lab) vmtest.Guest
	}{
		"no port":    {nil, func(*lab) vmtest.Guest { return playing(guesttest.Workload{}) }},
		"every port": {[]string{webPort, "ports.admin.port = 9090"}, func(l *lab) vmtest.Guest { return l.serves(&answer{}, 8080, 9090) }},
		"http":       {[]string{webPort, httpHealth}, func(l *lab) vmtest.Guest { return l.serves(&answer{}, 8080) }},
		"http, 204":  {[]string{webPort, `health.ready = { type = "http", port = "web", status = [204, 200] }`}, func(l *lab) vmtest.Guest { return l.serves(&answer{status: 204}, 8080) }},
		"tcp":        {[]string{webPort, `health.ready = { type = "tcp", port = "web" }`}, func(l *lab) vmtest.Guest { return l.serves(&answer{}, 8080) }},
		"exec":       {[]string{`health.ready = { type = "exec", command = ["/ok"] }`}, func(*lab) vmtest.Guest { return playing(guesttest.Workload{}) }},
		"exec, 3 in a row": {[]string{`health.ready = { type = "exec", command = ["/ok"], pass = 3 }`}, func(*lab) vmtest.Guest {
			var asked atomic.Int32
			return playing(guesttest.Workload{Exec: func([]string) guest.ExecResult {
				if n := asked.Add(1); n == 3 {
					return guest.ExecResult{Code: 1}
				}
				return guest.ExecResult{}
			}})
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.runs("api", tt.guest(l))
			l.start()
			r := l.deploy("api-1", l.app("api", tt.manifest...))
			if r.Attempt != 1 || r.ReadyAt == nil || r.End != nil || r.Final || r.Message != "" {
				t.Errorf("got %v", r)
			}
			var stages []string
			for _, s := range r.Stages {
				stages = append(stages, s.Name)
			}
			if want := []string{"pull", "build", "network", "disks", "jail", "vmm", "kernel", "init", "exec", "ready"}; !slices.Equal(stages, want) {
				t.Errorf("stages: got %q, want %q", stages, want)
			}
			b := r.Booted
			if b == nil || !strings.HasPrefix(b.ManifestHash, "sha256:") || b.ImageManifestDigest != l.image.ManifestDigest || !slices.Equal(b.DiffIds, l.image.DiffIDs) ||
				b.RootfsSha256 == "" || b.Converter == "" || b.KernelSha256 != "aa" || b.InitramfsSha256 != "bb" || b.Driver != "fake" {
				t.Errorf("booted: got %v", b)
			}
			l.stop("api-1")
			if end := l.awaitEnd("api-1"); end.End.Kind != causeExited || !end.End.Planned {
				t.Errorf("end: got %v", end.End)
			}
		})
	}
}

func TestGuestGetsManifestOverImage(t *testing.T) {
	l := newLab(t)
	configs := make(chan guest.Config, 1)
	l.runs("api", playing(guesttest.Workload{Run: func(ctx context.Context, p *guesttest.Process) int {
		configs <- p.Config
		<-ctx.Done()
		return 0
	}}))
	l.start()
	l.deploy("api-1", l.app("api", `command = ["--fast"]`, `env = { BOTH = "manifest" }`, `user = "app"`, `resources.cpu = 1.5`))
	c := <-configs
	if p := c.Process; !slices.Equal(p.Entrypoint, []string{"/app/server"}) || !slices.Equal(p.Cmd, []string{"--fast"}) || p.User != "app" ||
		p.StopSignal != "SIGINT" || !slices.Equal(p.Env, []string{"BOTH=manifest", "FROM=image"}) {
		t.Errorf("process: got %+v", p)
	}
	if c.Hostname != "api-1" || c.Network == nil || c.Network.Addresses[0] != "10.100.0.2/16" || len(c.Disks) != 3 || len(c.LayerSlots) != 1 {
		t.Errorf("config: got %+v", c)
	}
	if m := l.machine("api-1"); m.VCPUs != 2 || m.MemoryMiB != 96 || len(m.Disks) != 3 || m.Netns != "/run/netns/dev" {
		t.Errorf("machine: got %+v", m)
	}
}

// TestUnreadyAndBack sees an instance leave the routing and come back, without a restart and without the end of
// the connections that it has.
func TestUnreadyAndBack(t *testing.T) {
	l := newLab(t)
	web := &answer{}
	l.runs("api", l.serves(web, 8080))
	l.start()
	first := l.deploy("api-1", l.app("api", webPort, `health.ready = { type = "http", port = "web", interval = "1s", fail = 1, pass = 1, timeout = "1s" }`))
	web.set(http.StatusServiceUnavailable)
	r := l.awaitState("api-1", stateUnready)
	if want := "health.ready failed: GET / answered 503, not 200"; r.Message != want {
		t.Errorf("message: got %q, want %q", r.Message, want)
	}
	web.set(http.StatusOK)
	r = l.awaitState("api-1", stateReady)
	if r.Attempt != 1 || !r.ReadyAt.AsTime().Equal(first.ReadyAt.AsTime()) || len(r.Stages) != len(first.Stages) {
		t.Errorf("ready again: got %v", r)
	}
	if got, want := l.proxy.history("api-1"), []proxy.BackendState{proxy.Active, proxy.Draining, proxy.Active}; !slices.Equal(got, want) {
		t.Errorf("routing: got %q, want %q", got, want)
	}
}

func TestNotReadyYetSaysWhy(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 9090))
	l.start()
	l.assign("dev", "api-1", l.app("api", webPort, "ports.admin.port = 9090"))
	r := l.await("api-1", "says why it is not ready", func(r *pinnacev1.InstanceReport) bool { return strings.Contains(r.Message, "port web") })
	if want := "not ready yet: port web (8080): connect: connection refused"; r.Message != want || r.State != stateStarted {
		t.Errorf("got %s: %q, want %q", r.State, r.Message, want)
	}
	if public, ok := l.proxy.listener("public/0.0.0.0:80"); !ok || len(public.Backends) != 0 {
		t.Errorf("public port: got %+v, %v; want it bound and without backends", public, ok)
	}
}

func TestRefusedAssignments(t *testing.T) {
	tests := map[string]struct {
		spoil func(a *pinnacev1.Assignment, r *pinnacev1.AssignedRelease)
		want  string
	}{
		"wrong hash": {func(_ *pinnacev1.Assignment, r *pinnacev1.AssignedRelease) {
			r.ManifestHash = "sha256:" + strings.Repeat("0", 64)
		}, "not to sha256:0000"},
		"not canonical": {func(_ *pinnacev1.Assignment, r *pinnacev1.AssignedRelease) {
			r.ManifestCanonical = append([]byte(" "), r.ManifestCanonical...)
			r.ManifestHash = hashOf(r.ManifestCanonical)
		}, "read the manifest"},
		"not a manifest": {func(_ *pinnacev1.Assignment, r *pinnacev1.AssignedRelease) {
			r.ManifestCanonical = []byte("{}")
			r.ManifestHash = hashOf(r.ManifestCanonical)
		}, "read the manifest"},
		"no release":        {func(a *pinnacev1.Assignment, _ *pinnacev1.AssignedRelease) { a.Release = "sha256:other" }, "sent no release sha256:other"},
		"no platform":       {func(_ *pinnacev1.Assignment, r *pinnacev1.AssignedRelease) { r.Platform = nil }, "no image for the architecture"},
		"a path for a name": {func(a *pinnacev1.Assignment, _ *pinnacev1.AssignedRelease) { a.Instance = "../api-1" }, "cannot be the name"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLab(t).start()
			rel := l.app("api")
			asg := &pinnacev1.Assignment{Instance: "api-1", Environment: "dev", App: "api", Release: rel.Id}
			tt.spoil(asg, rel)
			l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
				set.Assignments, set.Releases = append(set.Assignments, asg), append(set.Releases, rel)
			})
			r := l.awaitEnd(asg.Instance)
			if r.End.Kind != causeStartFailed || r.End.Stage != "assignment" || !strings.Contains(r.End.Detail, tt.want) {
				t.Errorf("got %v, want %q", r.End, tt.want)
			}
			if len(l.driver.Started()) != 0 {
				t.Error("a machine was started")
			}
		})
	}
}

// TestTwoEnvironments has an app of the same name in two environments, which know nothing of each other.
func TestTwoEnvironments(t *testing.T) {
	l := newLab(t)
	l.runs("api", l.serves(&answer{}, 8080))
	l.start()
	internal := l.app("api", "ports.web.port = 8080")
	l.assign("prod", "api-1", internal)
	l.assign("test", "api-2", internal)
	l.awaitState("api-1", stateReady)
	l.awaitState("api-2", stateReady)
	for env, instance := range map[string]string{"prod": "api-1", "test": "api-2"} {
		id := "internal/" + env + "/api/10.101.0.2:8080"
		ln, ok := l.proxy.listener(id)
		if !ok || len(ln.Backends) != 1 || ln.Backends[0].ID != instance || ln.Netns != "/run/netns/"+env || ln.Backends[0].Netns != ln.Netns {
			t.Errorf("%s: got %+v", id, ln)
		}
	}
	l.take("api-2")
	l.eventually("the instance is gone", func() bool { return len(l.server.last.Instances) == 1 })
	l.poll("the network of an environment without instances is removed", func() bool { return slices.Equal(l.net.Environments(), []string{"prod"}) })
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if slices.Contains(l.net.log, "detach from nothing") {
		t.Errorf("the network was removed before its instances had left: %q", l.net.log)
	}
	if want := []netip.Addr{netip.MustParseAddr("10.101.0.2"), netip.MustParseAddr("fd00:7069:6e6e:101::2")}; !slices.Equal(l.net.virtual["prod"], want) {
		t.Errorf("virtual addresses: got %v", l.net.virtual["prod"])
	}
}

// TestBrokenEnvironmentBreaksNoOther: what goes wrong in one network is not held against instances in another.
func TestBrokenEnvironmentBreaksNoOther(t *testing.T) {
	l := newLab(t)
	l.net.broken["prod"] = errDown
	l.start()
	l.assign("prod", "api-1", l.app("api"))
	if end := l.awaitAttemptEnd("api-1", 1); end.Stage != "network" || !strings.Contains(end.Detail, "virtual addresses of prod") {
		t.Errorf("got %v", end)
	}
	l.assign("test", "api-2", l.app("api"))
	l.awaitState("api-2", stateReady)
}
