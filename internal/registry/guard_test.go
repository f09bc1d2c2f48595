package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// user is a keychain with one credential for every registry.
type user struct{ name, password string }

func (u user) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{Username: u.name, Password: u.password}), nil
}

func TestRedirects(t *testing.T) {
	layerOf := func(f *fakeRegistry) string { return "/v2/web/blobs/" + digestOf(f.layer) }
	redirect := func(to string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			http.Redirect(w, req, to, http.StatusTemporaryRedirect)
		}
	}
	cases := map[string]struct {
		change func(f, other *fakeRegistry)
		want   string // in the error; empty when it is allowed
	}{
		"blob to other host": {func(f, other *fakeRegistry) { f.handle(layerOf(f), redirect(other.server.URL+"/storage?sig=secret")) }, ""},
		"blob on same host": {func(f, _ *fakeRegistry) {
			f.handle(layerOf(f), redirect("/storage"))
			f.handle("/storage", serveBytes(f.layer))
		}, ""},
		"manifest": {func(f, other *fakeRegistry) {
			f.handle("/v2/web/manifests/1", redirect(other.server.URL+"/v2/web/manifests/1"))
		}, "only requests for blobs"},
		"ping":              {func(f, other *fakeRegistry) { f.handle("/v2/", redirect(other.server.URL+"/v2/")) }, "only requests for blobs"},
		"metadata service":  {func(f, _ *fakeRegistry) { f.handle(layerOf(f), redirect("http://169.254.169.254/latest/meta-data")) }, "169.254.169.254"},
		"metadata over TLS": {func(f, _ *fakeRegistry) { f.handle(layerOf(f), redirect("https://169.254.169.254/")) }, "no business with"},
		"any address":       {func(f, _ *fakeRegistry) { f.handle(layerOf(f), redirect("https://0.0.0.0/")) }, "no business with"},
		"plain HTTP":        {func(f, _ *fakeRegistry) { f.handle(layerOf(f), redirect("http://storage.example/x")) }, "which is not https"},
		"other scheme":      {func(f, _ *fakeRegistry) { f.handle(layerOf(f), redirect("file:///etc/passwd")) }, "file"},
		"for ever":          {func(f, _ *fakeRegistry) { f.handle(layerOf(f), redirect(layerOf(f))) }, "more than 3 times"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f, other := newFakeRegistry(t), newFakeRegistry(t)
			f.protect()
			other.handle("/storage", serveBytes(f.layer))
			other.document("1", typeManifest, f.manifest)
			c.change(f, other)
			client := newClient(t, Options{Keychain: user{"alice", "secret"}})
			_, err := client.Resolve(t.Context(), f.addr+"/web:1")
			if err == nil {
				var blob io.ReadCloser
				if blob, err = client.Blob(t.Context(), f.addr+"/web", digestOf(f.layer), int64(len(f.layer))); err == nil {
					_, err = io.ReadAll(blob)
					blob.Close()
				}
			}
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "sig=") {
				t.Errorf("the error shows a signature: %v", err)
			}
			if got := other.credentials(); len(got) > 0 {
				t.Errorf("the other host got credentials: %v", got)
			}
		})
	}
}

func serveBytes(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(b) }
}

// protect makes the registry ask for Basic credentials.
func (f *fakeRegistry) protect() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, h := range f.handlers {
		f.handlers[path] = func(w http.ResponseWriter, req *http.Request) {
			if _, _, ok := req.BasicAuth(); !ok {
				w.Header().Set("WWW-Authenticate", `Basic realm="fake"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, req)
		}
	}
}

func TestTokenRealms(t *testing.T) {
	cases := map[string]struct {
		realm   func(f, other *fakeRegistry) string
		allowed bool // by an option
		ok      bool
	}{
		"same host":        {realm: func(f, _ *fakeRegistry) string { return f.server.URL + "/token" }, ok: true},
		"other host":       {realm: func(_, other *fakeRegistry) string { return other.server.URL + "/token" }},
		"allowed host":     {realm: func(_, other *fakeRegistry) string { return other.server.URL + "/token" }, allowed: true, ok: true},
		"metadata":         {realm: func(_, _ *fakeRegistry) string { return "http://169.254.169.254/token" }},
		"with user":        {realm: func(f, _ *fakeRegistry) string { return "http://u:p@" + f.addr + "/token" }},
		"not a URL":        {realm: func(_, _ *fakeRegistry) string { return "::" }},
		"redirects away":   {realm: func(f, _ *fakeRegistry) string { return f.server.URL + "/away" }},
		"Docker's, forged": {realm: func(_, _ *fakeRegistry) string { return "https://auth.docker.io/token" }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f, other := newFakeRegistry(t), newFakeRegistry(t)
			realm := c.realm(f, other)
			f.bearer(realm, "good")
			for _, r := range []*fakeRegistry{f, other} {
				r.handle("/token", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"token":"good"}`) })
			}
			f.handle("/away", func(w http.ResponseWriter, req *http.Request) {
				http.Redirect(w, req, other.server.URL+"/token", http.StatusFound)
			})
			o := Options{Keychain: user{"alice", "secret"}}
			if c.allowed {
				o.Hosts = map[string]Host{f.addr: {TokenHosts: []string{other.addr}}}
			}
			_, err := newClient(t, o).Resolve(t.Context(), f.addr+"/web:1")
			if c.ok {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, ErrForbidden) {
				t.Errorf("got %v", err)
			}
			if len(other.paths()) > 0 {
				t.Errorf("the other host was asked: %v, %v", other.paths(), other.credentials())
			}
		})
	}
}

// bearer makes the registry ask for a token of that realm.
func (f *fakeRegistry) bearer(realm, token string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for path, h := range f.handlers {
		f.handlers[path] = func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") != "Bearer "+token {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="fake",scope="repository:web:pull"`, realm))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			h(w, req)
		}
	}
}

