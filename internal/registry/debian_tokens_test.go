package registry

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

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
