package registry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

type sessionKey struct {
	repository string
	push       bool
}

// session is the conversation with one repository: what credentials it takes and how.
type session struct {
	busy       chan struct{} // holds one token; whoever takes it may set up
	client     *http.Client  // nil until set up; guarded by busy
	scheme     string        // https, or http where that is allowed; guarded by busy
	credential string        // what was tried, for error messages; guarded by busy
}

// session returns the set-up session of a repository. Whoever comes first does the handshake: it finds the
// credentials, and asks the registry how it wants to be authenticated to.
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
	auth, err := c.credentials(ctx, repo)
	if err != nil {
		return nil, err
	}
	s.credential = describe(ctx, auth)
	a := &authorizer{
		inner: transport.NewUserAgent(newGuard(c, repo.Registry), c.options.UserAgent), registry: repo.RegistryStr(),
		auth: auth, scopes: []string{repo.Scope(scope)}, busy: make(chan struct{}, 1),
	}
	if s.scheme, err = c.greet(ctx, repo.Registry, a); err != nil {
		return s, err
	}
	s.client = &http.Client{Transport: a, CheckRedirect: limitRedirects}
	return s, nil
}

// forget drops a session whose credentials were refused, so that the next attempt reads them again.
func (c *Client) forget(repo name.Repository, push bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, sessionKey{repo.Name(), push})
}

// credentials asks the keychain. A credential helper is a program of somebody else's that may wait for a
// person, and the docker library cannot end it: when it takes too long it is left to itself.
func (c *Client) credentials(ctx context.Context, repo name.Repository) (authn.Authenticator, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.limits.helper, errSlowHelper)
	defer cancel()
	type found struct {
		auth authn.Authenticator
		err  error
	}
	answer := make(chan found, 1)
	go func() {
		auth, err := authn.Resolve(ctx, c.options.Keychain, repo)
		answer <- found{auth, err}
	}()
	var f found
	select {
	case f = <-answer:
	case <-ctx.Done():
		if f.err = context.Cause(ctx); f.err != errSlowHelper { //nolint:errorlint // it is this very value, set above
			return nil, f.err
		}
		f.err = fmt.Errorf("%w in %v", errSlowHelper, c.limits.helper)
	}
	if f.err != nil {
		return nil, &Error{
			Kind: ErrUnauthorized, Registry: repo.RegistryStr(), Err: f.err,
			Message: "the docker configuration has credentials for this registry that cannot be read",
			Hint:    "check ~/.docker/config.json and the credential helper that it names, or run docker login " + repo.RegistryStr(),
		}
	}
	return f.auth, nil
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
