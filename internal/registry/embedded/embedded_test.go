package embedded_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pinnacehq/pinnace/internal/registry/embedded"
)

// logBuffer is an access log that tests read while the registry writes.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve runs a registry until stop is called or the test ends.
func serve(t *testing.T, o embedded.Options) (addr string, stop func()) {
	t.Helper()
	if o.Addr == "" {
		o.Addr = "127.0.0.1:0"
	}
	r, err := embedded.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return r.Addr(), stop
}

func push(t *testing.T, ref string) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 3)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img, remote.WithContext(t.Context()), remote.WithUserAgent("pusher/1")); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPushPullRestartDelete(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	var log logBuffer
	addr, stop := serve(t, embedded.Options{Dir: dir, AccessLog: &log})
	want, err := push(t, addr+"/shop/web:1").Digest()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err := http.Get("http://" + addr + "/v2/"); err == nil {
		t.Error("the registry still answers after Run returned")
	}

	addr, _ = serve(t, embedded.Options{Dir: dir, AccessLog: &log})
	tag, err := name.ParseReference(addr + "/shop/web:1")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(tag)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := img.Digest(); err != nil || got != want {
		t.Errorf("after a restart: got %v, %v, want %v", got, err, want)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil { // verifies the digest
			t.Error(err)
		}
	}
	if err := remote.Delete(tag.Context().Digest(want.String())); err != nil {
		t.Errorf("delete: %v", err)
	}
	if _, err := remote.Image(tag); err == nil {
		t.Error("the deleted image is still there")
	}

	for _, line := range []string{
		"PUT /v2/shop/web/manifests/1 201 \"pusher/1 ",
		"GET /v2/shop/web/manifests/1 200 ",
		"DELETE /v2/shop/web/manifests/" + want.String() + " 202 ",
		"GET /v2/shop/web/manifests/1 404 ",
	} {
		if !strings.Contains("\n"+log.String(), "\n"+line) {
			t.Errorf("no line %q in the access log:\n%s", line, log.String())
		}
	}
}

func TestAccessLogKeepsToItsLine(t *testing.T) {
	var log logBuffer
	addr, stop := serve(t, embedded.Options{Dir: t.TempDir(), AccessLog: &log})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/v2/%0AGET%20/v2/forged", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", `a "quoted" agent`)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	stop()
	if got, want := log.String(), "GET /v2/%0AGET%20/v2/forged 404 \"a \\\"quoted\\\" agent\"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRefusesCrossOriginPush(t *testing.T) {
	addr, _ := serve(t, embedded.Options{Dir: t.TempDir()})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/v2/shop/web/blobs/uploads/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://somewhere.example")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a push from a web page: got %s", res.Status)
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	r, err := embedded.New(embedded.Options{Dir: t.TempDir(), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()

	// An upload whose body ends only after the registry was told to stop.
	res, err := http.Post("http://"+r.Addr()+"/v2/shop/web/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	body, feed := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPatch, res.Header.Get("Location"), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	// The body is only sent when the registry reads it; until then the request is not under way.
	req.Header.Set("Expect", "100-continue")
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	answered := make(chan error, 1)
	go func() {
		res, err := client.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusAccepted {
				err = errors.New(res.Status)
			}
		}
		answered <- err
	}()
	if _, err := feed.Write([]byte("first half ")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := feed.Write([]byte("second half")); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := <-answered; err != nil {
		t.Errorf("the upload under way: %v", err)
	}
	client.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	addr, _ := serve(t, embedded.Options{Dir: dir})
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		options embedded.Options
		want    string
	}{
		"port in use":      {embedded.Options{Dir: t.TempDir(), Addr: addr}, "address already in use"},
		"directory in use": {embedded.Options{Dir: dir, Addr: "127.0.0.1:0"}, "in use by another process"},
		"other machines":   {embedded.Options{Dir: t.TempDir(), Addr: "0.0.0.0:0"}, "reached from other machines"},
		"no address":       {embedded.Options{Dir: t.TempDir(), Addr: "registry:5000"}, "not an IP address and a port"},
		"no directory":     {embedded.Options{Dir: file, Addr: "127.0.0.1:0"}, "not a directory"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := embedded.New(c.options)
			if err == nil {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				t.Fatalf("it was opened; closed again: %v", r.Run(ctx))
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestInterruptedUploadsArePurged(t *testing.T) {
	dir := t.TempDir()
	upload := filepath.Join(dir, "docker/registry/v2/repositories/shop/web/_uploads/0e3bd4a5-0000-4000-8000-000000000000")
	if err := os.MkdirAll(upload, 0o700); err != nil {
		t.Fatal(err)
	}
	started := time.Now().Add(-48 * time.Hour).UTC().Format(time.RFC3339)
	if err := os.WriteFile(filepath.Join(upload, "startedat"), []byte(started), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, embedded.Options{Dir: dir})
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := os.Stat(upload); os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the upload of two days ago is still there")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
