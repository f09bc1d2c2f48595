package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/pinnacehq/pinnace/internal/agent"
	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// admitRetry is how soon an agent asks again to be admitted while the server is away.
const admitRetry = 2 * time.Second

// identityDir is where the agent keeps who its host is.
func (r *agentRole) identityDir() string { return filepath.Join(r.dirs.data, "agent", "identity") }

// connect makes this host one that the server knows, and connects to the server as it.
func (r *agentRole) connect(ctx context.Context, host string) (*identity.Member, pinnacev1connect.AgentServiceClient, error) {
	m, err := identity.OpenMember(r.identityDir())
	if err != nil {
		return nil, nil, fail(exitInvalid, "", "%w", err)
	}
	client, err := r.clientOver(&memberTransport{member: m})
	if err != nil {
		return nil, nil, err
	}
	is, admitted := m.Host()
	if admitted && is.ID != host {
		if r.join == nil {
			return nil, nil, fail(exitConflict, "--host-id "+is.ID, "this agent was admitted as host %s, not %s; one directory has one host", is.ID, host)
		}
		admitted = false
	}
	if admitted {
		// Whether the server still knows it shows now, while there is somebody to tell.
		switch err := agent.Renew(ctx, m, client); {
		case err == nil:
			return m, client, nil
		case connect.CodeOf(err) != connect.CodeUnauthenticated:
			r.log.Warn("cannot renew the certificate of this host yet", "ends", m.EndsAt(), "err", err)
			return m, client, nil
		case r.join == nil:
			return nil, nil, fail(exitDenied, "ask for a join token (pinnace host join-token "+host+"), and give it with --token-file", "the server does not admit host %s: %w", host, err)
		}
	}
	if r.join == nil {
		return nil, nil, fail(exitInvalid, "ask for a join token (pinnace host join-token), and give it with --token-file or PINNACE_JOIN_TOKEN",
			"this host has not joined yet")
	}
	return m, client, r.admit(ctx, m, host)
}

// admit uses a join token.
func (r *agentRole) admit(ctx context.Context, m *identity.Member, host string) error {
	text, err := r.join(ctx)
	if err != nil {
		return err
	}
	secret, pin, err := identity.ParseSecret(text)
	if err != nil || pin.IsZero() {
		return fail(exitInvalid, "pinnace host join-token prints one", "the join token is none: it was cut off, or is for something else")
	}
	request, err := m.Request()
	if err != nil {
		return err
	}
	server, err := r.clientOver(agentTransport(identity.Pin(pin)))
	if err != nil {
		return err
	}
	for {
		res, err := server.Admit(ctx, connect.NewRequest(&pinnacev1.AdmitRequest{Token: secret.Text(), Host: host, Request: request}))
		if err == nil {
			r.log.Info("joined as a new host", "host", host)
			return m.Admitted(res.Msg.Certificate, res.Msg.Authority, pin)
		}
		if errors.Is(err, identity.ErrOtherAuthority) {
			return fail(exitDenied, "is the address right, and the token from this server?", "%s is not the server that the join token is from: %w", strings.Join(r.servers, ", "), err)
		}
		if connect.CodeOf(err) != connect.CodeUnavailable {
			return fail(exitDenied, "", "join as host %s: %w", host, err)
		}
		r.log.Warn("cannot join yet", "servers", r.servers, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(admitRetry):
		}
	}
}

// memberTransport speaks for a host. After its certificate was renewed new connections are made: one has the certificate
// that it was begun with.
type memberTransport struct {
	member *identity.Member

	mu   sync.Mutex
	next *http.Transport // guarded by mu
	ends time.Time       // guarded by mu; of the certificate that next has
}

// RoundTrip implements http.RoundTripper.
func (t *memberTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	t.mu.Lock()
	if ends := t.member.EndsAt(); t.next == nil || !t.ends.Equal(ends) {
		if t.next != nil {
			t.next.CloseIdleConnections()
		}
		t.next, t.ends = agentTransport(t.member.TLS()), ends
	}
	next := t.next
	t.mu.Unlock()
	return next.RoundTrip(r)
}

// CloseIdleConnections makes http.Client's method of the same name work.
func (t *memberTransport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.next != nil {
		t.next.CloseIdleConnections()
	}
}

// clientOver makes a client of the servers that the agent may belong to.
func (r *agentRole) clientOver(transport http.RoundTripper) (pinnacev1connect.AgentServiceClient, error) {
	all, err := checkServers(r.servers)
	if err != nil {
		return nil, err
	}
	for _, u := range all {
		if u.Scheme != "https" {
			return nil, fail(exitInvalid, "https://"+u.Host, "--agent-server %s: servers take agents over TLS only", u)
		}
	}
	over := &http.Client{Transport: &servers{next: transport, log: r.log, all: all}}
	return pinnacev1connect.NewAgentServiceClient(over, all[0].String()), nil
}

// agentTransport speaks HTTP/2: over HTTP/1 a server cannot end a stream of logs that the agent is sending.
func agentTransport(secure *tls.Config) *http.Transport {
	transport := &http.Transport{
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, Protocols: new(http.Protocols), TLSClientConfig: secure,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 2 * time.Minute,
	}
	transport.Protocols.SetHTTP2(true)
	// A connection that leads nowhere any more must not last for as long as the server waits for a host.
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 3 * time.Second, PingTimeout: 5 * time.Second}
	return transport
}
