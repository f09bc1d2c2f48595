package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

const maxRedirects = 3

var errPlainHTTP = errors.New("plain HTTP is not allowed for it")

// knownTokenHosts are token servers that live beside their registry and not on it.
var knownTokenHosts = map[string]string{
	"index.docker.io":     "auth.docker.io",
	"registry.gitlab.com": "gitlab.com",
}

// guard is the innermost transport of a session: every request of the layers above, their redirects and
// token exchanges included, goes through it. It is what keeps a hostile registry from collecting
// credentials and from sending this machine to places of its choice.
type guard struct {
	client   *Client
	registry string      // host:port
	near     atomic.Bool // the registry is on a private network, so what it redirects to may be, too
	here     atomic.Bool // the registry is on this machine
}

func newGuard(c *Client, registry name.Registry) *guard {
	return &guard{client: c, registry: registry.RegistryStr()}
}

// blobKey marks the context of requests for blobs, which alone may be redirected and be large.
type blobKey struct{}

func isBlob(req *http.Request) bool { return req.Context().Value(blobKey{}) != nil }

// askedToWait carries the Retry-After of an answer to whoever tries again. It is a pointer in the context
// because the layers between turn answers into errors that have no headers.
type askedToWait struct{}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.allow(req); err != nil {
		return nil, err
	}
	home := sameHost(req.URL, g.registry)
	ctx, cancel := context.WithCancelCause(req.Context())
	if home {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: g.remember})
	}
	host := hostKey(req.URL.Host)
	ctx = context.WithValue(ctx, onCertificateRequest{}, func() { g.client.wantCertificate.Store(host, struct{}{}) })
	out := req.Clone(ctx)
	if !home && !g.isTokenServer(req.URL) {
		// The standard client strips these only when the host name differs, not when the port does.
		for _, h := range []string{"Authorization", "Cookie", "Referer"} {
			out.Header.Del(h)
		}
	}
	res, err := g.client.transports.get(req.URL.Host, g.client.host(req.URL.Host), g.reach(req.URL)).RoundTrip(out)
	if err != nil {
		cancel(nil)
		if _, asked := g.client.wantCertificate.Load(host); asked && isHungUp(err) && !isTLS(err) {
			err = fmt.Errorf("%w: %w", errNoCertificate, err)
		}
		return nil, err
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		// The body of such an answer is the connection, which no context ends.
		cancel(nil)
		return nil, errors.Join(&Error{Kind: ErrWrongContent, Registry: g.registry, Message: "it switches to another protocol that nobody asked for"}, res.Body.Close())
	}
	if err := cmp.Or(g.checkRedirect(req, res), g.checkChallenge(res, home, req.URL.Scheme)); err != nil {
		cancel(nil)
		return nil, errors.Join(err, res.Body.Close())
	}
	if wait, ok := req.Context().Value(askedToWait{}).(*time.Duration); ok && res.StatusCode >= 400 {
		if d, ok := parseRetryAfter(res.Header.Get("Retry-After")); ok {
			*wait = d
		}
	}
	most := int64(maxDocument)
	if isBlob(req) && !g.isTokenServer(req.URL) && (res.StatusCode == http.StatusOK || res.StatusCode == http.StatusPartialContent) {
		most = -1 // Blob bounds it by the size that the manifest declares
	}
	res.Body = newBody(res.Body, g.client.limits, most, cancel)
	return res, nil
}

// reach says what addresses a host may have. The registry and what was allowed by name may be anywhere; where
// they send us may be no nearer to this machine than the registry is.
func (g *guard) reach(u *url.URL) reach {
	switch {
	case sameHost(u, g.registry), hasHost(g.client.host(g.registry).TokenHosts, u), g.here.Load():
		return reachHere
	case g.near.Load():
		return reachPrivate
	}
	return reachPublic
}

