package registry

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	goodUser     = "alice"
	goodPassword = "correct horse"
	goodToken    = "opaque-token"
)

// protected is a real registry behind a proxy that wants credentials, as Basic or as a Bearer token that is
// given for them. It returns the proxy's address; the image in it is web:1.
func protected(t *testing.T, scheme string) (addr string) {
	t.Helper()
	backend, _ := serve(t)
	put(t, backend+"/web:1", newImage(t, "linux", "amd64"))
	target, err := url.Parse("http://" + backend)
	if err != nil {
		t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Header.Del("Authorization")
	}}
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, password, basic := req.BasicAuth()
		good := basic && user == goodUser && password == goodPassword
		switch {
		case scheme == "Bearer" && req.URL.Path == "/token" && (good || !basic):
			token := goodToken
			if !good {
				token = "for anybody" // as Docker Hub gives one to everybody
			}
			fmt.Fprintf(w, `{"token":%q}`, token)
		case scheme == "Bearer" && req.Header.Get("Authorization") == "Bearer "+goodToken, scheme == "Basic" && good:
			forward.ServeHTTP(w, req)
		default:
			w.Header().Set("WWW-Authenticate", map[string]string{
				"Basic":  `Basic realm="the registry"`,
				"Bearer": `Bearer realm="` + server.URL + `/token",service="test"`,
			}[scheme])
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
		}
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

func TestCredentials(t *testing.T) {
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			addr := protected(t, scheme)
			if _, err := newClient(t, Options{Keychain: user{goodUser, goodPassword}}).Resolve(t.Context(), addr+"/web:1"); err != nil {
				t.Errorf("right: %v", err)
			}
			cases := map[string]struct {
				keychain authn.Keychain
				want     string
			}{
				"none":  {anonymous{}, "to someone without credentials"},
				"wrong": {user{goodUser, "guess"}, "those of user alice from the docker configuration"},
			}
			for name, c := range cases {
				_, err := newClient(t, Options{Keychain: c.keychain}).Resolve(t.Context(), addr+"/web:1")
				var e *Error
				if !errors.Is(err, ErrUnauthorized) || !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) || !strings.Contains(e.Hint, "docker login "+addr) {
					t.Errorf("%s: got %v", name, err)
				}
				if err != nil && strings.Contains(err.Error(), "guess") {
					t.Errorf("%s: the error shows the password", name)
				}
			}
		})
	}
}

// TestDockerConfiguration uses the keychain that people get by default.
func TestDockerConfiguration(t *testing.T) {
	addr := protected(t, "Basic")
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker"))
	t.Setenv("XDG_RUNTIME_DIR", home)
	t.Setenv("XDG_CONFIG_HOME", home)
	t.Setenv("REGISTRY_AUTH_FILE", "")
	bin := filepath.Join(home, "bin")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, dir := range []string{bin, filepath.Join(home, ".docker")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	configure := func(json string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(home, ".docker", "config.json"), []byte(json), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t, Options{})
	c.options.Keychain = authn.DefaultKeychain
	resolve := func() error {
		_, err := c.Resolve(t.Context(), addr+"/web:1")
		return err
	}

	if err := resolve(); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("no configuration: got %v", err)
	}
	configure(fmt.Sprintf(`{"auths":{"other.example":{"auth":%q}}}`, base64.StdEncoding.EncodeToString([]byte(goodUser+":"+goodPassword))))
	if err := resolve(); !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "without credentials") {
		t.Errorf("credentials of another registry: got %v", err)
	}
	configure(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, addr, base64.StdEncoding.EncodeToString([]byte(goodUser+":"+goodPassword))))
	if err := resolve(); err != nil { // the same client: what was refused is read again
		t.Errorf("after docker login: %v", err)
	}

	c = newClient(t, Options{})
	c.options.Keychain = authn.DefaultKeychain
	configure(fmt.Sprintf(`{"credHelpers":{%q:"pinnacetest"}}`, addr))
	if err := resolve(); !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "docker-credential-pinnacetest") {
		t.Errorf("a helper that is not there: got %v", err)
	}
	helper := fmt.Sprintf("#!/bin/sh\ncat >/dev/null\necho '{\"Username\":%q,\"Secret\":%q}'\n", goodUser, goodPassword)
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-pinnacetest"), []byte(helper), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := resolve(); err != nil {
		t.Errorf("credential helper: %v", err)
	}
}

func TestExpiredTokenIsRenewed(t *testing.T) {
	f := newFakeRegistry(t)
	var valid atomic.Value
	valid.Store("first")
	var tokens atomic.Int32
	f.mu.Lock()
	for path, h := range f.handlers {
		f.handlers[path] = func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "Bearer "+valid.Load().(string) {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="s"`, f.server.URL))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, req)
		}
	}
	f.mu.Unlock()
	f.handle("/token", func(w http.ResponseWriter, _ *http.Request) {
		tokens.Add(1)
		fmt.Fprintf(w, `{"token":%q}`, valid.Load())
	})
	c := newClient(t, Options{})
	if _, err := c.Resolve(t.Context(), f.addr+"/web:1"); err != nil {
		t.Fatal(err)
	}
	valid.Store("second")
	blob, err := c.Blob(t.Context(), f.addr+"/web", digestOf(f.layer), int64(len(f.layer)))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(blob); err != nil || string(b) != string(f.layer) {
		t.Errorf("got %q, %v", b, err)
	}
	blob.Close()
	if tokens.Load() != 2 {
		t.Errorf("got %d tokens, want one and its renewal", tokens.Load())
	}
}

func TestEndlessToken(t *testing.T) {
	f := newFakeRegistry(t)
	f.bearer(f.server.URL+"/token", "never")
	f.handle("/token", func(w http.ResponseWriter, _ *http.Request) { endless(t, w) })
	if _, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1"); err == nil {
		t.Error("it was taken")
	}
}

func TestTLS(t *testing.T) {
	f := newFakeRegistry(t)
	secure := httptest.NewUnstartedServer(f)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	addr := secure.Listener.Addr().String()

	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	if _, err := newClient(t, Options{Hosts: map[string]Host{addr: {RootCAs: roots}}}).Resolve(t.Context(), addr+"/web:1"); err != nil {
		t.Errorf("a certificate that is trusted: %v", err)
	}
	_, err := newClient(t, Options{}).Resolve(t.Context(), addr+"/web:1")
	if !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that is not: got %v", err)
	}
}
