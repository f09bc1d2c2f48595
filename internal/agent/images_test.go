package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

// held lists the durable leases of a store as "kind name", sorted.
func held(t *testing.T, s *image.Store) []string {
	t.Helper()
	leases, err := s.Leases()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range leases {
		if l.Process == "" {
			all = append(all, l.Kind+" "+l.Name)
		}
	}
	slices.Sort(all)
	return all
}

func (l *lab) collect() {
	l.t.Helper()
	if _, err := l.store.GC(l.t.Context(), image.GCOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) cached() bool {
	_, ok, err := l.store.Lookup(l.image.ManifestDigest)
	if err != nil {
		l.t.Error(err)
	}
	return ok
}

// What an instance needs is held before its image is pulled, and until it is gone; what became ready stays for
// going back.
func TestInstancesHoldTheirImages(t *testing.T) {
	l := newLab(t)
	l.runs("api", playing(guesttest.Workload{}))
	l.runs("job", exits(1))
	l.start()
	l.deploy("api-1", l.app("api"))
	if got, want := held(t, l.store), []string{"deployment dev/api", "instance api-1"}; !slices.Equal(got, want) {
		t.Errorf("while it runs: %v, want %v", got, want)
	}
	l.collect()
	if !l.cached() {
		t.Fatal("the image of an instance was collected")
	}
	// The next agent of this host knows of it, and the one after that of its having gone meanwhile.
	l.end()
	if got := held(t, l.store); !slices.Contains(got, "instance api-1") {
		t.Errorf("after the agent: %v, want the instance", got)
	}
	l.take("api-1")
	l.start()
	l.poll("the lease of the instance to go", func() bool { return slices.Equal(held(t, l.store), []string{"deployment dev/api"}) })
	l.collect()
	if !l.cached() {
		t.Error("an image to go back to was collected")
	}
	// A deployment of the same image makes no request.
	requests := l.image.Requests("")
	l.deploy("api-2", l.app("api"))
	if got := l.image.Requests("") - requests; got != 0 {
		t.Errorf("going back took %d requests", got)
	}
	l.take("api-2")
	l.poll("the lease of the second instance to go", func() bool { return slices.Equal(held(t, l.store), []string{"deployment dev/api"}) })
}

// A layer that has rotted is put aside and fetched again while the instance runs.
func TestScrubMends(t *testing.T) {
	l := newLab(t)
	l.scrubRate = 1 << 30
	l.runs("api", playing(guesttest.Workload{}))
	l.start()
	l.deploy("api-1", l.app("api"))
	img, _, err := l.store.Lookup(l.image.ManifestDigest)
	if err != nil || img == nil {
		t.Fatal(err)
	}
	requests := l.image.Requests("")
	path := img.Layers[0].Path
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	l.poll("a good layer", func() bool {
		b, err := os.ReadFile(path)
		return err == nil && imagetest.Digest(b) == img.DiffIDs[0] && l.cached()
	})
	if got := l.image.Requests("") - requests; got != 1 {
		t.Errorf("%d blobs fetched, want the layer", got)
	}
	if q, _ := filepath.Glob(filepath.Join(l.dir, "images", "quarantine", "*")); len(q) != 1 {
		t.Errorf("in quarantine: %v", q)
	}
	l.awaitState("api-1", stateReady)
}

// An image for which there is no room fails the start with the reason; once there is room, the next attempt goes on
// by itself.
func TestNoRoomForAnImage(t *testing.T) {
	l := newLab(t)
	other := imagetest.New().Layer(imagetest.File("other", strings.Repeat("x", 100_000))).Build()
	lease, err := l.store.Lease(t.Context(), image.LeaseSpec{Owner: "cli", Kind: "kept"}, other.ManifestDigest, other.Manifest, other.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.store.Pull(t.Context(), other, other.ManifestDigest, other.Manifest, other.Config, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.store.Close(); err != nil {
		t.Fatal(err)
	}
	if l.store, err = image.OpenWith(filepath.Join(l.dir, "images"), image.Options{Quota: image.Quota{Bytes: 100_000}}); err != nil {
		t.Fatal(err)
	}
	l.runs("api", playing(guesttest.Workload{}))
	l.start()
	l.assign("dev", "api-1", l.app("api"))
	end := l.awaitAttemptEnd("api-1", 1)
	if end.Kind != causeStartFailed || end.Stage != "pull" || !strings.Contains(end.Detail, "no room for the image: it needs at least") ||
		!strings.Contains(end.Detail, "cli: 1 × kept") {
		t.Errorf("got %v", end)
	}
	if err := l.store.Release(lease.ID); err != nil {
		t.Fatal(err)
	}
	l.awaitState("api-1", stateReady)
}

// The store of a host is kept within its quota.
func TestAgentCollects(t *testing.T) {
	l := newLab(t)
	l.timing.unused = 0
	other := imagetest.New().Layer(imagetest.File("other", "x")).Build()
	if _, err := l.store.Pull(t.Context(), other, other.ManifestDigest, other.Manifest, other.Config, nil); err != nil {
		t.Fatal(err)
	}
	l.start()
	l.poll("the image that nobody wants to go", func() bool {
		_, ok, err := l.store.Lookup(other.ManifestDigest)
		return err == nil && !ok
	})
}

// What is kept for going back: the last three that were good for as long as the app is used, and the rest for a
// week.
func TestRetention(t *testing.T) {
	dir := t.TempDir()
	store, err := image.Open(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	now := time.Now()
	clock := func() time.Time { return now }
	k, err := openKeeper(store, "", filepath.Join(dir, "ran.json"), clock)
	if err != nil {
		t.Fatal(err)
	}
	images := map[string]*imagetest.Image{}
	run := func(app string, n int, good bool) {
		t.Helper()
		src := imagetest.New().Layer(imagetest.File("f", fmt.Sprint(app, n))).Build()
		images[src.ManifestDigest] = src
		i := &instance{id: fmt.Sprintf("%s-%d", app, n), assignment: &pinnacev1.Assignment{Environment: "dev", App: app}, workload: &workload{
			release: &pinnacev1.AssignedRelease{Sources: []string{"registry.test/" + app}, Platform: &pinnacev1.ReleasePlatform{
				ManifestDigest: src.ManifestDigest, ImageManifest: src.Manifest, ImageConfig: src.Config,
			}},
		}}
		if err := k.hold(t.Context(), i); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
			t.Fatal(err)
		}
		if err := k.used(t.Context(), i, good); err != nil {
			t.Fatal(err)
		}
		if err := k.release(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	left := func() string {
		t.Helper()
		// The leases say it to whoever collects, at the time that it is for the keeper: expired ones are gone.
		if err := func() error { k.mu.Lock(); defer k.mu.Unlock(); return k.keep(context.Background()) }(); err != nil {
			t.Fatal(err)
		}
		leases, err := store.Leases()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range leases {
			name := string(images[l.Image].Tars[0][512:560])
			names = append(names, strings.TrimRight(name, "\x00"))
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	for n := range 5 {
		run("api", n, true)
	}
	run("api", 5, false)
	run("web", 0, true)
	if got, want := left(), "api0 api1 api2 api3 api4 api5 web0"; got != want {
		t.Errorf("at first: %s, want %s", got, want)
	}
	now = now.Add(8 * 24 * time.Hour)
	run("api", 6, true)
	if got, want := left(), "api3 api4 api6 web0"; got != want {
		t.Errorf("after a week: %s, want %s", got, want)
	}
	// The record survives the agent.
	if k, err = openKeeper(store, "", filepath.Join(dir, "ran.json"), clock); err != nil {
		t.Fatal(err)
	}
	now = now.Add(25 * 24 * time.Hour)
	if got, want := left(), "api3 api4 api6"; got != want {
		t.Errorf("an app that has not run for long: %s, want %s", got, want)
	}
	if got := k.sources(""); len(got) != 0 {
		t.Errorf("sources of nothing: %v", got)
	}
	for digest, src := range images {
		if strings.Contains(string(src.Tars[0]), "api6") && !slices.Equal(k.sources(digest), []string{"registry.test/api"}) {
			t.Errorf("sources of the last: %v", k.sources(digest))
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "ran.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openKeeper(store, "", filepath.Join(dir, "ran.json"), clock); err == nil || !strings.Contains(err.Error(), "ran.json") {
		t.Errorf("a damaged record: %v", err)
	}
}
