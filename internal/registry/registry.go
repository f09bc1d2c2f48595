// Package registry reads images from registries: it turns a reference that a person wrote into an image
// pinned by digest, and fetches blobs of it. It can also put a small artifact beside an image, which then
// lists it among its referrers.
//
// A tag is looked up once, in Resolve; from then on every request names a digest. Registries are not
// trusted: all bytes are checked against the digest they were asked for by, sizes are bounded before
// anything is read, credentials go to the registry they are for and to nobody else, and a registry cannot
// send the client to addresses that it has no business with.
//
// The package does not store images, choose platforms or push images.
package registry

import (
	"context"
	"crypto/x509"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Options of a Client. The zero value is good for a person's own machine.
type Options struct {
	// Keychain finds credentials. nil reads the docker configuration of the user who runs the program,
	// with its credential helpers (or podman's, when there is none).
	Keychain authn.Keychain
	// PlainHTTP names the registries, as host or host:port, that may be spoken to without TLS. Those on a
	// loopback address always may.
	PlainHTTP []string
	// TokenHosts names hosts, besides the registry's own, that credentials may be sent to for a token when
	// a registry asks for it. Docker Hub's and GitLab's are known.
	TokenHosts []string
	// Architectures that images are resolved for, as GOARCH names them. nil means amd64 and arm64.
	Architectures []string
	// RootCAs verify registries instead of the system's.
	RootCAs *x509.CertPool
	// UserAgent is sent with every request: "pinnace/1.2.3".
	UserAgent string
}

// Image is an image pinned by digest.
type Image struct {
	Repository string // host/path, without tag
	Digest     string // sha256:…, of the index when the image has one, of the manifest otherwise
	Platforms  []Platform
	// Missing are architectures that the index has an entry for and the registry no manifest: a sparse index,
	// as mirrors of a part of an image have it. The image is good for the others.
	Missing []string
}

// Platform is the image for one architecture, with the bytes that its digests stand for.
type Platform struct {
	Architecture   string
	ManifestDigest string
	Manifest       []byte
	Config         []byte
}

// Client reads from any number of registries. It may be used concurrently.
type Client struct {
	options Options
	arch    map[string]bool
	plain   map[string]bool
	tokens  map[string]bool
	dialers dialers
	limits  limits

	mu       sync.Mutex
	sessions map[sessionKey]*session // guarded by mu
}

// limits are the bounds on time. Tests shorten them.
type limits struct {
	window  time.Duration // in which a body must make progress
	atLeast int64         // bytes of progress in a window
	backoff time.Duration // before the second attempt
	longest time.Duration // that Retry-After can make us wait
}

// New makes a client. It makes no request.
func New(o Options) *Client {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Architectures == nil {
		o.Architectures = []string{"amd64", "arm64"}
	}
	c := &Client{
		options:  o,
		arch:     set(o.Architectures),
		plain:    set(o.PlainHTTP),
		tokens:   set(o.TokenHosts),
		dialers:  newDialers(o.RootCAs),
		limits:   limits{window: 30 * time.Second, atLeast: 30 << 10, backoff: time.Second, longest: 5 * time.Minute},
		sessions: map[sessionKey]*session{},
	}
	return c
}

// Close ends idle connections.
func (c *Client) Close() { c.dialers.close() }

func set(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, s := range list {
		m[strings.ToLower(s)] = true
	}
	return m
}

type sessionKey struct {
	repository string
	push       bool
}

// session is the conversation with one repository: what credentials it takes and how.
type session struct {
	busy       chan struct{} // holds one token; whoever takes it may set up
	client     *http.Client  // nil until set up; guarded by busy
	credential string        // what was tried, for error messages; guarded by busy
}

// session returns the set-up session of a repository. Whoever comes first does the handshake: it asks the
// registry how it wants to be authenticated to, and gets a token if it has to.
//
// Reading and writing are two sessions: whoever only reads asks for no more than that.
func (c *Client) session(ctx context.Context, repo name.Repository, push bool) (*session, error) {
	key, scope := sessionKey{repo.Name(), push}, transport.PullScope
	if push {
		scope = transport.PushScope
	}
	c.mu.Lock()
	s := c.sessions[key]
	if s == nil {
		s = &session{busy: make(chan struct{}, 1)}
		c.sessions[key] = s
	}
	c.mu.Unlock()

	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-s.busy }()
	if s.client != nil {
		return s, nil
	}
	auth, err := authn.Resolve(ctx, c.options.Keychain, repo)
	if err != nil {
		return nil, &Error{
			Kind: ErrUnauthorized, Registry: repo.RegistryStr(), Err: err,
			Message: "the docker configuration has credentials for this registry that cannot be read",
			Hint:    "check ~/.docker/config.json and the credential helper that it names, or run docker login " + repo.RegistryStr(),
		}
	}
	s.credential = describe(ctx, auth)
	g := newGuard(c, repo.Registry)
	tr, err := transport.NewWithContext(ctx, repo.Registry, auth,
		transport.NewUserAgent(g, c.options.UserAgent), []string{repo.Scope(scope)})
	if err != nil {
		return s, err
	}
	s.client = &http.Client{Transport: tr, CheckRedirect: limitRedirects}
	return s, nil
}

// forget drops a session whose credentials were refused, so that the next attempt reads them again.
func (c *Client) forget(repo name.Repository, push bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, sessionKey{repo.Name(), push})
}

// describe says which credential is used, without saying what it is.
func describe(ctx context.Context, auth authn.Authenticator) string {
	if auth == authn.Anonymous {
		return ""
	}
	config, err := authn.Authorization(ctx, auth)
	switch {
	case err != nil:
		return ""
	case config.Username != "" && config.Username != "<token>":
		return "those of user " + printable(config.Username) + " from the docker configuration"
	case *config == (authn.AuthConfig{}):
		return ""
	}
	return "a token from the docker configuration"
}