// allow says whether a request may be made at all.
func (g *guard) allow(req *http.Request) error {
	u := req.URL
	if req.Host != "" && !strings.EqualFold(req.Host, u.Host) {
		return g.forbidden("a request for %s was to be sent to %s", req.Host, u.Host)
	}
	if u.User != nil {
		return g.forbidden("it leads to %s with a user name in the URL", u.Host)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !g.client.mayBePlain(u.Host)) {
		if req.Response == nil {
			return fmt.Errorf("%s: %w", u.Host, errPlainHTTP)
		}
		return g.forbidden("it redirects to %s, which is not https", location(u))
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil && neverDialled(addr) {
		return g.forbidden("it leads to %s, an address that registries have no business with", u.Host)
	}
	if req.Response == nil {
		if sameHost(u, g.registry) || g.isTokenServer(u) {
			return nil
		}
		return g.forbidden("credentials were to be sent to %s", u.Host)
	}
	if req.Response.Request.URL.Scheme == "https" && u.Scheme != "https" {
		return g.forbidden("it redirects from https to %s", location(u))
	}
	return nil
}

// checkRedirect refuses redirects of anything but blobs: of manifests, because what a tag means is for the
// registry that was named to say, and of token requests, because they carry the password.
func (g *guard) checkRedirect(req *http.Request, res *http.Response) error {
	to, err := res.Location()
	if err != nil || res.StatusCode < 300 || res.StatusCode > 399 {
		return nil
	}
	if isBlob(req) && strings.Contains(origin(req).URL.Path, "/blobs/") {
		return nil
	}
	e := g.forbidden("it redirects to %s; only requests for blobs may be redirected", location(to))
	e.Hint = "name the registry that it redirects to in the reference: " + printable(to.Host)
	return e
}

// checkChallenge refuses to be sent to a token server that the registry's credentials are not for. Other
// hosts get no credentials whatever they ask for.
func (g *guard) checkChallenge(res *http.Response, home bool, scheme string) error {
	if !home {
		res.Header.Del(authenticate)
		return nil
	}
	for _, value := range res.Header.Values(authenticate) {
		for _, realm := range realms(value) {
			u, err := url.Parse(realm)
			if err != nil || u.Host == "" || u.User != nil {
				return g.forbidden("it names a token server that is no URL: %q", printable(realm))
			}
			if u.Scheme != "https" && u.Scheme != scheme {
				return g.forbidden("it wants credentials to be sent to %s, which is not https", location(u))
			}
			if !sameHost(u, g.registry) && !g.isTokenServer(u) {
				e := g.forbidden("it wants credentials to be sent to %s, which is not known to belong to it", printable(u.Host))
				e.Hint = fmt.Sprintf("if %s really is the token server of %s: %s",
					printable(u.Host), g.registry, g.client.setting(g.registry, fmt.Sprintf("token_hosts = [%q]", printable(u.Host))))
				return e
			}
		}
	}
	return nil
}

// setting says where in the configuration something is set, as part of a hint.
func (c *Client) setting(host, line string) string {
	return fmt.Sprintf("set %s under [registries.%q] in %s", line, host, c.options.Settings)
}

// realms returns everything that a reader of the header could take for the realm of a Bearer challenge. It
// finds rather too many than too few: each has to be an allowed token server. A header of only Basic
// challenges has none; their realm is a text to show.
func realms(header string) []string {
	lower := lowerASCII(header)
	if !strings.Contains(lower, bearer) {
		return nil
	}
	var found []string
	for _, c := range parseChallenges([]string{header}) {
		if realm, ok := c.params["realm"]; ok && c.scheme == bearer && realm != "" {
			found = append(found, realm)
		}
	}
	for at := 0; ; {
		i := strings.Index(lower[at:], "realm")
		if i < 0 {
			return found
		}
		at += i + len("realm")
		value, ok := strings.CutPrefix(strings.TrimLeft(header[at:], " \t"), "=")
		if !ok {
			continue
		}
		value = strings.TrimLeft(value, " \t")
		if quoted, ok := strings.CutPrefix(value, `"`); ok {
			value, _, _ = strings.Cut(quoted, `"`)
		} else if end := strings.IndexAny(value, ", \t"); end >= 0 {
			value = value[:end]
		}
		if value != "" && !slices.Contains(found, value) {
			found = append(found, value)
		}
	}
}

// lowerASCII keeps the length, which strings.ToLower does not for every letter there is.
func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func (g *guard) isTokenServer(u *url.URL) bool {
	known := knownTokenHosts[hostKey(g.registry)]
	return known != "" && sameHost(u, known) || hasHost(g.client.host(g.registry).TokenHosts, u)
}

func hasHost(hosts []string, u *url.URL) bool {
	return slices.ContainsFunc(hosts, func(host string) bool { return sameHost(u, host) })
}

// remember notes how near to this machine the registry is. It is called when a connection is good to use:
// with TLS, that is after the registry has proved its name.
func (g *guard) remember(info httptrace.GotConnInfo) {
	a, ok := info.Conn.RemoteAddr().(*net.TCPAddr) // of a proxy it is something else
	if !ok {
		return
	}
	switch reachOf(a.AddrPort().Addr()) {
	case reachHere:
		g.here.Store(true)
	case reachPrivate:
		g.near.Store(true)
	case reachPublic:
	}
}

func (g *guard) forbidden(format string, args ...any) *Error {
	return &Error{Kind: ErrForbidden, Registry: g.registry, Message: fmt.Sprintf(format, args...)}
}

// limitRedirects counts; what may be redirected where is the guard's business.
func limitRedirects(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects {
		return &Error{Kind: ErrForbidden, Registry: via[0].URL.Host, Message: fmt.Sprintf("it redirects more than %d times", maxRedirects)}
	}
	return nil
}

// origin is the request that a chain of redirects began with.
func origin(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req
}

// location is a URL without the query, in which storage services carry a signature.
func location(u *url.URL) string { return printable(u.Scheme + "://" + u.Host + u.EscapedPath()) }

// sameHost compares host and port, with the port that the scheme implies.
func sameHost(u *url.URL, host string) bool {
	other := &url.URL{Scheme: u.Scheme, Host: host}
	return strings.EqualFold(u.Hostname(), other.Hostname()) && port(u) == port(other)
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
