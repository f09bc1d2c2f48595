package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
)

func TestPullAndLookup(t *testing.T) {
	for _, form := range []string{"oci", "docker"} {
		t.Run(form, func(t *testing.T) {
			b := imagetest.New().
				Layer(imagetest.Dir("etc"), imagetest.File("etc/motd", "hello\n")).
				Layer(imagetest.File("app", strings.Repeat("x", 100_000))).
				Config(func(c map[string]any) {
					c["Entrypoint"] = []string{"/app"}
					c["Env"] = []string{"A=b"}
					c["User"] = "nobody"
					c["ExposedPorts"] = map[string]any{"80/tcp": map[string]any{}}
				})
			if form == "docker" {
				b.Docker()
			}
			src := b.Build()
			s := open(t, t.TempDir())
			if _, ok, err := s.Lookup(src.ManifestDigest); ok || err != nil {
				t.Fatalf("lookup before pull: %v, %v", ok, err)
			}
			img := pull(t, s, src)
			if got := fmt.Sprintf("%v %v %v %v", img.Config.Entrypoint, img.Config.Env, img.Config.User, img.Config.Ignored.ExposedPorts); got != "[/app] [A=b] nobody [80/tcp]" {
				t.Errorf("config: %s", got)
			}
			for i, l := range img.Layers {
				b, err := os.ReadFile(l.Path)
				if err != nil || !bytes.Equal(b, src.Tars[i]) || l.Size != int64(len(b)) || l.DiffID != imagetest.Digest(b) {
					t.Errorf("layer %d is not the tar: %v", i, err)
				}
			}
			requests := src.Requests("")
			again, ok, err := s.Lookup(src.ManifestDigest)
			if err != nil || !ok || again.MetadataSHA256 != img.MetadataSHA256 || again.Config.User != "nobody" {
				t.Errorf("lookup: got %+v, %v, %v", again, ok, err)
			}
			pull(t, s, src)
			if got := src.Requests(""); got != requests || got != 2 {
				t.Errorf("%d requests, want 2 and none for the cached image", got)
			}
		})
	}
}

// The metadata and the pack disk of the same layers are the same bytes from every compression and either kind of
// manifest, with one worker and with eight, in every run and store.
func TestSameBytesWhateverTheWay(t *testing.T) {
	for name, build := range map[string]func() *imagetest.Builder{"corpus": imagetest.Together, "variety": variety} {
		var first *image.Image
		var pack []byte
		for _, compression := range []imagetest.Compression{imagetest.Gzip, imagetest.Zstd, imagetest.None} {
			for _, workers := range []int{1, 8} {
				for _, builder := range []*imagetest.Builder{build(), build().Docker()} {
					s, err := image.OpenWith(t.TempDir(), image.Options{Workers: workers})
					if err != nil {
						t.Fatal(err)
					}
					img := pull(t, s, builder.Compress(compression).Build())
					set, err := s.Disks(img, 0)
					if err != nil {
						t.Fatal(err)
					}
					got, disk := read(t, img.Metadata), read(t, set.Drives[0].Path)
					if err := s.Close(); err != nil {
						t.Error(err)
					}
					if "sha256:"+img.MetadataSHA256 != imagetest.Digest(got) {
						t.Errorf("MetadataSHA256 is not that of the file")
					}
					if first == nil {
						first, pack = img, disk
						continue
					}
					if !bytes.Equal(got, read(t, first.Metadata)) || img.MetadataSHA256 != first.MetadataSHA256 || img.UUID != first.UUID {
						t.Errorf("%s, %q with %d workers: other metadata than the first", name, compression, workers)
					}
					if !bytes.Equal(disk, pack) {
						t.Errorf("%s, %q with %d workers: another pack disk than the first", name, compression, workers)
					}
				}
			}
		}
	}
}

func TestOneDownloadForAll(t *testing.T) {
	src := imagetest.New().Layer(imagetest.File("a", strings.Repeat("a", 1<<20))).Layer(imagetest.File("b", "b")).
		Layer(imagetest.File("b", "b")). // the same layer twice
		Build()
	release := make(chan struct{})
	src.Open = func(_ context.Context, digest string, _ int64) (io.ReadCloser, error) {
		<-release
		return io.NopCloser(bytes.NewReader(src.Blobs[digest])), nil
	}
	s := open(t, t.TempDir())
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if _, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
				t.Error(err)
			}
		})
	}
	close(release)
	group.Wait()
	for digest := range src.Blobs {
		if n := src.Requests(digest); n > 1 {
			t.Errorf("%s was asked for %d times", digest, n)
		}
	}
}

func TestOneCallerLeaves(t *testing.T) {
	src := imagetest.New().Layer(imagetest.File("a", "a")).Build()
	release, started := make(chan struct{}), make(chan struct{})
	var once sync.Once
	src.Open = func(ctx context.Context, digest string, _ int64) (io.ReadCloser, error) {
		once.Do(func() { close(started) })
		select {
		case <-release:
			return io.NopCloser(bytes.NewReader(src.Blobs[digest])), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s := open(t, t.TempDir())
	ctx, leave := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		if _, err := s.Pull(ctx, src, src.ManifestDigest, src.Manifest, src.Config, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("the one who left: got %v", err)
		}
	})
	<-started
	group.Go(func() {
		if _, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil); err != nil {
			t.Errorf("the one who stayed: %v", err)
		}
	})
	leave()
	close(release)
	group.Wait()
}

