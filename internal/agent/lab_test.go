package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
	"github.com/pinnacehq/pinnace/internal/kernel"
	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/release"
	"github.com/pinnacehq/pinnace/internal/vm"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// patience bounds every wait of the tests.
const patience = 20 * time.Second

// lab is a host with everything around it that an agent needs: the image store and the agent's own files are
// real, the rest keeps state and does what a test says.
type lab struct {
	t      testing.TB
	dir    string
	server *fakeServer
	net    *fakeNetwork
	proxy  *fakeProxy
	driver *vmtest.Fake
	other  vm.Driver // instead of driver, when it is not nil
	image  *imagetest.Image
	store  *image.Store
	timing timing

	scrubRate int64
	runDir    string // the agent's; "" for one below dir
	kernel    string // hash of the kernel that agents have from now on

	agent *Agent
	end   func() // ends the agent and waits until it has

	mu       sync.Mutex
	play     map[string]vmtest.Guest // guarded by mu: what the machines of an app do
	source   image.Source            // guarded by mu
	sourceAs func(string, Login) image.Source
	sourceOf func(string) image.Source // instead of the lab itself, when it is not nil
	running  map[string]int            // guarded by mu: machines, by id
	overlaps []string                  // guarded by mu: instances that had two machines at once
	peering  *Peering                  // of the agent
}

func newLab(t testing.TB) *lab {
	if t, ok := t.(*testing.T); ok {
		t.Parallel()
	}
	l := &lab{
		t: t, dir: t.TempDir(), server: newFakeServer(t), net: newFakeNetwork(), proxy: newFakeProxy(),
		image: imagetest.New().Layer(imagetest.Dir("app"), imagetest.File("app/server", "#!/bin/true\n").Mode(0o755)).
			Config(func(c map[string]any) {
				c["Entrypoint"] = []string{"/app/server"}
				c["Env"] = []string{"FROM=image", "BOTH=image"}
				c["StopSignal"] = "SIGINT"
			}).Build(),
		play: map[string]vmtest.Guest{}, running: map[string]int{},
		timing: labTiming(), kernel: "aa",
	}
	l.source = l.image
	l.driver = vmtest.NewFake(l.boot)
	for _, name := range []string{"vmlinuz", "initramfs"} {
		if err := os.WriteFile(filepath.Join(l.dir, name), []byte("fake\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	store, err := image.Open(filepath.Join(l.dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	l.store = store
	t.Cleanup(func() {
		if l.end != nil {
			l.end()
		}
		if err := l.store.Close(); err != nil {
			t.Error(err)
		}
		if !l.net.empty() {
			t.Error("something is still attached to a network")
		}
		if left, err := os.ReadDir(filepath.Join(l.dir, "run", "vm")); err == nil && len(left) > 0 {
			t.Errorf("machines left directories: %v", left)
		}
		if left, err := os.ReadDir(filepath.Join(l.dir, "data", "disks")); err == nil && len(left) > 0 {
			t.Errorf("machines left disks: %v", left)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.running) > 0 || len(l.overlaps) > 0 {
			t.Errorf("machines that still run: %v, instances with two at once: %v", l.running, l.overlaps)
		}
	})
	return l
}

// labTiming is the pace of agents in tests.
func labTiming() timing {
	return timing{
		heartbeat: 50 * time.Millisecond, reportSpacing: time.Millisecond,
		call: 5 * time.Second, silence: time.Minute, reconnect: 10 * time.Millisecond,
		resync: 100 * time.Millisecond, routing: 5 * time.Second,
		pullPauses: []time.Duration{time.Millisecond, 2 * time.Millisecond}, stall: time.Minute,
		hello: 10 * time.Second, start: 10 * time.Second, startInterval: 5 * time.Millisecond,
		drain: 5 * time.Millisecond, stopOnExit: 10 * time.Second,
		obituary: 300 * time.Millisecond, reset: 5 * time.Second, cleanUp: 5 * time.Second,
		backoffFirst: 100 * time.Millisecond, backoffMax: 200 * time.Millisecond, backoffReset: time.Minute,
		clock: 20 * time.Millisecond, stats: 10 * time.Millisecond, answer: 5 * time.Second,
		rotate: 10 * time.Millisecond, keepLine: 10 * time.Millisecond, logBeat: 10 * time.Millisecond,
		volumes: 20 * time.Millisecond,
		collect: time.Hour, unused: time.Hour, scrub: 10 * time.Millisecond,
	}
}

// start runs an agent, as the next process on this host.
func (l *lab) start() *lab {
	l.t.Helper()
	if err := l.make(); err != nil {
		l.t.Fatal(err)
	}
	return l.run()
}

// run runs the agent that was made.
func (l *lab) run() *lab {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.agent.Run(ctx) }()
	l.end = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				l.t.Errorf("the agent ended with %v", err)
			}
		case <-time.After(patience):
			l.t.Error("the agent does not end")
		}
	})
	return l
}

