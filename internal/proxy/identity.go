package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// peerProtocol is what both ends of a connection between hosts say that they speak. A later one would be offered beside
// it, so that proxies of two versions understand each other.
const peerProtocol = "pinnace-peer/1"

// HostOf is the host that a certificate of the fleet names, with the admission by which it joined, as in its URI
// pinnace://host/ID/ADMISSION: "ID/ADMISSION". The admission makes a host that was revoked and has joined again another one.
func HostOf(c *x509.Certificate) (string, error) {
	if len(c.URIs) == 1 && c.URIs[0].Scheme == "pinnace" && c.URIs[0].Host == "host" {
		name := strings.TrimPrefix(c.URIs[0].Path, "/")
		if id, admission, ok := strings.Cut(name, "/"); ok && id != "" && admission != "" {
			return name, nil
		}
	}
	return "", errors.New("the certificate names no host")
}

// An identity is a Peering in use.
type identity struct {
	Peering

	mu sync.Mutex
	// Guarded by mu.
	own     *tls.Certificate
	roots   *x509.CertPool
	changed [3]time.Time // of the files that these were read from
}

// load gives what the files hold. A certificate is renewed every few hours, so that they are looked at each time.
func (i *identity) load() (*tls.Certificate, *x509.CertPool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var changed [3]time.Time
	for n, path := range []string{i.Certificate, i.Key, i.Authorities} {
		st, err := os.Stat(path)
		if err != nil {
			return nil, nil, fmt.Errorf("read what this host shows to others: %w", err)
		}
		changed[n] = st.ModTime()
	}
	if i.own != nil && changed == i.changed {
		return i.own, i.roots, nil
	}
	own, err := tls.LoadX509KeyPair(i.Certificate, i.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("read what this host shows to others: %w", err)
	}
	pem, err := os.ReadFile(i.Authorities)
	if err != nil {
		return nil, nil, fmt.Errorf("read what other hosts are known by: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("read what other hosts are known by: %s holds no certificate", i.Authorities)
	}
	i.own, i.roots, i.changed = &own, roots, changed
	return i.own, i.roots, nil
}

// config is for one connection with another host. admit is given the host that the other end has proved to be.
func (i *identity) config(admit func(host string) error) (*tls.Config, error) {
	if i == nil {
		return nil, errors.New("this host has no certificate to show to others")
	}
	own, roots, err := i.load()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		Certificates: []tls.Certificate{*own},
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{peerProtocol},
		ClientAuth:   tls.RequireAnyClientCert,
		// A host is known by what its certificate says, not by an address or a name that led to it.
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, for both ends.
		VerifyConnection: func(s tls.ConnectionState) error {
			host, err := verifiedHost(s, roots)
			if err != nil {
				return err
			}
			if s.NegotiatedProtocol != peerProtocol {
				return fmt.Errorf("host %s does not speak %s", host, peerProtocol)
			}
			return admit(host)
		},
		// Each connection proves who it is, so that a host that was removed is out.
		SessionTicketsDisabled: true,
	}, nil
}

// verifiedHost is the host that the other end has proved to be.
func verifiedHost(s tls.ConnectionState, roots *x509.CertPool) (string, error) {
	if len(s.PeerCertificates) == 0 {
		return "", errors.New("the other end shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return "", fmt.Errorf("the other end's certificate: %w", err)
	}
	return HostOf(s.PeerCertificates[0])
}
