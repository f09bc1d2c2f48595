package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

func lease(t *testing.T, s *image.Store, spec image.LeaseSpec, src *imagetest.Image) *image.Lease {
	t.Helper()
	l, err := s.Lease(t.Context(), spec, src.ManifestDigest, src.Manifest, src.Config)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func collect(t *testing.T, s *image.Store, opts image.GCOptions) *image.GCReport {
	t.Helper()
	r, err := s.GC(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// two images that share a layer, with a pack disk each.
func two() (a, b *imagetest.Image) {
	base := imagetest.File("base", strings.Repeat("b", 100_000))
	return imagetest.New().Layer(base).Layer(imagetest.File("a", strings.Repeat("a", 50_000))).Build(),
		imagetest.New().Layer(base).Layer(imagetest.File("b", strings.Repeat("c", 70_000))).Build()
}

func TestCollectionTakesWhatNobodyHolds(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, b := two()
	held := lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, a)
	for _, src := range []*imagetest.Image{a, b} {
		if _, err := s.Disks(pull(t, s, src), 1); err != nil {
			t.Fatal(err)
		}
	}
	before := stored(t, dir)
	dry := collect(t, s, image.GCOptions{DryRun: true})
	if got := stored(t, dir); got != before {
		t.Errorf("a dry run changed the store to %s", got)
	}
	r := collect(t, s, image.GCOptions{})
	if fmt.Sprint(dry.Removed) != fmt.Sprint(r.Removed) || dry.Freed != r.Freed {
		t.Errorf("the dry run said %v, removed was %v", dry.Removed, r.Removed)
	}
	// The layer of its own, its index, metadata, pack disk and record; the shared layer stays.
	if len(r.Removed) != 1 || r.Removed[0].Kind != "image" || r.Removed[0].Name != b.ManifestDigest {
		t.Errorf("removed %+v, want b only", r.Removed)
	}
	if r.Freed < 2*70_000 || r.Freed > 2*70_000+60_000 {
		t.Errorf("freed %d bytes", r.Freed)
	}
	if len(r.Kept) != 1 || r.Kept[0].Digest != a.ManifestDigest || len(r.Kept[0].Leases) != 1 || r.Kept[0].Leases[0].Name != "api-0" {
		t.Errorf("kept %+v, want a for api-0", r.Kept)
	}
	for i, diffID := range b.DiffIDs {
		if _, err := os.Stat(layerPath(dir, diffID)); (err == nil) != (i == 0) {
			t.Errorf("layer %d of the collected image: %v", i, err)
		}
	}
	if _, ok, err := s.Lookup(a.ManifestDigest); !ok || err != nil {
		t.Errorf("the held image: %v, %v", ok, err)
	}
	if packs, _ := filepath.Glob(filepath.Join(dir, "packs", "*")); len(packs) != 1 {
		t.Errorf("pack disks: %v, want that of the held image", packs)
	}
	sound(t, s, "after a collection")
	if err := s.Release(held.ID); err != nil {
		t.Fatal(err)
	}
	collect(t, s, image.GCOptions{})
	if left := stored(t, dir); left != "" {
		t.Errorf("nobody holds anything, and there is %s", left)
	}
}

func TestLeasesEnd(t *testing.T) {
	dir := t.TempDir()
	s, other := open(t, dir), open(t, dir)
	a, b := two()
	pull(t, s, a)
	pull(t, s, b)
	lease(t, s, image.LeaseSpec{Owner: "cli", Kind: "keep", Expires: time.Now().Add(time.Hour)}, a)
	lease(t, s, image.LeaseSpec{Owner: "cli", Kind: "keep", Expires: time.Now().Add(-time.Second)}, b)
	if l, err := other.Leases(); err != nil || len(l) != 1 || l[0].Image != a.ManifestDigest {
		t.Errorf("leases: %+v, %v, want the one that has not expired", l, err)
	}
	// What a process holds ends with it.
	lease(t, other, image.LeaseSpec{Owner: "cli", Kind: "check", Process: true}, b)
	if r := collect(t, s, image.GCOptions{}); len(r.Removed) != 0 {
		t.Errorf("removed %+v while another process holds it", r.Removed)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, s, image.GCOptions{}); len(r.Removed) != 1 || r.Removed[0].Name != b.ManifestDigest {
		t.Errorf("removed %+v, want b", r.Removed)
	}
	// Without a manifest, the image must be there.
	if _, err := s.Lease(t.Context(), image.LeaseSpec{Owner: "cli"}, b.ManifestDigest, nil, nil); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("lease of what is gone: %v", err)
	}
	if l, err := s.Lease(t.Context(), image.LeaseSpec{Owner: "cli"}, a.ManifestDigest, nil, nil); err != nil || !slices.Equal(l.DiffIDs, a.DiffIDs) {
		t.Errorf("lease of what is there: %+v, %v", l, err)
	}
}

// A lease that is older than its image counts, and so does one for what is being pulled right now.
func TestCollectionDuringAPull(t *testing.T) {
	dir := t.TempDir()
	puller, collector := open(t, dir), open(t, dir)
	a, b := two()
	pull(t, puller, a)
	// The pull has found the shared layer in the store, and waits for the registry with the other one.
	waiting, release := make(chan struct{}), make(chan struct{})
	b.Open = func(_ context.Context, digest string, _ int64) (io.ReadCloser, error) {
		close(waiting)
		<-release
		return io.NopCloser(bytes.NewReader(b.Blobs[digest])), nil
	}
	done := make(chan error, 1)
	go func() {
		_, err := puller.Pull(t.Context(), b, b.ManifestDigest, b.Manifest, b.Config, nil)
		done <- err
	}()
	<-waiting
	r := collect(t, collector, image.GCOptions{})
	if len(r.Removed) != 1 || r.Removed[0].Name != a.ManifestDigest {
		t.Errorf("removed %+v, want a", r.Removed)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("the pull: %v", err)
	}
	if n := b.Requests(b.BlobDigests[0]); n != 0 {
		t.Errorf("the layer that was there was fetched %d times", n)
	}
	sound(t, collector, "after both")
}

func TestCollectionStopsWhenItHasEnough(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var all []*imagetest.Image
	for i := range 4 {
		src := imagetest.New().Layer(imagetest.File("f", strings.Repeat(fmt.Sprint(i), 100_000))).Build()
		pull(t, s, src)
		used := time.Now().Add(time.Duration(i-4) * time.Hour)
		if err := os.Chtimes(filepath.Join(dir, "images", strings.TrimPrefix(src.ManifestDigest, "sha256:")+".json"), used, used); err != nil {
			t.Fatal(err)
		}
		all = append(all, src)
	}
	// The least recently used one was used just now.
	l := lease(t, s, image.LeaseSpec{Owner: "cli", Kind: "check", Process: true}, all[0])
	if err := s.Release(l.ID); err != nil {
		t.Fatal(err)
	}
	r := collect(t, s, image.GCOptions{Need: 150_000})
	if len(r.Removed) != 2 || r.Removed[0].Name != all[1].ManifestDigest || r.Removed[1].Name != all[2].ManifestDigest {
		t.Errorf("removed %+v, want the second and third", r.Removed)
	}
	r = collect(t, s, image.GCOptions{MinAge: 30 * time.Minute})
	if len(r.Removed) != 1 || len(r.Kept) != 1 || !r.Kept[0].Recent {
		t.Errorf("removed %+v and kept %+v, want the first to stay for being used lately", r.Removed, r.Kept)
	}
}

// What a lease holds is not known when its file is damaged, so nothing goes.
func TestCollectionRefusesDamagedLeases(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	a, _ := two()
	pull(t, s, a)
	l := lease(t, s, image.LeaseSpec{Owner: "agent", Kind: "instance", Name: "api-0"}, a)
	path := filepath.Join(dir, "leases", l.ID+".json")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(`{"id":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), image.GCOptions{}); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("collected with %v, want the file's name", err)
	}
	if _, ok, err := s.Lookup(a.ManifestDigest); !ok || err != nil {
		t.Errorf("the image: %v, %v", ok, err)
	}
}

const leaseDir = "PINNACE_IMAGE_LEASE_DIR"

// The leases of a process that was killed hold nothing, those that are durable do.
func TestLeasesOfKilledProcess(t *testing.T) {
	a, b := two()
	if dir := os.Getenv(leaseDir); dir != "" {
		s := open(t, dir)
		pull(t, s, a)
		pull(t, s, b)
		lease(t, s, image.LeaseSpec{Owner: "test", Kind: "use", Process: true}, a)
		lease(t, s, image.LeaseSpec{Owner: "test", Kind: "durable"}, b)
		fmt.Println("held")
		select {}
	}
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestLeasesOfKilledProcess$")
	child.Env = append(os.Environ(), leaseDir+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if r := collect(t, s, image.GCOptions{}); len(r.Removed) != 0 || len(r.Kept) != 2 {
		t.Errorf("removed %+v while the process lives", r.Removed)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	if r := collect(t, s, image.GCOptions{}); len(r.Removed) != 1 || r.Removed[0].Name != a.ManifestDigest {
		t.Errorf("removed %+v, want what only the dead process held", r.Removed)
	}
	if left := unfinished(t, dir); len(left) != 1 {
		t.Errorf("left in tmp: %v, want this process's directory only", left)
	}
	if leases, _ := filepath.Glob(filepath.Join(dir, "leases", "*")); len(leases) != 1 {
		t.Errorf("leases: %v, want the durable one", leases)
	}
}