func (l *lab) make() error {
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	l.t.Cleanup(transport.CloseIdleConnections)
	var level slog.LevelVar
	level.Set(slog.LevelDebug)
	var driver vm.Driver = l.driver
	if l.other != nil {
		driver = l.other
	}
	a, err := New(l.t.Context(), Options{
		Host: &pinnacev1.HostFacts{Id: "ship"}, Dir: filepath.Join(l.dir, "data"), RunDir: cmp.Or(l.runDir, filepath.Join(l.dir, "run")),
		Server: pinnacev1connect.NewAgentServiceClient(&http.Client{Transport: transport}, l.server.http.URL),
		Driver: driver, Images: l.store, Network: l.net, Proxy: l.proxy,
		Kernel: &kernel.Kernel{
			Release: "6.12", Path: filepath.Join(l.dir, "vmlinuz"), SHA256: l.kernel, Initramfs: filepath.Join(l.dir, "initramfs"), InitramfsSHA256: "bb",
		},
		Source: func(repository string) image.Source {
			if l.sourceOf != nil {
				return l.sourceOf(repository)
			}
			return l
		}, SourceAs: l.sourceAs, ScrubRate: l.scrubRate,
		Scratch: func(_ context.Context, path string, size int64) error {
			if err := os.WriteFile(path, []byte("ext4"), 0o600); err != nil {
				return err
			}
			return os.Truncate(path, size)
		},
		PublicAddress: netip.MustParseAddr("0.0.0.0"), Peering: l.peering,
		Log: slog.New(slog.NewTextHandler(l.t.Output(), &slog.HandlerOptions{Level: &level})),
	})
	if err != nil {
		return err
	}
	a.timing = l.timing
	l.agent = a
	return nil
}

// Blob is that of the registry that the lab has just now.
func (l *lab) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	l.mu.Lock()
	source := l.source
	l.mu.Unlock()
	return source.Blob(ctx, digest, size)
}

// registry sets what serves the blobs from now on.
func (l *lab) registry(open func(ctx context.Context, digest string, size int64) (io.ReadCloser, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if open == nil {
		l.source = l.image
		return
	}
	l.source = sourceFunc(open)
}

type sourceFunc func(ctx context.Context, digest string, size int64) (io.ReadCloser, error)

func (f sourceFunc) Blob(ctx context.Context, digest string, size int64) (io.ReadCloser, error) {
	return f(ctx, digest, size)
}

// boot plays the guest of one machine: that of its app.
func (l *lab) boot(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
	id, _, _ := strings.Cut(g.Spec.ID, ".")
	app := id[:strings.LastIndex(id, "-")]
	l.mu.Lock()
	if l.running[id]++; l.running[id] > 1 {
		l.overlaps = append(l.overlaps, id)
	}
	guest := l.play[app]
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.running[id]--; l.running[id] == 0 {
			delete(l.running, id)
		}
	}()
	if guest == nil {
		guest = playing(guesttest.Workload{})
	}
	return guest(ctx, g)
}

// runs sets what the machines of an app do from now on.
func (l *lab) runs(app string, guest vmtest.Guest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.play[app] = guest
}

// playing is a guest that runs w.
func playing(w guesttest.Workload) vmtest.Guest {
	return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		return vmtest.End{Panic: w.Boot(ctx, guesttest.Machine{Control: g.Control, Logs: g.Logs, Console: g.Console, MemoryBytes: 128 << 20})}
	}
}

// inTurn plays one guest after the other, and the last one for ever.
func inTurn(guests ...vmtest.Guest) vmtest.Guest {
	var mu sync.Mutex
	n := 0
	return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		mu.Lock()
		guest := guests[min(n, len(guests)-1)]
		n++
		mu.Unlock()
		return guest(ctx, g)
	}
}

// exits is a process that ends by itself with code.
func exits(code int) vmtest.Guest {
	return playing(guesttest.Workload{Run: func(context.Context, *guesttest.Process) int { return code }})
}

// serves is a process that answers HTTP on ports until it is stopped.
func (l *lab) serves(handler http.Handler, ports ...int) vmtest.Guest {
	return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		return playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
			for _, port := range ports {
				ln, err := l.net.listen(g.Spec.NIC.Tap, port)
				if err != nil {
					return 98
				}
				srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Second}
				served := make(chan error, 1)
				go func() { served <- srv.Serve(ln) }()
				defer func() { _ = srv.Close(); <-served }()
			}
			<-ctx.Done()
			return 0
		}})(ctx, g)
	}
}

// answer is an HTTP handler with a status that can change.
type answer struct {
	mu     sync.Mutex
	status int
}

func (a *answer) set(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
}

func (a *answer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.WriteHeader(cmp.Or(a.status, http.StatusOK))
}

