package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/pinnacehq/pinnace/internal/registry/embedded"
)

// anonymous is a keychain without credentials, so that tests don't read the developer's own.
type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// newClient is a client that waits little between tries.
func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	if o.Keychain == nil {
		o.Keychain = anonymous{}
	}
	o.UserAgent = "pinnace/test"
	c := New(o)
	c.limits.backoff = time.Millisecond
	c.limits.window = 5 * time.Second // tests of what stalls have less; the others may run on a busy machine
	t.Cleanup(c.Close)
	return c
}

// accessLog collects the lines of an embedded registry.
type accessLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *accessLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// ofClient returns the requests that the client under test made, and forgets them.
func (l *accessLog) ofClient() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, "pinnace/test") {
			lines = append(lines, line)
		}
	}
	l.buf.Reset()
	return lines
}

// serve runs an embedded registry for the test.
func serve(t *testing.T) (addr string, log *accessLog) {
	t.Helper()
	log = &accessLog{}
	r, err := embedded.New(embedded.Options{Dir: t.TempDir(), Addr: "127.0.0.1:0", AccessLog: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		// Connections that were made and never used would hold the registry for five seconds.
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		remote.DefaultTransport.(*http.Transport).CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return r.Addr(), log
}

// newImage is an image of two layers for a platform.
func newImage(t *testing.T, os, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(5000, 2)
	if err != nil {
		t.Fatal(err)
	}
	return forPlatform(t, img, os, arch)
}

func forPlatform(t *testing.T, img v1.Image, os, arch string) v1.Image {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = os, arch
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// put pushes what can be tagged.
func put(t *testing.T, ref string, what remote.Taggable) {
	t.Helper()
	tag, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(tag, what, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func digestString(t *testing.T, of interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := of.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestTagIsResolvedOnceThenEverythingIsByDigest(t *testing.T) {
	addr, log := serve(t)
	first, second := newImage(t, "linux", "amd64"), newImage(t, "linux", "amd64")
	put(t, addr+"/shop/web:live", first)
	c := newClient(t, Options{})
	image, err := c.Resolve(t.Context(), addr+"/shop/web:live")
	if err != nil {
		t.Fatal(err)
	}
	want := digestString(t, first)
	if image.Digest != want || image.Repository != addr+"/shop/web" || len(image.Platforms) != 1 {
		t.Fatalf("got %+v, want digest %s", image, want)
	}
	p := image.Platforms[0]
	if p.Architecture != "amd64" || p.ManifestDigest != want || digestOf(p.Manifest) != want {
		t.Errorf("platform: got %s %s", p.Architecture, p.ManifestDigest)
	}
	if config, err := first.RawConfigFile(); err != nil || !bytes.Equal(p.Config, config) {
		t.Errorf("config: got %q, %v", p.Config, err)
	}

	// The tag goes elsewhere, then away; the image stays what it was.
	put(t, addr+"/shop/web:live", second)
	tag, err := name.ParseReference(addr + "/shop/web:live")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Delete(tag.Context().Digest(digestString(t, second))); err != nil {
		t.Fatal(err)
	}
	again, err := newClient(t, Options{}).Resolve(t.Context(), image.Repository+"@"+image.Digest)
	if err != nil || again.Digest != want {
		t.Errorf("by digest: got %+v, %v", again, err)
	}
	layers, err := first.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		readBlob(t, c, image.Repository, l)
	}

	withTag := 0
	for _, line := range log.ofClient() {
		path := strings.Fields(line)[1]
		switch {
		case strings.HasSuffix(path, "/manifests/live"):
			withTag++
		case path == "/v2/", strings.Contains(path, "/sha256:"):
		default:
			t.Errorf("a request that is not by digest: %s", line)
		}
	}
	if withTag != 1 {
		t.Errorf("the tag was looked up %d times, want once", withTag)
	}
}

func readBlob(t *testing.T, c *Client, repository string, l v1.Layer) {
	t.Helper()
	size, err := l.Size()
	if err != nil {
		t.Fatal(err)
	}
	digest := digestString(t, l)
	blob, err := c.Blob(t.Context(), repository, digest, size)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(blob)
	if err := errors.Join(err, blob.Close()); err != nil || digestOf(b) != digest {
		t.Errorf("blob %s: got %d bytes of digest %s, %v", digest, len(b), digestOf(b), err)
	}
}

func TestResolveIndex(t *testing.T) {
	addr, log := serve(t)
	amd64, arm64, windows := newImage(t, "linux", "amd64"), newImage(t, "linux", "arm64"), newImage(t, "windows", "amd64")
	v3, s390x, attestation := newImage(t, "linux", "amd64"), newImage(t, "linux", "s390x"), newImage(t, "", "")
	entry := func(img v1.Image, os, arch, variant string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}}}
	}
	refers := entry(attestation, "unknown", "unknown", "")
	refers.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	nested := mutate.AppendManifests(empty.Index, entry(arm64, "linux", "arm64", "v8"), entry(s390x, "linux", "s390x", ""))
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		entry(windows, "windows", "amd64", ""), entry(v3, "linux", "amd64", "v3"), entry(amd64, "linux", "amd64", ""),
		refers, mutate.IndexAddendum{Add: nested})
	put(t, addr+"/multi:1", index)
	log.ofClient()

	image, err := newClient(t, Options{}).Resolve(t.Context(), addr+"/multi:1")
	if err != nil {
		t.Fatal(err)
	}
	if want := digestString(t, index); image.Digest != want {
		t.Errorf("pinned: got %s, want the index %s", image.Digest, want)
	}
	var got []string
	for _, p := range image.Platforms {
		got = append(got, p.Architecture+" "+p.ManifestDigest)
	}
	want := []string{"amd64 " + digestString(t, amd64), "arm64 " + digestString(t, arm64)}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("platforms: got %v, want %v", got, want)
	}
	// Only what is used is fetched: ping, tag, nested index, two manifests, two configurations.
	if lines := log.ofClient(); len(lines) != 7 {
		t.Errorf("got %d requests, want 7:\n%s", len(lines), strings.Join(lines, ""))
	}

	_, err = newClient(t, Options{Architectures: []string{"riscv64"}}).Resolve(t.Context(), addr+"/multi:1")
	if !errors.Is(err, ErrNoPlatform) || !strings.Contains(err.Error(), "linux/arm64/v8, linux/s390x, windows/amd64") {
		t.Errorf("no platform: got %v", err)
	}
}

