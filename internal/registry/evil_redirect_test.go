package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

const (
	evilHost = "registry.evil.example"
	authHost = "auth.evil.example"
	farHost  = "storage.example"
)

// evilNames is the DNS of the matrix. Some of it is what an attacker would put there.
var evilNames = map[string]string{
	evilHost: "203.0.113.1", authHost: "203.0.113.2", farHost: "203.0.113.3", "sub." + evilHost: "203.0.113.4",
	"metadata.example": "169.254.169.254", "inside.example": "10.0.0.7", "here.example": "127.0.0.1",
	"mapped.example": "::ffff:169.254.169.254", "nat64.example": "64:ff9b::a9fe:a9fe", "sixtofour.example": "2002:a9fe:a9fe::1",
	"localhost": "127.0.0.1", "trick.localhost": "203.0.113.66",
	// What a resolver of C makes of these.
	"2852039166": "169.254.169.254", "0xa9fea9fe": "169.254.169.254", "169.254.43518": "169.254.169.254", "127.1": "127.0.0.1",
}

// targets are where the registry tries to send us, and whether a blob may be fetched from there.
var targets = []struct {
	url string
	ok  bool
}{
	{"https://" + farHost, true},
	{"https://sub." + evilHost, true},
	{"https://" + evilHost + ":8443", true},
	{"https://" + strings.ToUpper(farHost) + ":443", true},
	{"http://" + farHost, false},
	{"http://" + evilHost, false},
	{"ftp://" + farHost, false},
	{"https://169.254.169.254", false},
	{"http://169.254.169.254", false},
	{"https://[::ffff:169.254.169.254]", false},
	{"https://[64:ff9b::a9fe:a9fe]", false},
	{"https://[fd00:ec2::254]", false},
	{"https://metadata.example", false},
	{"https://mapped.example", false},
	{"https://nat64.example", false},
	{"https://sixtofour.example", false},
	{"https://2852039166", false},
	{"https://0xa9fea9fe", false},
	{"https://169.254.43518", false},
	{"https://127.1", false},
	{"https://127.0.0.1", false},
	{"http://127.0.0.1:7400", false},
	{"https://[::1]", false},
	{"https://localhost", false},
	{"http://trick.localhost", false},
	{"https://10.0.0.7", false},
	{"https://inside.example", false},
	{"https://here.example", false},
	{"https://0.0.0.0", false},
}

// evilCredential is a way to be known to the registry.
type evilCredential struct {
	name   string
	config *authn.AuthConfig // nil for none
	basic  bool              // the registry asks for Basic
}

var evilCredentials = []evilCredential{
	{"password", &authn.AuthConfig{Username: "alice", Password: canaryPassword}, true},
	{"token by password", &authn.AuthConfig{Username: "alice", Password: canaryPassword}, false},
	{"token by identity", &authn.AuthConfig{IdentityToken: canaryIdentity}, false},
	{"fixed token", &authn.AuthConfig{RegistryToken: canaryFixed}, false},
	{"none", nil, false},
}

