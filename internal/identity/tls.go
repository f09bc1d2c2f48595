package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// serverName is in the certificate of every server. Those who know the authority ask for that name, wherever the server
// is: nobody but a server has it from this authority, so an address says nothing more.
const serverName = "server.pinnace.internal"

// ServerTLS is the configuration of a server whose certificate the authority signs, for these names and addresses as
// well. Each certificate is good for 90 days and replaced after 30. Clients may have certificates, which the handler has to
// verify: only there it is known whose may have expired.
func (a *Authority) ServerTLS(names []string, now func() time.Time) *tls.Config {
	s := &serverCertificate{authority: a, names: names, now: now}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.get() },
	}
}

type serverCertificate struct {
	authority *Authority
	names     []string
	now       func() time.Time

	mu    sync.Mutex
	cert  *tls.Certificate // guarded by mu
	until time.Time        // guarded by mu; when it is replaced
}

func (s *serverCertificate) get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	// Also when the clock went back to before it was good.
	if s.cert != nil && now.Before(s.until) && now.After(s.cert.Leaf.NotBefore) {
		return s.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := s.authority.signServer(key.Public(), s.names, now)
	if err != nil {
		return nil, fmt.Errorf("sign the server's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// With the authority's own, by which a caller who knows the fingerprint finds it.
	s.cert = &tls.Certificate{Certificate: [][]byte{der, s.authority.cert.Raw}, PrivateKey: key, Leaf: leaf}
	s.until = now.Add(serverValidity / 3)
	return s.cert, nil
}

// ErrOtherAuthority means that a server is not the one that somebody knows, or has a new authority.
var ErrOtherAuthority = errors.New("the server's certificate is not of the authority that is known of it")

// Pin is the configuration of a client that knows the server's authority by its fingerprint.
func Pin(f Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: serverName,
		// What this leaves out, VerifyConnection does: it is called for resumed connections, too.
		InsecureSkipVerify: true, //nolint:gosec // See the line above.
		VerifyConnection: func(c tls.ConnectionState) error {
			for _, cert := range c.PeerCertificates {
				if FingerprintOf(cert.Raw) == f {
					return verifyServer(c.PeerCertificates[0], cert)
				}
			}
			return fmt.Errorf("%w: sha256:%s", ErrOtherAuthority, f)
		},
	}
}

// Trust is the configuration of a client that knows authorities by a file (PEM), for a server at a name or address. The
// server's own authority is known by the name that it alone gives, any other by the name that was dialed.
func Trust(file []byte, name string) (*tls.Config, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(file) {
		return nil, errors.New("it holds no certificate (PEM)")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it.
		VerifyConnection: func(c tls.ConnectionState) error {
			between := x509.NewCertPool()
			for _, cert := range c.PeerCertificates[1:] {
				between.AddCert(cert)
			}
			verify := func(name string) error {
				_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{
					Roots: roots, Intermediates: between, DNSName: name, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
				})
				return err
			}
			err := verify(name)
			if err == nil || verify(serverName) == nil {
				return nil
			}
			return fmt.Errorf("%w: %w", ErrOtherAuthority, err)
		},
	}, nil
}

// PinCertificate is Pin for who has the authority's certificate.
func PinCertificate(authority *x509.Certificate) *tls.Config {
	return Pin(FingerprintOf(authority.Raw))
}

func verifyServer(leaf, authority *x509.Certificate) error {
	roots := x509.NewCertPool()
	roots.AddCert(authority)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: serverName, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOtherAuthority, err)
	}
	return nil
}
