package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// TestWhatPeopleRead has the words that a person reads when an image cannot be had, and the hint below them.
func TestWhatPeopleRead(t *testing.T) {
	n := newInternet(t, map[string]string{"registry.example": "203.0.113.1", "plain.example": "203.0.113.2"})
	answer := func(status int, body string, headers ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v2/" {
				return
			}
			for i := 0; i < len(headers); i += 2 {
				w.Header().Set(headers[i], headers[i+1])
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	hub := func(w http.ResponseWriter, req *http.Request) { // gives everybody a token, and then refuses
		if req.URL.Path == "/token" {
			_, _ = io.WriteString(w, `{"token":"for anybody"}`)
			return
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://registry.example/token",service="x",scope="repository:shop/wbe:pull",error="insufficient_scope"`)
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":[{"Type":"repository"}]}]}`)
	}
	cases := map[string]struct {
		ref      string
		handler  http.HandlerFunc
		keychain authn.Keychain
		settings Host
		kind     error
		message  string
		hint     string
	}{
		"unknown host": {
			ref: "registry.exmaple/shop/web:2", kind: ErrUnreachable,
			message: "registry registry.exmaple: there is no such host: dial tcp: lookup registry.exmaple: no such host",
			hint:    "check the spelling of registry.exmaple, and this machine's DNS",
		},
		"no such tag": {
			handler: answer(404, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`), kind: ErrNotFound,
			message: "registry registry.example: has no tag 2 of shop/web: it says MANIFEST_UNKNOWN: manifest unknown",
			hint:    "check the spelling of the repository and the tag, and that the push to this registry ended well",
		},
		"no such repository": {
			handler: answer(404, `{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`), kind: ErrNotFound,
			message: "registry registry.example: has no repository shop/web: it says NAME_UNKNOWN: repository name not known to registry",
			hint:    "check the spelling of the repository and the tag, and that the push to this registry ended well",
		},
		"no such repository, as Docker Hub says it": {
			handler: hub, kind: ErrUnauthorized,
			message: "registry registry.example: refuses to give tag 2 of shop/web to someone without credentials; it is private, or does not exist: it says UNAUTHORIZED: authentication required",
			hint:    "check the spelling, or docker login registry.example",
		},
		"no such repository, as GitLab says it": {
			handler: answer(403, `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`), kind: ErrUnauthorized,
			message: "registry registry.example: refuses to give tag 2 of shop/web to someone without credentials; it is private, or does not exist: it says DENIED: requested access to the resource is denied",
			hint:    "check the spelling, or docker login registry.example",
		},
		"credentials that may not": {
			handler: hub, keychain: user{"alice", "secret"}, kind: ErrUnauthorized,
			message: "registry registry.example: refuses to give tag 2 of shop/web for the credentials that were sent, those of user alice from the docker configuration: it says UNAUTHORIZED: authentication required",
			hint:    "check that this user may read shop/web, or docker login registry.example as another",
		},
		"rate limit": {
			handler: answer(429, `{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`, "Retry-After", "21600"), kind: ErrUnreachable,
			message: "registry registry.example: allows no more requests for now: it says TOOMANYREQUESTS: You have reached your pull rate limit.",
			hint:    "wait, or docker login registry.example for a higher limit",
		},
		"its own trouble": {
			handler: answer(502, "<html>bad gateway</html>"), kind: ErrUnreachable,
			message: "registry registry.example: answers 502 Bad Gateway when asked for tag 2 of shop/web",
			hint:    "look at the registry's own log",
		},
		"TLS asked of a plain port": {
			ref: "plain.example:80/shop/web:2", handler: answer(200, ""), kind: ErrTLS,
			message: "registry plain.example:80: it answers in plain HTTP, not over TLS",
			hint:    `give the registry a certificate; if the network to it is trusted, set plain_http = true under [registries."plain.example:80"] in /etc/pinnace/registries.toml`,
		},
		"plain HTTP asked of a TLS port": {
			settings: Host{PlainHTTP: true}, ref: "registry.example:443/shop/web:2", handler: answer(200, ""), kind: ErrUnreachable,
			message: "registry registry.example:443: answers 400 Bad Request when asked for tag 2 of shop/web",
			hint:    `it may speak TLS only: remove plain_http under [registries."registry.example:443"] in /etc/pinnace/registries.toml, if it is there`,
		},
		"an answer that is no manifest": {
			handler: answer(200, "<html>Welcome</html>"), kind: ErrWrongContent,
			message: "its manifest is not readable: invalid character '<' looking for beginning of value",
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			n.begin(c.handler)
			ref := c.ref
			if ref == "" {
				ref = "registry.example/shop/web:2"
			}
			host, _, _ := strings.Cut(ref, "/")
			o := Options{Keychain: c.keychain, Settings: "/etc/pinnace/registries.toml", Hosts: map[string]Host{host: c.settings}}
			_, err := n.over(newClient(t, o)).Resolve(t.Context(), ref)
			e, _ := errors.AsType[*Error](err)
			if !errors.Is(err, c.kind) || err.Error() != "resolve "+ref+": "+c.message || e.Hint != c.hint {
				t.Errorf("got %v\nhint %q\nwant %s\nhint %q", err, e.Hint, c.message, c.hint)
			}
		})
	}
}

// TestWhatPeopleReadOfTLS is with the system's certificates, which don't know the test's.
func TestWhatPeopleReadOfTLS(t *testing.T) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	defer server.Close()
	addr := server.Listener.Addr().String()
	_, err := newClient(t, Options{}).Resolve(t.Context(), addr+"/web:1")
	e, _ := errors.AsType[*Error](err)
	if want := "registry " + addr + ": its certificate is from an authority that this machine does not trust: x509: certificate signed by unknown authority"; !errors.Is(err, ErrTLS) ||
		err.Error() != "resolve "+addr+"/web:1: "+want || !strings.Contains(e.Hint, `set ca = "/path/to/ca.pem" under [registries."`+addr+`"]`) {
		t.Errorf("unknown authority: got %v, hint %q", err, e.Hint)
	}

	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.StartTLS()
	defer old.Close()
	_, err = newClient(t, Options{}).Resolve(t.Context(), old.Listener.Addr().String()+"/web:1")
	if !errors.Is(err, ErrTLS) {
		t.Errorf("TLS of the last century: got %v", err)
	}
}

// TestBlackHole: a host that does not answer is unreachable, and it is said after one try.
func TestBlackHole(t *testing.T) {
	c := newClient(t, Options{})
	tries := 0
	c.transports.network.connect = func(context.Context, string, string, func(netip.Addr) error) (net.Conn, error) {
		tries++
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
	}
	_, err := c.Resolve(t.Context(), "registry.example/web:1")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "cannot be reached: dial tcp: i/o timeout") || tries != 1 {
		t.Errorf("got %v after %d tries", err, tries)
	}
}

// TestHelperThatHangs: it waits for somebody who is not there.
func TestHelperThatHangs(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	c := newClient(t, Options{Keychain: keychainFunc(func() (authn.Authenticator, error) {
		<-release
		return authn.Anonymous, nil
	})})
	c.limits.helper = 50 * time.Millisecond
	f := newFakeRegistry(t)
	_, err := c.Resolve(t.Context(), f.addr+"/web:1")
	if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), "the credential helper does not answer in 50ms") {
		t.Errorf("got %v", err)
	}
	c.limits.helper = time.Hour
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("the person pressed Ctrl-C"))
	defer cancel()
	if _, err := c.Resolve(ctx, f.addr+"/web:1"); err == nil || !strings.Contains(err.Error(), "Ctrl-C") {
		t.Errorf("got %v", err)
	}
}

type keychainFunc func() (authn.Authenticator, error)

func (k keychainFunc) Resolve(authn.Resource) (authn.Authenticator, error) { return k() }

// TestDockerCredentialsAreForHostAndPort: those of a host are not those of another port of it.
func TestDockerCredentialsAreForHostAndPort(t *testing.T) {
	home := t.TempDir()
	for key, value := range map[string]string{"HOME": home, "DOCKER_CONFIG": home, "XDG_RUNTIME_DIR": home, "XDG_CONFIG_HOME": home, "REGISTRY_AUTH_FILE": ""} {
		t.Setenv(key, value)
	}
	n := newInternet(t, map[string]string{"registry.example": "203.0.113.1", "index.docker.io": "203.0.113.2", "auth.docker.io": "203.0.113.3"})
	auth := func(password string) string {
		return fmt.Sprintf(`{"username":"alice","password":%q}`, password)
	}
	config := fmt.Sprintf(`{"auths":{"registry.example":%s,"https://registry.example:5000/v1/":%s,"https://index.docker.io/v1/":%s}}`,
		auth("of 443"), auth("of 5000"), auth("of the hub"))
	if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"registry.example/web:1": "of 443", "registry.example:5000/web:1": "of 5000", "registry.example:5001/web:1": "", "web:1": "of the hub",
		"docker.io/library/web:1": "of the hub", "index.docker.io/library/web:1": "of the hub",
	} {
		got := ""
		n.begin(func(w http.ResponseWriter, req *http.Request) {
			if _, password, ok := req.BasicAuth(); ok {
				got = password
			}
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
		c := newClient(t, Options{})
		c.options.Keychain = authn.DefaultKeychain
		if _, err := n.over(c).Resolve(t.Context(), ref); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: got %v", ref, err)
		}
		if got != want {
			t.Errorf("%s: got the password %q, want %q", ref, got, want)
		}
	}
}

// TestComingBackWithoutCredentials: who was redirected away comes back as a stranger.
func TestComingBackWithoutCredentials(t *testing.T) {
	n := newInternet(t, map[string]string{"registry.example": "203.0.113.1", "storage.example": "203.0.113.2"})
	layer := []byte("layer")
	n.begin(func(w http.ResponseWriter, req *http.Request) {
		_, _, known := req.BasicAuth()
		switch {
		case req.Host == "storage.example":
			http.Redirect(w, req, "https://registry.example/private", http.StatusFound)
		case req.URL.Path == "/private":
			if known {
				t.Error("the request that came back had the password")
			}
			_, _ = w.Write(layer)
		case !known:
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		case strings.Contains(req.URL.Path, "/blobs/"):
			http.Redirect(w, req, "https://storage.example/x", http.StatusFound)
		}
	})
	if _, err := readAll(n.over(newClient(t, Options{Keychain: user{"alice", canaryPassword}})), "registry.example/web", layer); err != nil {
		t.Error(err)
	}
	n.judge(t, "registry.example:443")
}
