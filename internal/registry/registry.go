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
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// Options of a Client. The zero value is good for a person's own machine.
type Options struct {
	// Keychain finds credentials. nil reads the docker configuration of the user who runs the program,
	// with its credential helpers (or podman's, when there is none).
	Keychain authn.Keychain
	// Hosts says of single registries how they are spoken to. The keys are as references have them: host, or
	// host:port. A mirror, a token server or a place that blobs are redirected to is looked up here, too.
	Hosts map[string]Host
	// Settings is the file that Hosts comes from, for hints: what to change is named with it.
	Settings string
	// Architectures that images are resolved for, as GOARCH names them. nil means amd64 and arm64.
	Architectures []string
	// UserAgent is sent with every request: "pinnace/1.2.3".
	UserAgent string
	// Notice hears what nobody has to act on but somebody may want to know: that a mirror was passed over, or
	// that a registry asked for patience. nil is for nobody. It may be called from several goroutines at once.
	Notice func(message string)
}

// Host says how one registry is spoken to. The zero value is right for most of them.
type Host struct {
	// Mirrors are asked first, in this order, for what is named by a digest; the registry itself comes last.
	// Each is host, host:port or host:port/prefix; the repository's path follows. What they send is verified
	// like everything else, and a mirror's credentials are those of its own host.
	Mirrors []string
	// PlainHTTP makes the client speak without TLS. Registries on a loopback address are spoken to so anyway
	// when they have no TLS.
	PlainHTTP bool
	// TokenHosts are servers, as host or host:port, that the credentials for this registry may be sent to when
	// it asks for a token of theirs. Its own host is one, and Docker Hub's and GitLab's are known.
	TokenHosts []string
	// RootCAs verify the host's certificate instead of the system's; nil for the system's.
	RootCAs *x509.CertPool
	// ClientCertificate is shown to the host when it asks for one; nil for none.
	ClientCertificate *tls.Certificate
}

func (h Host) ownTLS() bool { return h.RootCAs != nil || h.ClientCertificate != nil }

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
	options    Options
	arch       map[string]bool
	hosts      map[string]Host
	transports transports
	limits     limits
	mirrors    mirrorHealth
	// wantCertificate has the hosts that have asked for a client certificate where there is none: hostKey -> struct{}
	wantCertificate sync.Map

	mu       sync.Mutex
	sessions map[sessionKey]*session // guarded by mu
}

// limits are the bounds on time. Tests shorten them.
type limits struct {
	window  time.Duration // in which a body must make progress
	atLeast int64         // bytes of progress in a window
	backoff time.Duration // before the second attempt
	longest time.Duration // that Retry-After can make us wait
	total   time.Duration // for one call, however often it tries; for a blob, what its size takes comes on top
	slowest int64         // bytes per second that a blob may take on average
	helper  time.Duration // for a credential helper
	shun    time.Duration // for which a mirror that is down is not asked
}

// New makes a client. It makes no request.
func New(o Options) *Client {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Architectures == nil {
		o.Architectures = []string{"amd64", "arm64"}
	}
	if o.Settings == "" {
		o.Settings = "registries.toml"
	}
	if o.Notice == nil {
		o.Notice = func(string) {}
	}
	c := &Client{
		options: o,
		arch:    make(map[string]bool, len(o.Architectures)),
		hosts:   make(map[string]Host, len(o.Hosts)),
		limits: limits{
			window: 30 * time.Second, atLeast: 30 << 10, backoff: time.Second, longest: 5 * time.Minute,
			total: 15 * time.Minute, slowest: 64 << 10, helper: time.Minute, shun: time.Minute,
		},
		transports: transports{network: theInternet()},
		sessions:   map[sessionKey]*session{},
	}
	for _, a := range o.Architectures {
		c.arch[a] = true
	}
	for host, h := range o.Hosts {
		c.hosts[hostKey(host)] = h
	}
	return c
}

// Close ends idle connections.
func (c *Client) Close() { c.transports.close() }

// host gives the settings of a host, the zero ones when it has none.
func (c *Client) host(host string) Host { return c.hosts[hostKey(host)] }

// hostKey makes the ways to write a host one: case, TLS's own port, and Docker Hub's other names.
func hostKey(host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	if host == "docker.io" || host == "registry-1.docker.io" {
		return name.DefaultRegistry
	}
	return host
}

var errTooLong = errors.New("it took too long")

// bounded gives a context for one call, which ends when the call has taken far longer than it can deserve,
// whatever the registry does to keep it going.
func (c *Client) bounded(ctx context.Context, size int64) (context.Context, context.CancelFunc) {
	most := c.limits.total
	if c.limits.slowest > 0 {
		most += time.Duration(float64(size) / float64(c.limits.slowest) * float64(time.Second))
	}
	return context.WithTimeoutCause(ctx, most, errTooLong)
}