func TestProgress(t *testing.T) {
	src := imagetest.New().Compress(imagetest.None).
		Layer(imagetest.File("a", strings.Repeat("a", 1<<20))).Layer(imagetest.File("b", "b")).Build()
	s := open(t, t.TempDir())
	last := map[int]image.Progress{}
	calls := 0
	record := func(p image.Progress) {
		if p.Bytes < last[p.Layer].Bytes || p.Bytes > p.Total || p.Layers != 2 {
			t.Errorf("progress %+v after %+v", p, last[p.Layer])
		}
		last[p.Layer] = p
		calls++
	}
	for _, cached := range []bool{false, true} {
		clear(last)
		if _, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, record); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			if p := last[i]; !p.Done || p.Cached != cached || p.Bytes != p.Total || p.Total != int64(len(src.Tars[i])) {
				t.Errorf("last progress of layer %d: %+v, want cached %v", i, p, cached)
			}
		}
	}
	if calls < 6 {
		t.Errorf("%d calls, want several", calls)
	}
}

func TestDamageIsFoundAndHealed(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	for name, tt := range map[string]struct {
		pattern  string
		damage   func([]byte) []byte // nil removes the file
		requests int                 // of blobs, to heal it
	}{
		"layer cut":          {"layers/*.tar", cut, 1},
		"layer gone":         {"layers/*.tar", nil, 1},
		"index flipped":      {"layers/*.idx", flip, 0},
		"index cut":          {"layers/*.idx", cut, 0},
		"index gone":         {"layers/*.idx", nil, 0},
		"metadata flipped":   {"metadata/*", flip, 0},
		"metadata cut":       {"metadata/*", cut, 0},
		"metadata gone":      {"metadata/*", nil, 0},
		"record flipped":     {"images/*", flip, 0},
		"record cut to half": {"images/*", func(b []byte) []byte { return b[:len(b)/2] }, 0},
		"record gone":        {"images/*", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			src := imagetest.New().Layer(imagetest.File("a", strings.Repeat("a", 3000))).Build()
			dir := t.TempDir()
			s := open(t, dir)
			want := pull(t, s, src)
			found, err := filepath.Glob(filepath.Join(dir, tt.pattern))
			if err != nil || len(found) != 1 {
				t.Fatalf("%s: %v, %v", tt.pattern, found, err)
			}
			b := read(t, found[0])
			if err := os.Remove(found[0]); err != nil {
				t.Fatal(err)
			}
			if tt.damage != nil {
				if err := os.WriteFile(found[0], tt.damage(b), 0o444); err != nil {
					t.Fatal(err)
				}
			}
			if _, ok, err := s.Lookup(src.ManifestDigest); ok || err != nil {
				t.Errorf("lookup of a damaged image: %v, %v", ok, err)
			}
			before := src.Requests("")
			got := pull(t, s, src)
			if got.MetadataSHA256 != want.MetadataSHA256 {
				t.Errorf("healed image differs")
			}
			if n := src.Requests("") - before; n != tt.requests {
				t.Errorf("%d requests to heal, want %d", n, tt.requests)
			}
			if _, ok, err := s.Lookup(src.ManifestDigest); !ok || err != nil {
				t.Errorf("lookup after healing: %v, %v", ok, err)
			}
		})
	}
}

// A tar that rotted without changing its size is found when its index has to be made again.
func TestRottenTarIsNotIndexed(t *testing.T) {
	src := imagetest.New().Layer(imagetest.File("a", strings.Repeat("a", 3000))).Build()
	dir := t.TempDir()
	s := open(t, dir)
	img := pull(t, s, src)
	path := img.Layers[0].Path
	b := read(t, path)
	b[1000] ^= 1
	for _, p := range []string{path, strings.TrimSuffix(path, ".tar") + ".idx"} {
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, b, 0o444); err != nil {
		t.Fatal(err)
	}
	pull(t, s, src)
	if got := imagetest.Digest(read(t, path)); got != img.DiffIDs[0] {
		t.Errorf("the layer is %s after a pull, want %s", got, img.DiffIDs[0])
	}
}

func TestOpenRemovesWhatTheDeadLeft(t *testing.T) {
	dir := t.TempDir()
	alive := open(t, dir)
	dead := filepath.Join(dir, "tmp", "process-dead")
	if err := os.Mkdir(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, ".tmp-x"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a dead process left is still there: %v", err)
	}
	for _, s := range []*image.Store{alive, s} {
		pull(t, s, imagetest.New().Layer(imagetest.File("a", "a")).Build())
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if left := unfinished(t, dir); len(left) > 0 {
		t.Errorf("left after Close: %v", left)
	}
}

func open(t *testing.T, dir string) *image.Store {
	t.Helper()
	s, err := image.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pull(t *testing.T, s *image.Store, src *imagetest.Image) *image.Image {
	t.Helper()
	img, err := s.Pull(t.Context(), src, src.ManifestDigest, src.Manifest, src.Config, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unfinished lists what is in tmp beside the guard.
func unfinished(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != ".guard" {
			names = append(names, e.Name())
		}
	}
	return names
}