func TestResolveSingleForOtherPlatform(t *testing.T) {
	addr, _ := serve(t)
	put(t, addr+"/win:1", newImage(t, "windows", "amd64"))
	_, err := newClient(t, Options{}).Resolve(t.Context(), addr+"/win:1")
	if !errors.Is(err, ErrNoPlatform) || !strings.Contains(err.Error(), "windows/amd64") {
		t.Errorf("got %v", err)
	}
}

func TestNotFound(t *testing.T) {
	addr, log := serve(t)
	put(t, addr+"/shop/web:1", newImage(t, "linux", "amd64"))
	c := newClient(t, Options{})
	for ref, want := range map[string]string{
		"/shop/web:2": "tag 2 of shop/web",
		"/shop/wbe:1": "shop/wbe",
		"/shop/web":   "tag latest of shop/web",
		"/shop/web@sha256:" + strings.Repeat("0", 64): "manifest sha256:0000",
	} {
		_, err := c.Resolve(t.Context(), addr+ref)
		var e *Error
		if !errors.Is(err, ErrNotFound) || !errors.As(err, &e) || e.Hint == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", ref, err, want)
		}
	}
	if lines := log.ofClient(); len(lines) > 8 { // a ping and a request each: no second tries
		t.Errorf("got %d requests:\n%s", len(lines), strings.Join(lines, ""))
	}
	_, err := c.Blob(t.Context(), addr+"/shop/web", "sha256:"+strings.Repeat("0", 64), 3)
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("blob: got %v", err)
	}
}

