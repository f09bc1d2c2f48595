package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// debianRegistry runs the registry of Debian's package docker-registry with more of a configuration, and
// returns its address.
func debianRegistry(t *testing.T, more string) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs Debian's docker-registry: ", err)
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s\nhttp:\n  addr: 127.0.0.1:0\n%s", dir, more)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, program, "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening := make(chan string, 1)
	var log bytes.Buffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`).FindStringSubmatch(lines.Text()); m != nil {
				listening <- m[1]
			}
			if log.Len() < 64<<10 {
				log.WriteString(lines.Text() + "\n")
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-read
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			lines := strings.Split(log.String(), "\n")
			t.Logf("the last of docker-registry's log:\n%s", strings.Join(lines[max(0, len(lines)-6):], "\n"))
		}
	})
	select {
	case addr := <-listening:
		return addr
	case <-read:
		t.Fatalf("docker-registry ended:\n%s", log.String())
	case <-time.After(30 * time.Second):
		t.Fatal("docker-registry did not come up")
	}
	return ""
}

// htpasswd knows alice by her password.
func htpasswd(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(goodUser+":"+goodPasswordHash+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("auth:\n  htpasswd:\n    realm: the registry\n    path: %s\n", path)
}

// goodPasswordHash is bcrypt's of goodPassword.
const goodPasswordHash = "$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2"

// putAs pushes an image with credentials, by a client that is not ours.
func putAs(t *testing.T, addr, path string, img v1.Image, over http.RoundTripper, auth authn.Authenticator) {
	t.Helper()
	tag, err := name.ParseReference(addr + path)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img, remote.WithContext(t.Context()), remote.WithTransport(over), remote.WithAuth(auth)); err != nil {
		t.Fatal(err)
	}
}

func alice() authn.Authenticator {
	return authn.FromConfig(authn.AuthConfig{Username: goodUser, Password: goodPassword})
}

// pullImage resolves an image and reads all its layers at once.
func pullImage(t *testing.T, c *Client, ref string, img v1.Image) error {
	t.Helper()
	image, err := c.Resolve(t.Context(), ref)
	if err != nil {
		return err
	}
	if want := digestString(t, img); image.Digest != want {
		t.Errorf("got %s, want %s", image.Digest, want)
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for _, l := range layers {
		all.Go(func() { readBlob(t, c, image.Repository, l) })
	}
	all.Wait()
	return nil
}

func manyLayers(t *testing.T, layers int64) v1.Image {
	t.Helper()
	img, err := random.Image(20_000, layers)
	if err != nil {
		t.Fatal(err)
	}
	return forPlatform(t, img, "linux", "amd64")
}

func TestDebianBasic(t *testing.T) {
	addr := debianRegistry(t, htpasswd(t))
	img := manyLayers(t, 4)
	putAs(t, addr, "/shop/web:1", img, http.DefaultTransport, alice())
	if err := pullImage(t, newClient(t, Options{Keychain: user{goodUser, goodPassword}}), addr+"/shop/web:1", img); err != nil {
		t.Error(err)
	}
	for want, keychain := range map[string]authn.Keychain{
		"without credentials": anonymous{}, "those of user alice": user{goodUser, "guess"},
		"a token from the docker configuration": fixedToken("nonsense"),
	} {
		err := pullImage(t, newClient(t, Options{Keychain: keychain}), addr+"/shop/web:1", img)
		if !errors.Is(err, ErrUnauthorized) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "guess") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	c := newClient(t, Options{Keychain: user{goodUser, goodPassword}})
	if _, err := c.Resolve(t.Context(), addr+"/shop/web:2"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "has no tag 2 of shop/web") {
		t.Errorf("no such tag: got %v", err)
	}
	if _, err := c.Resolve(t.Context(), addr+"/shop/nothing:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such repository: got %v", err)
	}
	subject, _, err := c.Describe(t.Context(), addr+"/shop/web", digestString(t, img))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Push(t.Context(), addr+"/shop/web", newArtifact(subject, "x")); err != nil {
		t.Errorf("push: %v", err)
	}
}

// fixedToken is a keychain with a token that goes to registries as it is.
type fixedToken string

func (f fixedToken) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{RegistryToken: string(f)}), nil
}

// TestDebianCertificates has a registry with a private authority that wants certificates from its clients, too.
func TestDebianCertificates(t *testing.T) {
	n := newInternet(t, nil) // for its authority
	dir := t.TempDir()
	server, err := n.issue("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	mine, err := n.issue("client")
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(n.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: n.authority.Raw}, "cert.pem": {Type: "CERTIFICATE", Bytes: server.Certificate[0]},
		"key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr := debianRegistry(t, strings.ReplaceAll("  tls:\n    certificate: DIR/cert.pem\n    key: DIR/key.pem\n    clientcas: [DIR/ca.pem]\n", "DIR", dir)+htpasswd(t))
	roots := x509.NewCertPool()
	roots.AddCert(n.authority)
	over := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{*mine}}}
	defer over.CloseIdleConnections()
	img := manyLayers(t, 2)
	putAs(t, addr, "/shop/web:1", img, over, alice())
	for name, c := range map[string]struct {
		host Host
		want string // in the hint
	}{
		"both":                  {Host{RootCAs: roots, ClientCertificate: mine}, ""},
		"no settings":           {Host{}, "set ca = "},
		"no client certificate": {Host{RootCAs: roots}, "client_cert = "},
		"plain HTTP":            {Host{PlainHTTP: true}, "remove plain_http"},
	} {
		client := newClient(t, Options{Keychain: user{goodUser, goodPassword}, Hosts: map[string]Host{addr: c.host}})
		err := pullImage(t, client, addr+"/shop/web:1", img)
		if e, ok := errors.AsType[*Error](err); (err == nil) != (c.want == "") || ok && !strings.Contains(e.Hint, c.want) {
			t.Errorf("%s: got %v, hint %q", name, err, e.Hint)
		}
		if err != nil && !errors.Is(err, ErrTLS) && c.host.PlainHTTP == false {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// tokenServer gives tokens for Debian's registry: by GET for a password, by POST for an identity token. The
// first one that it gives can have expired.
type tokenServer struct {
	*httptest.Server
	key     *ecdsa.PrivateKey
	cert    []byte
	expired atomic.Bool // the next token is

	mu    sync.Mutex
	asked []string // method and what proved who asks; guarded by mu
}

func newTokenServer(t *testing.T) *tokenServer {
	t.Helper()
	s := &tokenServer{}
	var err error
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "tokens"}, NotAfter: time.Now().Add(time.Hour)}
	if s.cert, err = x509.CreateCertificate(rand.Reader, template, template, s.key.Public(), s.key); err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *tokenServer) config(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tokens.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert}), 0o600); err != nil {
		t.Fatal(err)
	}
	// By name, because the client that pushes here refuses addresses in figures.
	return fmt.Sprintf("auth:\n  token:\n    realm: http://%s/token\n    service: the registry\n    issuer: the test\n    rootcertbundle: %s\n", s.host(), path)
}

func (s *tokenServer) host() string {
	return strings.Replace(s.Listener.Addr().String(), "127.0.0.1", "localhost", 1)
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	who, scope := "", req.FormValue("scope")
	if name, password, ok := req.BasicAuth(); ok && name == goodUser && password == goodPassword {
		who = "password"
	}
	if req.Method == http.MethodPost && req.PostFormValue("grant_type") == "refresh_token" && strings.HasPrefix(req.PostFormValue("refresh_token"), canaryIdentity) {
		who = req.PostFormValue("refresh_token")
	}
	s.mu.Lock()
	s.asked = append(s.asked, req.Method+" "+who)
	s.mu.Unlock()
	if who == "" && (req.Method == http.MethodPost || req.Header.Get("Authorization") != "") {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`, http.StatusUnauthorized)
		return
	}
	token := s.issue(who, scope)
	if req.Method == http.MethodPost {
		fmt.Fprintf(w, `{"access_token":%q,"refresh_token":%q,"expires_in":300}`, token, who+"+")
		return
	}
	fmt.Fprintf(w, `{"token":%q}`, token)
}

