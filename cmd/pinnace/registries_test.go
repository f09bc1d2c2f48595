package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/pinnacehq/pinnace/internal/image"
	"github.com/pinnacehq/pinnace/internal/image/imagetest"
	"github.com/pinnacehq/pinnace/internal/registry"
)

// blobServer serves the blobs of images, and counts who asks for which.
type blobServer struct {
	mu    sync.Mutex
	blobs map[string][]byte // by digest; guarded by mu
	asked map[string]int    // by digest; guarded by mu
}

func (s *blobServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	_, digest, ok := strings.Cut(req.URL.Path, "/blobs/")
	if !ok {
		return
	}
	s.mu.Lock()
	s.asked[digest]++
	b := s.blobs[digest]
	s.mu.Unlock()
	_, _ = w.Write(b)
}

func serveBlobs(t *testing.T, change func(digest string, b []byte) []byte, images ...*imagetest.Image) (*blobServer, string) {
	t.Helper()
	s := &blobServer{blobs: map[string][]byte{}, asked: map[string]int{}}
	for _, img := range images {
		for digest, b := range img.Blobs {
			s.blobs[digest] = change(digest, b)
		}
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server.Listener.Addr().String()
}

func asItIs(_ string, b []byte) []byte { return b }

// stranger has no credentials.
type stranger struct{}

func (stranger) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// TestOneDownloadPerBlob: however many ask for how many images that share layers, each blob is fetched once.
func TestOneDownloadPerBlob(t *testing.T) {
	base := imagetest.File("base", strings.Repeat("shared ", 10_000))
	one := imagetest.New().Layer(base).Layer(imagetest.File("one", "1")).Build()
	two := imagetest.New().Layer(base).Layer(imagetest.File("two", "2")).Build()
	server, addr := serveBlobs(t, asItIs, one, two)
	store, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	client := registry.New(registry.Options{Keychain: stranger{}})
	defer client.Close()
	var pulls sync.WaitGroup
	for i := range 12 {
		img := []*imagetest.Image{one, two}[i%2]
		pulls.Go(func() {
			_, err := store.Pull(t.Context(), repositorySource{client, addr + "/shop/web"}, img.ManifestDigest, img.Manifest, img.Config, nil)
			if err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	if len(server.asked) != 3 {
		t.Errorf("%d blobs were asked for, want 3", len(server.asked))
	}
	for digest, n := range server.asked {
		if n != 1 {
			t.Errorf("%s was fetched %d times", digest, n)
		}
	}
}

// TestLyingMirror: a mirror that sends other bytes costs one more fetch, changes nothing, and is said to.
func TestLyingMirror(t *testing.T) {
	img := imagetest.New().Layer(imagetest.File("file", "content")).Build()
	_, addr := serveBlobs(t, asItIs, img)
	mirror, mirrorAddr := serveBlobs(t, func(_ string, b []byte) []byte {
		bad := append([]byte(nil), b...)
		bad[len(bad)-1] ^= 1
		return bad
	}, img)
	var said []string
	client := registry.New(registry.Options{
		Keychain: stranger{}, Hosts: map[string]registry.Host{addr: {Mirrors: []string{mirrorAddr}}},
		Notice: func(s string) { said = append(said, s) },
	})
	defer client.Close()
	store, err := image.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	files := &imageFiles{c: &cli{stderr: io.Discard, quiet: true}, store: store}
	defer files.Close()
	tree, err := files.fetch(context.Background(), client, []string{addr + "/shop/web"}, registry.Platform{
		Architecture: "amd64", ManifestDigest: img.ManifestDigest, Manifest: img.Manifest, Config: img.Config,
	})
	if err != nil || tree == nil {
		t.Fatalf("got %v", err)
	}
	if len(mirror.asked) != 1 || len(said) != 1 || !strings.Contains(said[0], "mirror "+mirrorAddr+" is passed over") {
		t.Errorf("the mirror was asked for %v, and it was said: %q", mirror.asked, said)
	}
	if _, err := tree.Stat("file"); err != nil {
		t.Error(err)
	}
}
