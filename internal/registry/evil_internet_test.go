package registry

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// internet is a network of the test's own: names, addresses and certificates for all of them. Every
// connection ends at one recorder, which knows where it was meant to go.
type internet struct {
	names         map[string]string // DNS
	plain, secure net.Listener
	authority     *x509.Certificate
	key           *ecdsa.PrivateKey

	mu      sync.Mutex
	goals   map[string]goal             // by the client's address; guarded by mu
	certs   map[string]*tls.Certificate // by name; guarded by mu
	visits  []visit                     // guarded by mu
	refused []netip.Addr                // that the client had something against; guarded by mu
	handler http.HandlerFunc            // guarded by mu
}

// goal is where a connection was meant to go.
type goal struct {
	host, port string
	addr       netip.Addr
}

// visit is a request as it came.
type visit struct {
	goal
	header      http.Header
	uri         string
	body        string
	certificate bool // the client showed one
}

func newInternet(t *testing.T, names map[string]string) *internet {
	t.Helper()
	n := &internet{names: names, goals: map[string]goal{}, certs: map[string]*tls.Certificate{}}
	var err error
	if n.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "everybody's authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, n.key.Public(), n.key)
	if err != nil {
		t.Fatal(err)
	}
	if n.authority, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	for _, l := range []*net.Listener{&n.plain, &n.secure} {
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	server := &http.Server{Handler: n, ErrorLog: quiet, ReadHeaderTimeout: time.Minute}
	config := &tls.Config{ClientAuth: tls.RequestClientCert, GetCertificate: n.certificate, NextProtos: []string{"h2", "http/1.1"}}
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(n.plain) })
	running.Go(func() { _ = server.Serve(tls.NewListener(n.secure, config)) })
	t.Cleanup(func() {
		_ = server.Close()
		running.Wait()
	})
	return n
}

// certificate makes one for whatever host the connection was meant for.
func (n *internet) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	host := strings.ToLower(n.goals[hello.Conn.RemoteAddr().String()].host)
	if c := n.certs[host]; c != nil {
		return c, nil
	}
	c, err := n.issue(host)
	if err == nil {
		n.certs[host] = c
	}
	return c, err
}

func (n *internet) issue(host string) (*tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(len(n.certs)) + 2), Subject: pkix.Name{CommonName: host}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, n.authority, n.key.Public(), n.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: n.key}, err
}

// lookUp is DNS, and what resolvers make of addresses that are written in odd ways.
func (n *internet) lookUp(host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a, nil
	}
	if s, ok := n.names[strings.ToLower(host)]; ok {
		return netip.ParseAddr(s)
	}
	return netip.Addr{}, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// over makes a client live in this internet.
func (n *internet) over(c *Client) *Client {
	roots := x509.NewCertPool()
	roots.AddCert(n.authority)
	c.transports.network = network{
		header: 10 * time.Second, roots: roots,
		proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
		connect: func(ctx context.Context, network, address string, check func(netip.Addr) error) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			a, err := n.lookUp(host)
			if err != nil {
				return nil, &net.OpError{Op: "dial", Net: network, Err: err}
			}
			if err := check(a); err != nil {
				n.mu.Lock()
				n.refused = append(n.refused, a)
				n.mu.Unlock()
				return nil, &net.OpError{Op: "dial", Net: network, Err: err}
			}
			to := n.secure
			if port == "80" {
				to = n.plain
			}
			// The goal has to be known before the first byte: the lock is held until it is.
			n.mu.Lock()
			defer n.mu.Unlock()
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to.Addr().String())
			if err != nil {
				return nil, err
			}
			n.goals[conn.LocalAddr().String()] = goal{host, port, a}
			return placedConn{conn, &net.TCPAddr{IP: a.Unmap().AsSlice(), Port: 443}}, nil
		},
	}
	return c
}

// placedConn has the address that it would have.
type placedConn struct {
	net.Conn
	remote net.Addr
}

func (c placedConn) RemoteAddr() net.Addr { return c.remote }

// begin forgets what was, and answers by h from now on.
func (n *internet) begin(h http.HandlerFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.visits, n.refused, n.handler = nil, nil, h
}

func (n *internet) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	req.Body = io.NopCloser(bytes.NewReader(body))
	n.mu.Lock()
	v := visit{goal: n.goals[req.RemoteAddr], header: req.Header.Clone(), uri: req.RequestURI, body: string(body)}
	v.certificate = req.TLS != nil && len(req.TLS.PeerCertificates) > 0
	n.visits = append(n.visits, v)
	h := n.handler
	n.mu.Unlock()
	h(w, req)
}

// Canaries are the secrets of the tests.
const (
	canaryPassword = "PASSWORD-CANARY"
	canaryIdentity = "IDENTITY-CANARY"
	canaryFixed    = "FIXEDTOKEN-CANARY"
	canaryIssued   = "ISSUEDTOKEN-CANARY"
)

// secrets are the canaries that a request has in it, however they are written, and a client certificate.
func (v visit) secrets() []string {
	var all strings.Builder
	for key, values := range v.header {
		for _, value := range values {
			all.WriteString(key + ": " + value + "\n")
			for word := range strings.FieldsSeq(value) {
				if b, err := base64.StdEncoding.DecodeString(word); err == nil {
					all.Write(b)
				}
			}
		}
	}
	for _, text := range []string{v.uri, v.body} {
		all.WriteString(text)
		if s, err := url.QueryUnescape(text); err == nil {
			all.WriteString(s)
		}
	}
	var found []string
	for _, canary := range []string{canaryPassword, canaryIdentity, canaryFixed, canaryIssued} {
		if strings.Contains(all.String(), canary) {
			found = append(found, canary)
		}
	}
	if v.header.Get("Authorization") != "" && len(found) == 0 {
		found = append(found, "Authorization: "+v.header.Get("Authorization"))
	}
	if v.certificate {
		found = append(found, "a client certificate")
	}
	return found
}

// judge fails the test when a secret was seen anywhere but at the hosts that it is for, or an address was
// connected to that is none of a registry's business.
func (n *internet) judge(t *testing.T, trusted ...string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range n.visits {
		at := net.JoinHostPort(v.host, v.port)
		if found := v.secrets(); len(found) > 0 && !slices.Contains(trusted, at) {
			t.Errorf("LEAK: %s got %v with %s", at, found, v.uri)
		}
		if neverDialled(v.addr) {
			t.Errorf("%s was asked for %s", v.addr, v.uri)
		}
		if reachOf(v.addr) != reachPublic {
			t.Errorf("a registry far away led to %s (%s), which was asked for %s", at, v.addr, v.uri)
		}
	}
}

// mustBeClear fails the test when an error is not one that a person can use.
func mustBeClear(t *testing.T, err error) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	switch text := err.Error(); {
	case !ok || e.Kind == nil:
		t.Errorf("an error of no kind: %v", err)
	case len(text) > 900 || strings.ContainsAny(text, "\n\r\x1b"):
		t.Errorf("not fit for a terminal: %q", text)
	case strings.Contains(text, "CANARY") || strings.Contains(e.Hint, "CANARY"):
		t.Errorf("the error shows a secret: %v", err)
	case strings.Contains(text, "SIGNATURE"):
		t.Errorf("the error shows a signature: %v", err)
	}
}

// withinTime runs f and fails the test when that takes too long.
func withinTime(t *testing.T, most time.Duration, f func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	err := f(ctx)
	if ctx.Err() != nil {
		t.Errorf("it hung: %v", err)
	}
	return err
}

func headerOf(scheme, realm string) string {
	return fmt.Sprintf(`%s realm=%q,service="evil"`, scheme, realm)
}