func TestDown(t *testing.T) {
	server := httptest.NewServer(nil)
	addr := server.Listener.Addr().String()
	server.Close()
	start := time.Now()
	_, err := newClient(t, Options{}).Resolve(t.Context(), addr+"/web:1")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), addr) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to say so", took)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newFakeRegistry(t)
	f.handle("/v2/", func(_ http.ResponseWriter, req *http.Request) {
		cancel()
		<-req.Context().Done()
	})
	_, err := newClient(t, Options{}).Resolve(ctx, f.addr+"/web:1")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestReferences(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	cases := []struct {
		ref  string
		kind error  // nil when it is a reference
		want string // in the error or its hint, or the repository
	}{
		{"web", nil, "index.docker.io/library/web"},
		{"shop/web:1", nil, "index.docker.io/shop/web"},
		{"registry.example:5000/a/b@" + digest, nil, "registry.example:5000/a/b"},
		{"localhost:5000/a/b:1@" + digest, nil, "localhost:5000/a/b"},
		{"", ErrReference, "REGISTRY/NAME:TAG"},
		{"Web:1", ErrReference, "lower case"},
		{"web:1:2", ErrReference, "not an image reference"},
		{"web@sha256:abc", ErrReference, "not an image reference"},
		{"web@md5:d41d8cd98f00b204e9800998ecf8427e", ErrReference, "sha256"},
		{"web:\x1b[2J", ErrReference, "not an image reference"},
		{"oci:./layout", ErrNotAnImage, "skopeo copy oci:./layout docker://"},
		{"docker-archive:web.tar", ErrNotAnImage, "skopeo copy docker-archive:web.tar"},
		{"oci-archive:web.tar:1", ErrNotAnImage, "local archive"},
		{"build/web.tar", ErrNotAnImage, "docker-archive:build/web.tar"},
		{"web.tar.gz", ErrNotAnImage, "archive"},
		{"compose.yaml", ErrNotAnImage, "one image for an app"},
		{"deploy/docker-compose.yml", ErrNotAnImage, "compose"},
		{"pinnace.toml", ErrNotAnImage, "manifest"},
		{"./Dockerfile", ErrNotAnImage, "buildah build"},
		{"./web", ErrNotAnImage, "path"},
		{"/srv/web", ErrNotAnImage, "path"},
		{"docker://registry.example/web:1", ErrNotAnImage, "write registry.example/web:1"},
		{"https://registry.example/web", ErrNotAnImage, "write registry.example/web"},
	}
	c := newClient(t, Options{})
	for _, tc := range cases {
		parsed, err := c.parse(tc.ref)
		if tc.kind == nil {
			if err != nil || parsed.Context().Name() != tc.want {
				t.Errorf("%q: got %v, %v, want %s", tc.ref, parsed, err, tc.want)
			}
			continue
		}
		var e *Error
		if !errors.Is(err, tc.kind) || !errors.As(err, &e) || !strings.Contains(e.Error()+" "+e.Hint, tc.want) {
			t.Errorf("%q: got %v, want %v with %q", tc.ref, err, tc.kind, tc.want)
		}
		if err != nil && strings.ContainsRune(err.Error(), '\x1b') {
			t.Errorf("%q: the error has a control character", tc.ref)
		}
	}
}

func ExampleError() {
	err := error(&Error{Kind: ErrNotFound, Registry: "registry.example", Message: "has no tag 2 of shop/web", Hint: "check the tag"})
	fmt.Println(err)
	if e, ok := errors.AsType[*Error](err); ok {
		fmt.Println("hint:", e.Hint)
	}
	// Output:
	// registry registry.example: has no tag 2 of shop/web
	// hint: check the tag
}