// Resolve implements authn.Keychain: the credential is for the evil registry alone.
func (c evilCredential) Resolve(r authn.Resource) (authn.Authenticator, error) {
	if c.config == nil || r.RegistryStr() != evilHost {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(*c.config), nil
}

// evilRegistry is good but for one thing.
type evilRegistry struct {
	kind       string
	target     string // a URL without path
	credential evilCredential

	manifest, config, layer []byte
	cut                     atomic.Bool
}

// evilKind is a place where a registry can try to send us elsewhere. Those that are followed are fetches of
// content by digest.
type evilKind struct {
	name     string
	followed bool
	harmless bool // nothing is to be followed, and all ends well
	tokens   bool // makes sense with a token server only
}

var evilKinds = []evilKind{
	{name: "ping"},
	{name: "tag"},
	{name: "manifest by digest"},
	{name: "config", followed: true},
	{name: "blob", followed: true},
	{name: "blob 301", followed: true},
	{name: "blob by way of itself", followed: true},
	{name: "blob by way of storage", followed: true},
	{name: "blob after a cut", followed: true},
	{name: "blob with a user in the URL"},
	{name: "blob at the fourth hop"},
	{name: "blob at somebody who wants a token"},
	{name: "blob with urls"},
	{name: "blob with Location and 200", harmless: true},
	{name: "upload"},
	{name: "next page of referrers"},
	{name: "token", tokens: true},
	{name: "realm", tokens: true},
	{name: "second realm", tokens: true},
	{name: "realm with an escape", tokens: true},
	{name: "late realm", tokens: true},
}

// there is a path at the target that has the thing. The signature must not be shown to anybody.
func (e *evilRegistry) there(path string) string { return e.target + path + "?sig=SIGNATURE" }

func (e *evilRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch host := strings.ToLower(req.Host); {
	case host == evilHost:
		e.home(w, req)
	case host == authHost:
		if e.kind == "token" {
			http.Redirect(w, req, e.there("/token"), http.StatusTemporaryRedirect)
			return
		}
		e.token(w)
	case host == farHost && strings.HasPrefix(req.URL.Path, "/bounce"):
		http.Redirect(w, req, e.there("/storage"+strings.TrimPrefix(req.URL.Path, "/bounce")), http.StatusFound)
	case e.kind == "blob at somebody who wants a token" && req.Header.Get("Authorization") == "" && !strings.HasPrefix(req.URL.Path, "/token"):
		w.Header().Set("WWW-Authenticate", headerOf("Bearer", "https://"+req.Host+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	case strings.HasPrefix(req.URL.Path, "/token"):
		e.token(w)
	default:
		e.content(w, req)
	}
}

func (e *evilRegistry) token(w http.ResponseWriter) {
	fmt.Fprintf(w, `{"access_token":%q}`, canaryIssued)
}

// content gives whatever the path ends in.
func (e *evilRegistry) content(w http.ResponseWriter, req *http.Request) {
	for _, b := range [][]byte{e.manifest, e.config, e.layer} {
		if strings.HasSuffix(req.URL.Path, digestOf(b)) {
			if strings.Contains(req.URL.Path, "/manifests/") {
				w.Header().Set("Content-Type", typeManifest)
			}
			http.ServeContent(w, req, "", zeroTime, strings.NewReader(string(b)))
			return
		}
	}
	if strings.HasSuffix(req.URL.Path, "/manifests/1") {
		w.Header().Set("Content-Type", typeManifest)
		_, _ = w.Write(e.manifest)
		return
	}
	http.NotFound(w, req)
}

// known says whether a request has the credentials that the registry wants.
func (e *evilRegistry) known(req *http.Request) bool {
	header := req.Header.Get("Authorization")
	if e.credential.basic {
		_, password, _ := req.BasicAuth()
		return password == canaryPassword
	}
	return header == "Bearer "+canaryIssued || header == "Bearer "+canaryFixed
}

func (e *evilRegistry) challenge(w http.ResponseWriter) {
	switch {
	case e.credential.basic:
		w.Header().Set("WWW-Authenticate", `Basic realm="evil"`)
	case e.kind == "realm":
		w.Header().Set("WWW-Authenticate", headerOf("Bearer", e.target+"/token"))
	case e.kind == "second realm":
		w.Header().Add("WWW-Authenticate", headerOf("Bearer", "https://"+authHost+"/token"))
		w.Header().Add("WWW-Authenticate", headerOf("Bearer", e.target+"/token"))
	case e.kind == "realm with an escape":
		w.Header().Set("WWW-Authenticate", `Bearer realm="https://`+authHost+`/token",realm="`+strings.Replace(e.target, ":", `\:`, 1)+`/token",service="evil"`)
	default:
		w.Header().Set("WWW-Authenticate", headerOf("Bearer", "https://"+authHost+"/token"))
	}
	w.WriteHeader(http.StatusUnauthorized)
}

func (e *evilRegistry) home(w http.ResponseWriter, req *http.Request) {
	path := req.URL.Path
	layer, config := strings.HasSuffix(path, digestOf(e.layer)), strings.HasSuffix(path, digestOf(e.config))
	redirect := func(to string) { http.Redirect(w, req, to, http.StatusTemporaryRedirect) }
	switch {
	case e.kind == "ping" && path == "/v2/":
		redirect(e.there("/v2/"))
	case !e.known(req):
		e.challenge(w)
	case path == "/v2/":
		w.WriteHeader(http.StatusOK)
	case e.kind == "tag" && strings.HasSuffix(path, "/manifests/1"),
		e.kind == "manifest by digest" && strings.Contains(path, "/manifests/sha256:"):
		redirect(e.there(path))
	case e.kind == "config" && config, e.kind == "blob" && layer:
		redirect(e.there(path))
	case e.kind == "blob 301" && layer:
		http.Redirect(w, req, e.there(path), http.StatusMovedPermanently)
	case e.kind == "blob by way of itself" && layer && !strings.HasPrefix(path, "/again"):
		redirect("/again" + path)
	case e.kind == "blob by way of itself" && layer:
		redirect(e.there(path))
	case e.kind == "blob by way of storage" && layer:
		redirect("https://" + farHost + "/bounce/" + digestOf(e.layer))
	case e.kind == "blob at the fourth hop" && layer:
		if hops := strings.Count(path, "/again"); hops < 3 {
			redirect("/again" + path)
		} else {
			redirect(e.there(path))
		}
	case e.kind == "blob after a cut" && layer:
		if e.cut.CompareAndSwap(false, true) {
			w.Header().Set("Content-Length", strconv.Itoa(len(e.layer)))
			_, _ = w.Write(e.layer[:5])
			flush(w)
			panic(http.ErrAbortHandler)
		}
		redirect(e.there(path))
	case e.kind == "blob with a user in the URL" && layer:
		redirect(strings.Replace(e.there(path), "://", "://me:secret@", 1))
	case e.kind == "blob at somebody who wants a token" && layer:
		redirect(e.there("/wants" + path))
	case e.kind == "blob with urls" && layer:
		http.NotFound(w, req)
	case e.kind == "blob with Location and 200" && layer:
		w.Header().Set("Location", e.there(path))
		w.Header().Set("Refresh", "0; url="+e.there(path))
		_, _ = w.Write(e.layer)
	case e.kind == "late realm" && layer:
		w.Header().Set("WWW-Authenticate", headerOf("Bearer", e.target+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	case e.kind == "upload" && req.Method == http.MethodPost:
		w.Header().Set("Location", e.there("/upload"))
		w.WriteHeader(http.StatusAccepted)
	case strings.Contains(path, "/referrers/"):
		w.Header().Set("Content-Type", typeIndex)
		w.Header().Set("Link", "<"+e.there("/next")+`>; rel="next"`)
		_, _ = io.WriteString(w, `{"schemaVersion":2,"manifests":[]}`)
	default:
		e.content(w, req)
	}
}

// TestEvilRedirects: whatever a registry does to send us elsewhere, no secret goes there, no address is
// connected to that is not a registry's business, and nothing hangs.
func TestEvilRedirects(t *testing.T) {
	n := newInternet(t, evilNames)
	mine, err := n.issue("me")
	if err != nil {
		t.Fatal(err)
	}
	all := os.Getenv("PINNACE_MATRIX") != "" // otherwise each pair of kind and target with one credential
	cases, followed := 0, 0
	for i, kind := range evilKinds {
		for j, target := range targets {
			for k, credential := range evilCredentials {
				if kind.tokens && credential.basic || kind.name == "token" && credential.name == "fixed token" {
					continue
				}
				if turn := (i + j) % len(evilCredentials); !all && k != turn && (k != 1 || !kind.tokens) {
					continue
				}
				cases++
				name := kind.name + " to " + target.url + " with " + credential.name
				t.Run(name, func(t *testing.T) {
					e := newEvilRegistry(kind.name, target.url, credential)
					n.begin(e.ServeHTTP)
					c := n.over(newClient(t, Options{Keychain: credential, Hosts: map[string]Host{
						evilHost: {TokenHosts: []string{authHost}, ClientCertificate: mine},
					}}))
					err := withinTime(t, 20*time.Second, func(ctx context.Context) error { return e.use(ctx, c) })
					n.judge(t, evilHost+":443", authHost+":443")
					good := kind.harmless || kind.followed && target.ok
					if good {
						followed++
					}
					if (err == nil) != good {
						t.Errorf("got %v", err)
					}
					if err != nil {
						mustBeClear(t, err)
					}
				})
			}
		}
	}
	t.Logf("%d cases, of which %d end well", cases, followed)
	if cases < 600 || all && cases < 2500 {
		t.Errorf("only %d cases", cases)
	}
}

func newEvilRegistry(kind, target string, credential evilCredential) *evilRegistry {
	e := &evilRegistry{kind: kind, target: target, credential: credential}
	e.layer = []byte("what is in the layer")
	e.config = []byte(`{"os":"linux","architecture":"amd64"}`)
	e.manifest = []byte(manifestOf(e.config, e.layer))
	if kind == "blob with urls" {
		var m map[string]any
		if err := json.Unmarshal(e.manifest, &m); err != nil {
			panic(err)
		}
		layer := m["layers"].([]any)[0].(map[string]any)
		layer["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		layer["urls"] = []string{e.there("/storage/" + digestOf(e.layer))}
		e.manifest, _ = json.Marshal(m)
	}
	return e
}

// use does what a user does that meets the evil.
func (e *evilRegistry) use(ctx context.Context, c *Client) error {
	repository := evilHost + "/web"
	switch e.kind {
	case "upload":
		_, err := c.Push(ctx, repository, newArtifact(Descriptor{MediaType: typeManifest, Digest: digestOf(e.manifest), Size: 1}, "x"))
		return err
	case "next page of referrers":
		_, err := c.Referrers(ctx, repository, digestOf(e.manifest), testArtifact)
		return err
	}
	ref := repository + ":1"
	if e.kind == "manifest by digest" {
		ref = repository + "@" + digestOf(e.manifest)
	}
	if _, err := c.Resolve(ctx, ref); err != nil {
		return err
	}
	blob, err := c.Blob(ctx, repository, digestOf(e.layer), int64(len(e.layer)))
	if err != nil {
		return err
	}
	b, err := io.ReadAll(blob)
	if err := errors.Join(err, blob.Close()); err != nil {
		return err
	}
	if string(b) != string(e.layer) {
		return fmt.Errorf("got %q", b)
	}
	return nil
}
