package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// defaultServer is where a server listens when nothing else is said.
const defaultServer = "http://127.0.0.1:7400"

// target is which server to call, as whom, and in which environment.
type target struct {
	server, token, environment string
	ca                         string // a fingerprint or a file, by which the server is known; "" for what the system trusts
}

// target works out where to: flags, then the process environment, then the current context.
func (c *cli) target() (target, error) {
	current, err := c.currentContext()
	if err != nil {
		return target{}, err
	}
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	t := target{
		server:      first(c.server, c.getenv("PINNACE_SERVER"), current.Server, defaultServer),
		token:       first(c.token, c.getenv("PINNACE_TOKEN")),
		environment: first(c.environment, c.getenv("PINNACE_ENV"), current.Environment),
		ca:          c.getenv("PINNACE_CA"),
	}
	if file := c.getenv("PINNACE_TOKEN_FILE"); t.token == "" && file != "" {
		if t.token, err = readToken(file); err != nil {
			return target{}, fail(exitInvalid, "", "PINNACE_TOKEN_FILE: %w", err)
		}
	}
	t.token = first(t.token, current.Token)
	// Who made the token knows the server better than who wrote down where it is.
	secret, pin, err := identity.ParseSecret(t.token)
	if err == nil {
		t.token = secret.Text()
	}
	if t.ca == "" && !pin.IsZero() {
		t.ca = pin.String()
	}
	if t.ca == "" && t.server == current.Server {
		t.ca = current.CA
	}
	return t, nil
}

// secure is how to know the server at u.
func (t *target) secure(u *url.URL) (*tls.Config, error) {
	if u.Scheme != "https" || t.ca == "" {
		return nil, nil //nolint:nilnil // What the system trusts takes no configuration.
	}
	if pin, err := identity.ParseFingerprint(t.ca); err == nil {
		return identity.Pin(pin), nil
	}
	text, err := os.ReadFile(t.ca)
	if err != nil {
		return nil, fail(exitInvalid, "it is sha256: and 64 hexadecimal digits, or a file (PEM)", "read the authority of the server: %w", err)
	}
	config, err := identity.Trust(text, u.Hostname())
	if err != nil {
		return nil, fail(exitInvalid, "", "the authority of the server: %s: %w", t.ca, err)
	}
	return config, nil
}

// client connects to the server and returns the environment that the command is about, which may be "".
func (c *cli) client() (pinnacev1connect.ControlServiceClient, string, error) {
	return c.clientOver(httpClient())
}

func (c *cli) clientOver(over *http.Client) (pinnacev1connect.ControlServiceClient, string, error) {
	t, err := c.target()
	if err != nil {
		return nil, "", err
	}
	u, err := url.Parse(t.server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, "", fail(exitInvalid, "it looks like "+defaultServer, "%q is not the URL of a server", t.server)
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return nil, "", fail(exitInvalid, "use https://, or an SSH tunnel to the server's loopback address",
			"%s would carry the token in the clear", t.server)
	}
	secure, err := t.secure(u)
	if err != nil {
		return nil, "", err
	}
	beside := httpClient()
	for _, client := range []*http.Client{over, beside} {
		if transport, ok := client.Transport.(*http.Transport); ok {
			transport.TLSClientConfig = secure
		}
	}
	with := connect.WithInterceptors(bearer(t.token), explainUnreachable(t.server))
	heads := &headCheck{cli: c, server: t.server, client: pinnacev1connect.NewControlServiceClient(beside, t.server, with)}
	return pinnacev1connect.NewControlServiceClient(over, t.server, connect.WithInterceptors(followPages(), heads), with), t.environment, nil
}

// clientIn is client for commands that need an environment.
func (c *cli) clientIn() (pinnacev1connect.ControlServiceClient, string, error) {
	client, env, err := c.client()
	if err == nil && env == "" {
		err = errNoEnvironment()
	}
	return client, env, err
}

func errNoEnvironment() error {
	return fail(exitInvalid, "name one with -e; pinnace env list shows them", "no environment is chosen")
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// httpClient is a client without a total timeout, because streams have no end, but with one for
// connecting and for the first byte of an answer's header.
func httpClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	transport.Proxy = nil // The server is loopback or the user's own; a proxy of the environment has no business there.
	return &http.Client{Transport: transport}
}

// streamHTTPClient is httpClient for calls in which both sides speak at the same time: they need HTTP/2.
func streamHTTPClient() *http.Client {
	client := httpClient()
	transport := client.Transport.(*http.Transport)
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP2(true)
	transport.Protocols.SetUnencryptedHTTP2(true)
	transport.HTTP2 = lively(&http.HTTP2Config{})
	return client
}

// lively has a connection on which nothing comes be asked for a sign of life, so that one whose other end is gone is
// found out.
func lively(c *http.HTTP2Config) *http.HTTP2Config {
	c.SendPingTimeout, c.PingTimeout = 15*time.Second, 15*time.Second
	return c
}

// bearer sends the token with every call.
func bearer(token string) connect.Interceptor {
	return &headerInterceptor{set: func(h http.Header) {
		if token != "" {
			h.Set("Authorization", "Bearer "+token)
		}
	}}
}

type headerInterceptor struct{ set func(http.Header) }

func (i *headerInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		i.set(req.Header())
		return next(ctx, req)
	}
}

func (i *headerInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		i.set(conn.RequestHeader())
		return conn
	}
}

func (i *headerInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// explainUnreachable names the server in the error of a call that did not reach it.
func explainUnreachable(server string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			res, err := next(ctx, req)
			if errors.Is(err, syscall.ECONNREFUSED) {
				return nil, unreachable(server)
			}
			if err != nil {
				err = explainTLS(server, err)
			}
			return res, err
		}
	}
}

// explainTLS says of a connection that failed for its certificate or for the lack of one what can be done.
func explainTLS(server string, err error) error {
	unknown, plain := (*tls.CertificateVerificationError)(nil), tls.RecordHeaderError{}
	switch {
	case errors.Is(err, identity.ErrOtherAuthority):
		return fail(exitDenied, "do nothing with it until it is known why. Where its authority was changed on purpose: pinnace context add, with a new token",
			"%s is not the server that is known: %w", server, err)
	case errors.As(err, &unknown):
		return fail(exitDenied, "use a token that has its fingerprint (behind a dot), or PINNACE_CA with the fingerprint or file of its authority",
			"nothing says that %s is the right server: %w", server, err)
	case errors.As(err, &plain):
		return fail(exitInvalid, "use http:// on loopback, or have the server use TLS there (--tls)", "%s does not speak TLS", server)
	}
	return err
}

func unreachable(server string) error {
	return fail(exitUnreachable, "start one here with: pinnace dev", "no server listens at %s", server)
}
