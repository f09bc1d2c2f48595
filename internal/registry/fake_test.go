package registry

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// fakeRegistry answers as the test says. It has one good image, web:1, to start from.
type fakeRegistry struct {
	addr   string
	server *httptest.Server

	mu       sync.Mutex
	handlers map[string]http.HandlerFunc // by path; guarded by mu
	requests []*http.Request             // guarded by mu

	manifest, config, layer []byte
}

func newFakeRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{handlers: map[string]http.HandlerFunc{}}
	f.server = httptest.NewServer(f)
	t.Cleanup(f.server.Close)
	f.addr = f.server.Listener.Addr().String()
	f.layer = []byte("a layer, or so it says")
	f.config = []byte(`{"os":"linux","architecture":"amd64"}`)
	f.manifest = []byte(manifestOf(f.config, f.layer))
	f.blob(f.layer)
	f.blob(f.config)
	f.document("1", typeManifest, f.manifest)
	f.handle("/v2/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	return f
}

func manifestOf(config, layer []byte) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]}`, typeManifest,
		descriptorOf("application/vnd.oci.image.config.v1+json", config), descriptorOf("application/vnd.oci.image.layer.v1.tar+gzip", layer))
}

func descriptorOf(mediaType string, b []byte) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, mediaType, digestOf(b), len(b))
}

func (f *fakeRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.mu.Lock()
	f.requests = append(f.requests, req.Clone(context.Background()))
	h := f.handlers[req.URL.Path]
	f.mu.Unlock()
	if h == nil {
		http.NotFound(w, req)
		return
	}
	h(w, req)
}

func (f *fakeRegistry) handle(path string, h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handlers[path] = h
}

// drop forgets what is below a path.
func (f *fakeRegistry) drop(prefix string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path := range f.handlers {
		if strings.HasPrefix(path, prefix) {
			delete(f.handlers, path)
		}
	}
}

// all answers everything with that status.
func (f *fakeRegistry) all(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path := range f.handlers {
		f.handlers[path] = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	}
}

// zeroTime is for http.ServeContent, which then says nothing of time.
var zeroTime time.Time

// perHost is a keychain with a user and a password for each host.
type perHost map[string][2]string

func (k perHost) Resolve(r authn.Resource) (authn.Authenticator, error) {
	c, ok := k[r.RegistryStr()]
	if !ok {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(authn.AuthConfig{Username: c[0], Password: c[1]}), nil
}

// paths are those that were asked for so far.
func (f *fakeRegistry) paths() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var paths []string
	for _, req := range f.requests {
		paths = append(paths, req.URL.Path)
	}
	return paths
}

// credentials are the Authorization headers that came so far.
func (f *fakeRegistry) credentials() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var got []string
	for _, req := range f.requests {
		if a := req.Header.Get("Authorization"); a != "" {
			got = append(got, a)
		}
	}
	return got
}

func (f *fakeRegistry) blob(b []byte) string {
	digest := digestOf(b)
	f.handle("/v2/web/blobs/"+digest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) })
	return digest
}

func (f *fakeRegistry) document(id, contentType string, b []byte) {
	for _, name := range []string{id, digestOf(b)} {
		f.handle("/v2/web/manifests/"+name, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", contentType)
			_, _ = w.Write(b)
		})
	}
}

// endless sends until the client has enough, and fails the test when that is never.
func endless(t *testing.T, w http.ResponseWriter) {
	junk := []byte(strings.Repeat("x", 1<<20))
	for range 64 {
		if _, err := w.Write(junk); err != nil {
			return
		}
	}
	t.Error("the client read 64 MiB")
}
