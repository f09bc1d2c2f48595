package registry

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
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
