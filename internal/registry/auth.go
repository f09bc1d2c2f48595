package registry

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

var (
	errSlowHelper = errors.New("the credential helper does not answer")
	errBadToken   = errors.New("its token server sent no token that could be read")
)

// authorizer adds the credentials to a registry's requests, in the way that the registry asks for. Nothing is
// sent to a registry that does not ask, and nothing to anybody else: a request that was redirected away stays
// without credentials even when it comes back.
type authorizer struct {
	inner    http.RoundTripper
	registry string // host:port

	busy      chan struct{} // holds one token; whoever takes it may change what follows
	auth      authn.Authenticator
	challenge *challenge // that is answered; nil when there was none
	insecure  bool       // the registry is spoken to in plain HTTP
	scopes    []string
	header    string // of Authorization, empty for none
}

func (a *authorizer) lock(ctx context.Context) error {
	select {
	case a.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authorizer) unlock() { <-a.busy }

// RoundTrip implements http.RoundTripper.
func (a *authorizer) RoundTrip(in *http.Request) (*http.Response, error) {
	if strayed(in, a.registry) {
		return a.inner.RoundTrip(in)
	}
	header, err := a.current(in.Context())
	if err != nil {
		return nil, err
	}
	res, err := a.send(in, header)
	if err != nil || res.StatusCode != http.StatusUnauthorized {
		return res, err
	}
	// The token has expired, is for something else, or this is the first time that the registry asks.
	renewed, err := a.renew(in.Context(), header, res)
	if err != nil {
		return nil, errors.Join(err, res.Body.Close())
	}
	if renewed == header {
		return res, nil
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxError) // so that the connection can be used again
	if err := res.Body.Close(); err != nil {
		return nil, err
	}
	return a.send(in, renewed)
}

func (a *authorizer) send(in *http.Request, header string) (*http.Response, error) {
	out := in.Clone(in.Context())
	if in.GetBody != nil {
		body, err := in.GetBody()
		if err != nil {
			return nil, err
		}
		out.Body = body
	}
	if header != "" {
		out.Header.Set("Authorization", header)
	}
	return a.inner.RoundTrip(out)
}

// strayed says whether a request, or one that it was redirected from, is for another host than the registry.
func strayed(req *http.Request, registry string) bool {
	for sameHost(req.URL, registry) {
		if req.Response == nil || req.Response.Request == nil {
			return false
		}
		req = req.Response.Request
	}
	return true
}

// current gives the header to send, with a token that is fetched when there is none yet.
func (a *authorizer) current(ctx context.Context) (string, error) {
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	if a.header == "" && a.challenge != nil {
		return a.header, a.answer(ctx)
	}
	return a.header, nil
}

// renew gives another header than the one that was refused, or the same when there is no other. Of many
// requests that are refused at once, one gets the new token for all.
func (a *authorizer) renew(ctx context.Context, refused string, res *http.Response) (string, error) {
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	if a.header != refused {
		return a.header, nil
	}
	asked := choose(parseChallenges(res.Header.Values(authenticate)), a.auth == authn.Anonymous)
	switch {
	case a.challenge == nil && asked == nil, a.challenge != nil && a.challenge.scheme == basic:
		return refused, nil
	case a.challenge == nil, asked != nil && asked.scheme == bearer && asked.params["realm"] == a.challenge.params["realm"]:
		a.challenge = asked // some name the service only when they know the repository
	}
	if asked != nil && asked.params["scope"] != "" && !slices.Contains(a.scopes, asked.params["scope"]) {
		if len(a.scopes) >= maxScopes {
			return refused, nil
		}
		// In front: some token servers look at the first one only.
		a.scopes = append([]string{asked.params["scope"]}, a.scopes...)
	}
	return a.header, a.answer(ctx)
}

const maxScopes = 8

// answer sets the header that the challenge asks for. The caller has the lock.
func (a *authorizer) answer(ctx context.Context) error {
	config, err := authn.Authorization(ctx, a.auth)
	if err != nil {
		return err
	}
	switch {
	case config.RegistryToken != "":
		a.header = "Bearer " + config.RegistryToken
	case a.challenge.scheme == bearer:
		return a.fetchToken(ctx, config.IdentityToken != "")
	case config.Username != "" && config.Password != "":
		a.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(config.Username+":"+config.Password))
	case config.Auth != "":
		a.header = "Basic " + config.Auth
	}
	return nil
}

