package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pinnacehq/pinnace/internal/registry/embedded"
)

// asCLI makes the test binary the command line, for tests that need a process of it.
const asCLI = "PINNACE_TEST_AS_CLI"

// blobCounter is a registry that counts which blobs were asked for.
type blobCounter struct {
	url string

	mu    sync.Mutex
	asked map[string]int // guarded by mu; by digest
}

func newBlobCounter(t *testing.T) *blobCounter {
	r, err := embedded.New(embedded.Options{Dir: t.TempDir(), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	c := &blobCounter{asked: map[string]int{}}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Addr()})
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo) // of those that are killed
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, digest, ok := strings.Cut(req.URL.Path, "/blobs/"); ok && req.Method == http.MethodGet {
			c.mu.Lock()
			c.asked[digest]++
			c.mu.Unlock()
		}
		proxy.ServeHTTP(w, req)
	}))
	c.url = strings.TrimPrefix(front.URL, "http://")
	t.Cleanup(func() {
		front.Close()
		cancel()
		<-done
	})
	return c
}

func (c *blobCounter) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = map[string]int{}
}

func (c *blobCounter) count(digest string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[digest]
}

// killedImage has six layers of noise.
func killedImage(t *testing.T, reference string) v1.Image {
	img := mutate.ConfigMediaType(empty.Image, "application/vnd.oci.image.config.v1+json")
	for range 6 {
		layer, err := random.Layer(300_000, "application/vnd.docker.image.rootfs.diff.tar.gzip")
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(reference)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return img
}

// The command line is killed while it pulls from a real registry, again and again at another moment. The store
// verifies each time, and the next pull asks for no layer that is complete.
func TestKilledPulls(t *testing.T) {
	registry := newBlobCounter(t)
	reference := registry.url + "/noise:1"
	img := killedImage(t, reference)
	dir := filepath.Join(t.TempDir(), "store")
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(os.Args[0], append([]string{"image", "--store", dir}, args...)...)
		cmd.Env = append(os.Environ(), asCLI+"=1", "HOME="+t.TempDir(), "PINNACE_CONFIG_DIR="+dir+".config")
		return cmd
	}
	run := func(args ...string) []byte {
		t.Helper()
		cmd := command(args...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("pinnace image %v: %v\n%s%s", args, err, stdout.String(), stderr.String())
		}
		return stdout.Bytes()
	}
	began := time.Now()
	run("pull", "--arch", "amd64", reference)
	took := time.Since(began)
	run("gc", "--pulled")

	count := 5
	if text := os.Getenv("PINNACE_IMAGE_KILLS"); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	found, saved := map[int]int{}, 0
	for i := range count {
		cmd := command("pull", "--arch", "amd64", reference)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(took)))) // the moment
		_ = cmd.Process.Kill()
		_ = cmd.Wait()

		complete := map[string]bool{}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			diffID, _ := l.DiffID()
			digest, _ := l.Digest()
			if _, err := os.Stat(filepath.Join(dir, "layers", diffID.Hex+".tar")); err == nil {
				complete[digest.String()] = true
			}
		}
		found[len(complete)]++
		run("verify", "--json")
		registry.reset()
		var out pulledImage
		if err := json.Unmarshal(run("pull", "--json", "--quiet", "--arch", "amd64", reference), &out); err != nil {
			t.Fatal(err)
		}
		for digest := range complete {
			if n := registry.count(digest); n > 0 {
				t.Fatalf("kill %d: %s was complete, and was asked for %d times", i, digest, n)
			}
		}
		if out.LayersCached != len(complete) {
			t.Fatalf("kill %d: %d layers were there, want %d", i, out.LayersCached, len(complete))
		}
		saved += len(complete)
		run("verify", "--json")
		run("gc", "--pulled")
	}
	t.Logf("%d kills within %s of the start; complete layers that were found, by number: %v; %d layers not fetched again",
		count, took.Round(time.Millisecond), fmt.Sprint(found), saved)
}