// app is a manifest with what a test adds to it.
func (l *lab) app(name string, more ...string) *pinnacev1.AssignedRelease {
	l.t.Helper()
	src := fmt.Sprintf("schema = \"v1\"\nname = %q\nresources.memory = \"96MiB\"\nresources.disk = \"64MiB\"\n%s\n", name, strings.Join(more, "\n"))
	m, problems := manifest.Parse([]byte(src))
	if m == nil {
		l.t.Fatalf("manifest: %v\n%s", problems, src)
	}
	r := release.Release{App: name, Image: release.ImageDigest(l.image.ManifestDigest), Manifest: m.Hash()}
	return &pinnacev1.AssignedRelease{
		Id: string(r.ID()), Image: l.image.ManifestDigest, ManifestHash: string(m.Hash()), ManifestCanonical: m.Canonical(),
		Sources: []string{"registry.test/" + name},
		Platform: &pinnacev1.ReleasePlatform{
			Architecture: "amd64", ManifestDigest: l.image.ManifestDigest, ImageManifest: l.image.Manifest, ImageConfig: l.image.Config,
		},
	}
}

// assign places an instance. Its app has the address 10.101.0.N in its environment, where N is that of its name.
func (l *lab) assign(env, instance string, rel *pinnacev1.AssignedRelease, change ...func(*pinnacev1.Assignment)) {
	app := instance[:strings.LastIndex(instance, "-")]
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		asg := &pinnacev1.Assignment{Instance: instance, Environment: env, App: app, Release: rel.Id, Deployment: "dep-1"}
		for _, c := range change {
			c(asg)
		}
		set.Assignments = append(set.Assignments, asg)
		set.Releases = append(set.Releases, rel)
		var in *pinnacev1.AssignedEnvironment
		for _, e := range set.Environments {
			if e.Name == env {
				in = e
			}
		}
		if in == nil {
			in = &pinnacev1.AssignedEnvironment{Name: env}
			set.Environments = append(set.Environments, in)
		}
		for _, a := range in.Apps {
			if a.App == app {
				return
			}
		}
		n := len(in.Apps) + 2
		in.Apps = append(in.Apps, &pinnacev1.AssignedApp{
			App: app, VirtualAddress: fmt.Sprintf("10.101.0.%d", n), VirtualAddressV6: fmt.Sprintf("fd00:7069:6e6e:101::%d", n),
		})
	})
}

// stop asks for the end of an instance.
func (l *lab) stop(instance string) {
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		for _, a := range set.Assignments {
			if a.Instance == instance {
				a.Stop = true
			}
		}
	})
}

// take takes the assignment of an instance away, and its environment when it was the last in it.
func (l *lab) take(instance string) {
	l.server.assign(func(set *pinnacev1.WatchAssignmentsResponse) {
		var kept []*pinnacev1.Assignment
		used := map[string]bool{}
		for _, a := range set.Assignments {
			if a.Instance != instance {
				kept = append(kept, a)
				used[a.Environment] = true
			}
		}
		set.Assignments = kept
		var envs []*pinnacev1.AssignedEnvironment
		for _, e := range set.Environments {
			if used[e.Name] {
				envs = append(envs, e)
			}
		}
		set.Environments = envs
	})
}

// deploy assigns an instance in "dev" and waits until it is ready.
func (l *lab) deploy(instance string, rel *pinnacev1.AssignedRelease) *pinnacev1.InstanceReport {
	l.t.Helper()
	l.assign("dev", instance, rel)
	return l.awaitState(instance, stateReady)
}

// during makes a guest that waits until the instance of its machine was reported with a state or message, and
// then goes on as guest.
func (l *lab) during(phase string, guest vmtest.Guest) vmtest.Guest {
	return func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		l.waitFor(ctx, g, phase)
		return guest(ctx, g)
	}
}

// waitFor waits on behalf of a machine until its instance was reported with a state or message.
func (l *lab) waitFor(ctx context.Context, g *vmtest.FakeGuest, phase string) {
	id, _, _ := strings.Cut(g.Spec.ID, ".")
	for {
		l.server.mu.Lock()
		all, changed := l.server.reports[id], l.server.changed
		l.server.mu.Unlock()
		if n := len(all); n > 0 && (all[n-1].State == phase || all[n-1].Message == phase) {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// poll waits for what no report tells.
func (l *lab) poll(what string, check func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(patience); !check(); {
		if time.Now().After(deadline) {
			l.t.Fatalf("in vain waited for: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// machine is the spec of the newest machine of an instance.
func (l *lab) machine(instance string) vm.Spec {
	l.t.Helper()
	var found vm.Spec
	for _, s := range l.driver.Started() {
		if strings.HasPrefix(s.ID, instance+".") {
			found = s
		}
	}
	if found.ID == "" {
		l.t.Fatalf("no machine was started for %s", instance)
	}
	return found
}

func hashOf(canonical []byte) string { return string(manifest.HashOf(canonical)) }

var errDown = &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