// fetchToken asks the token server: by GET with the password, or by OAuth2's POST with an identity token, as
// docker does. That it is a server which may be asked was decided when the challenge came, and is decided
// again by the guard for each request.
func (a *authorizer) fetchToken(ctx context.Context, identity bool) error {
	realm, err := url.Parse(a.challenge.params["realm"])
	if err != nil || realm.Host == "" {
		return &Error{Kind: ErrWrongContent, Registry: a.registry, Message: "it wants a token and does not say from where"}
	}
	// The library compares the realm with the registry, and would refuse private addresses that were allowed.
	server, err := name.NewRegistry(realm.Host)
	if err != nil {
		return &Error{Kind: ErrForbidden, Registry: a.registry, Message: fmt.Sprintf("it names a token server that is no host: %q", printable(realm.Host))}
	}
	token, err := transport.Exchange(ctx, server, a.auth, a.inner, a.scopes, &transport.Challenge{
		Scheme: bearer, Parameters: a.challenge.params, Insecure: a.insecure,
	})
	if err != nil {
		if errors.As(err, new(*transport.Error)) || errors.As(err, new(*url.Error)) || errors.As(err, new(*Error)) || ctx.Err() != nil {
			return err
		}
		return &Error{ // without what was sent: there may be half of a token in it
			Kind: ErrWrongContent, Registry: a.registry, Message: errBadToken.Error(), Hint: "look at the log of " + printable(realm.Host),
		}
	}
	if token.RefreshToken != "" && identity {
		a.auth = authn.FromConfig(authn.AuthConfig{IdentityToken: token.RefreshToken})
	}
	if token.AccessToken != "" {
		token.Token = token.AccessToken
	}
	a.header = "Bearer " + token.Token
	return nil
}

// greet asks the registry how it wants to be authenticated to. On a loopback address it also finds out whether
// the registry has TLS; elsewhere that is never tried out, because whoever is on the way could answer for it.
func (c *Client) greet(ctx context.Context, registry name.Registry, a *authorizer) (scheme string, err error) {
	host := c.host(registry.RegistryStr())
	if host.PlainHTTP {
		a.insecure = true
		return "http", c.greetBy(ctx, "http", registry, a)
	}
	secureErr := c.greetBy(ctx, "https", registry, a)
	if secureErr == nil || host.ownTLS() || !isLoopback(hostname(registry.RegistryStr())) || !mayBeNoTLS(secureErr) || ctx.Err() != nil {
		return "https", secureErr
	}
	a.insecure = true
	err = c.greetBy(ctx, "http", registry, a)
	if err == nil || errors.As(err, new(*transport.Error)) || errors.As(err, new(*Error)) {
		return "http", err
	}
	return "http", errors.Join(secureErr, err)
}

// mayBeNoTLS says whether a server that TLS failed with may be one of plain HTTP.
func mayBeNoTLS(err error) bool {
	if errors.As(err, new(*transport.Error)) || errors.As(err, new(*Error)) || errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	return !isTLS(err) || errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, new(tls.RecordHeaderError))
}

func (c *Client) greetBy(ctx context.Context, scheme string, registry name.Registry, a *authorizer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+registry.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	res, err := (&http.Client{Transport: a.inner, CheckRedirect: limitRedirects}).Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	switch res.StatusCode {
	case http.StatusUnauthorized:
		a.challenge = choose(parseChallenges(res.Header.Values(authenticate)), a.auth == authn.Anonymous)
	case http.StatusOK, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		// Nothing is asked for, or this path is not answered; the requests that follow will tell.
	default:
		return checkStatus(res, http.StatusOK)
	}
	_, _ = io.CopyN(io.Discard, res.Body, maxError) // so that the connection can be used again
	return nil
}