// issue makes a token for what is asked, unless nobody is known.
func (s *tokenServer) issue(who, scope string) string {
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	granted := []access{}
	if part := strings.Split(scope, ":"); who != "" && len(part) == 3 {
		granted = append(granted, access{part[0], part[1], strings.Split(part[2], ",")})
	}
	now := time.Now()
	expires := now.Add(5 * time.Minute)
	if s.expired.Swap(false) {
		expires = now.Add(-time.Hour)
	}
	encode := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	text := encode(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.cert)}}) + "." +
		encode(map[string]any{
			"iss": "the test", "sub": who, "aud": "the registry", "exp": expires.Unix(), "nbf": now.Add(-2 * time.Hour).Unix(),
			"iat": now.Unix(), "jti": rand.Text(), "access": granted,
		})
	sum := sha256.Sum256([]byte(text))
	r, v, _ := ecdsa.Sign(rand.Reader, s.key, sum[:])
	return text + "." + base64.RawURLEncoding.EncodeToString(append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...))
}

func (s *tokenServer) log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func TestDebianTokens(t *testing.T) {
	tokens := newTokenServer(t)
	addr := debianRegistry(t, tokens.config(t))
	host := tokens.host()
	img := manyLayers(t, 8)
	putAs(t, addr, "/shop/web:1", img, http.DefaultTransport, bearerOf(tokens, "repository:shop/web:push,pull"))
	tokens.log()
	allowed := map[string]Host{addr: {TokenHosts: []string{host}}}

	err := pullImage(t, newClient(t, Options{Keychain: user{goodUser, goodPassword}, Settings: "/etc/pinnace/registries.toml"}), addr+"/shop/web:1", img)
	e, _ := errors.AsType[*Error](err)
	want := fmt.Sprintf(`if %s really is the token server of %s: set token_hosts = [%q] under [registries.%q] in /etc/pinnace/registries.toml`, host, addr, host, addr)
	if !errors.Is(err, ErrForbidden) || e.Hint != want {
		t.Errorf("not on the list: got %v, hint %q, want %q", err, e.Hint, want)
	}
	if asked := tokens.log(); len(asked) > 0 {
		t.Errorf("a token server that is not on the list was asked: %v", asked)
	}

	for name, c := range map[string]struct {
		keychain authn.Keychain
		asked    string
		kind     error
	}{
		"password":       {user{goodUser, goodPassword}, "GET password", nil},
		"identity":       {identity(canaryIdentity), "POST " + canaryIdentity, nil},
		"wrong password": {user{goodUser, "guess"}, "GET ", ErrUnauthorized},
		"wrong identity": {identity("guess"), "POST ", ErrUnauthorized},
		"nobody":         {anonymous{}, "GET ", ErrUnauthorized},
	} {
		client := newClient(t, Options{Keychain: c.keychain, Hosts: allowed})
		err := pullImage(t, client, addr+"/shop/web:1", img)
		if !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v", name, err)
		}
		asked := tokens.log()
		if len(asked) == 0 || asked[0] != c.asked || c.kind == nil && len(asked) != 1 {
			t.Errorf("%s: the token server was asked: %q", name, asked)
		}
		if c.kind != nil {
			continue
		}
		// Eight layers at once find that the token has expired; one of them gets a new one for all.
		if _, err := client.session(t.Context(), mustRepository(t, addr+"/shop/web"), false); err != nil {
			t.Fatal(err)
		}
		expire(t, client, addr+"/shop/web", tokens)
		if err := pullImage(t, client, addr+"/shop/web:1", img); err != nil {
			t.Errorf("%s: after the token expired: %v", name, err)
		}
		if asked := tokens.log(); len(asked) != 1 || name == "identity" && asked[0] != "POST "+canaryIdentity+"+" {
			t.Errorf("%s: after the token expired the server was asked: %q", name, asked)
		}
	}

	client := newClient(t, Options{Keychain: user{goodUser, goodPassword}, Hosts: allowed})
	tokens.expired.Store(true)
	if err := pullImage(t, client, addr+"/shop/web:1", img); err != nil {
		t.Errorf("a first token that has expired: %v", err)
	}
	subject, _, err := client.Describe(t.Context(), addr+"/shop/web", digestString(t, img))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Push(t.Context(), addr+"/shop/web", newArtifact(subject, "x")); err != nil {
		t.Errorf("push: %v", err)
	}
}