func TestKnownTokenHosts(t *testing.T) {
	c := newClient(t, Options{})
	for registry, realm := range map[string]string{"index.docker.io": "auth.docker.io", "registry.gitlab.com": "gitlab.com"} {
		g := newGuard(c, mustRegistry(t, registry))
		challenge := http.Header{"Www-Authenticate": {`Bearer realm="https://` + realm + `/jwt",service="x"`}}
		if err := g.checkChallenge(&http.Response{Header: challenge}, true, "https"); err != nil {
			t.Error(err)
		}
	}
}

func mustRegistry(t *testing.T, host string) name.Registry {
	t.Helper()
	r, err := name.NewRegistry(host)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestGuardRefusesPlainHTTP(t *testing.T) {
	cases := map[string]bool{
		"http://registry.example/v2/": false, "http://10.0.0.5:5000/v2/": false, "http://192.168.1.1/v2/": false,
		"http://127.0.0.1:5000/v2/": true, "http://localhost:5000/v2/": true, "http://[::1]:5000/v2/": true,
		"http://allowed.example:5000/v2/": true, "http://plain.example/v2/": true, "http://plain.example:81/v2/": false, "http://allowed.example/v2/": false,
		"https://registry.example/v2/": true,
	}
	c := newClient(t, Options{Hosts: map[string]Host{"allowed.example:5000": {PlainHTTP: true}, "Plain.example": {PlainHTTP: true}}})
	for raw, want := range cases {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		g := newGuard(c, mustRegistry(t, u.Host))
		if err := g.allow(&http.Request{URL: u}); (err == nil) != want {
			t.Errorf("%s: got %v", raw, err)
		}
	}
}

func TestRealms(t *testing.T) {
	cases := map[string]string{
		`Bearer realm="https://a/token",service="s"`:         "https://a/token",
		`bearer service="s", REALM = "https://a/t"`:          "https://a/t",
		`Bearer realm=https://a/t, service=s`:                "https://a/t",
		`Basic realm="me", Bearer realm="https://a/t"`:       "https://a/t me",
		`Basic realm="only a text"`:                          "",
		`Bearer service="realm"`:                             "",
		`Bearer realm="https://good/",realm="https://evil/"`: "https://good/ https://evil/",
		`Bearer scope="realm=https://x/",realm="https://y/"`: `https://y/ https://x/"`,
		`Bearer realm="https://good\"@evil/"`:                `https://good"@evil/ https://good\`,
		"Bearer \u023a\u023a realm=\"https://a/t\"":          "https://a/t",
		`Bearer realm`:  "",
		`Bearer realm=`: "",
	}
	for header, want := range cases {
		if got := strings.Join(realms(header), " "); got != want {
			t.Errorf("%s: got %q, want %q", header, got, want)
		}
	}
}

func TestAddressClasses(t *testing.T) {
	const never = -1
	for want, addrs := range map[reach][]string{
		never: {
			"169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0", "169.254.170.2",
			"fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192",
			"0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1",
			"64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254", "::169.254.169.254", "::ffff:0:169.254.169.254",
			"2002:a9fe:a9fe::1", "2001:0:1:2:3:4:5601:5601", "2001:db8::5efe:169.254.169.254", "2001:db8::200:5efe:169.254.169.254",
			"64:ff9b::100.100.100.200", "64:ff9b::0.0.0.0",
		},
		reachHere:    {"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::"},
		reachPrivate: {"10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.1.1", "fd00::1", "fec0::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "198.18.0.1"},
		reachPublic:  {"192.0.2.1", "2001:db8::1", "64:ff9b::192.0.2.1", "172.32.0.1", "100.128.0.1", "2002:c000:201::1"},
	} {
		for _, addr := range addrs {
			a := netip.MustParseAddr(addr)
			if neverDialled(a) != (want == never) || want != never && reachOf(a) != want {
				t.Errorf("%s: got never %v, reach %d; want %d", addr, neverDialled(a), reachOf(a), want)
			}
		}
	}
}

func TestForeignHostsAreNotDialledOnThisMachine(t *testing.T) {
	f := newFakeRegistry(t)
	c := newClient(t, Options{})
	for _, r := range []reach{reachPublic, reachPrivate} {
		res, err := c.transports.get(f.addr, Host{}, r).RoundTrip(httptest.NewRequestWithContext(t.Context(), http.MethodGet, f.server.URL, nil))
		if err == nil {
			res.Body.Close()
		}
		if !errors.Is(err, ErrForbidden) || len(f.paths()) > 0 {
			t.Errorf("reach %d: got %v", r, err)
		}
	}
}

// TestHangsUpWithoutCertificate has a registry that asks for a certificate and, getting none, resets the connection
// before its alert can be read, as happens by chance with TLS 1.3. What people read must be the same.
func TestHangsUpWithoutCertificate(t *testing.T) {
	n := newInternet(t, nil) // for its authority
	mine, err := n.issue("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer func() { _ = listener.Close(); <-done }()
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			server := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{*mine}, ClientAuth: tls.RequestClientCert})
			if err := server.Handshake(); err == nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
			}
			_ = conn.Close()
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(n.authority)
	addr := listener.Addr().String()
	client := newClient(t, Options{Hosts: map[string]Host{addr: {RootCAs: roots}}})
	_, err = client.Resolve(t.Context(), addr+"/shop/web:1")
	e, ok := errors.AsType[*Error](err)
	if !ok || !errors.Is(err, ErrTLS) || !strings.Contains(e.Hint, "client_cert = ") || !strings.Contains(err.Error(), "asked for a client certificate") {
		t.Errorf("got %v", err)
	}
}