// expire makes the token of a session one that has expired.
func expire(t *testing.T, c *Client, repository string, tokens *tokenServer) {
	t.Helper()
	s, err := c.session(t.Context(), mustRepository(t, repository), false)
	if err != nil {
		t.Fatal(err)
	}
	a := s.client.Transport.(*authorizer)
	tokens.expired.Store(true)
	a.header = "Bearer " + tokens.issue("password", "repository:shop/web:pull")
}

func mustRepository(t *testing.T, s string) name.Repository {
	t.Helper()
	r, err := name.NewRepository(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// identity is a keychain with an identity token, as docker login leaves one.
type identity string

func (i identity) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(authn.AuthConfig{IdentityToken: string(i)}), nil
}

// bearerOf is a token that is good for a scope.
func bearerOf(s *tokenServer, scope string) authn.Authenticator {
	return authn.FromConfig(authn.AuthConfig{RegistryToken: s.issue("password", scope)})
}

// TestDebianMirror has Debian's registry as a cache in front of another.
func TestDebianMirror(t *testing.T) {
	origin, _ := serve(t)
	mirror := debianRegistry(t, "proxy:\n  remoteurl: http://"+origin+"\n")
	img := manyLayers(t, 3)
	put(t, origin+"/shop/web:1", img)
	said := &notices{}
	c := newClient(t, Options{Hosts: map[string]Host{origin: {Mirrors: []string{mirror}}}, Notice: said.add})
	if err := pullImage(t, c, origin+"/shop/web:1", img); err != nil || said.String() != "" {
		t.Errorf("got %v, notices %q", err, said)
	}
}

// TestDebianCuts breaks each connection off after so many bytes.
func TestDebianCuts(t *testing.T) {
	addr := debianRegistry(t, "")
	img, err := random.Image(3_000_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	img = forPlatform(t, img, "linux", "amd64")
	putAs(t, addr, "/shop/web:1", img, http.DefaultTransport, authn.Anonymous)
	cutter := newCutter(t, addr, 1_000_000)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	if err := pullImage(t, newClient(t, Options{}), cutter.addr+"/shop/web:1", img); err != nil {
		t.Error(err)
	}
	if sent := cutter.sent.Load(); sent > size*12/10 || cutter.cuts.Load() < 2 {
		t.Errorf("%d bytes for %d, after %d cuts", sent, size, cutter.cuts.Load())
	}
}

// cutter passes connections on and cuts them.
type cutter struct {
	addr string
	sent atomic.Int64 // bytes that the client was sent
	cuts atomic.Int32
}

func newCutter(t *testing.T, to string, after int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				down.Close()
				continue
			}
			running.Go(func() { _, _ = io.Copy(up, down); up.Close() })
			running.Go(func() {
				n, err := io.CopyN(down, up, after)
				c.sent.Add(n)
				if err == nil {
					c.cuts.Add(1)
				}
				down.Close()
				up.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return c
}
