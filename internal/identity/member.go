package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
)

// renewAfter is the age at which a host's certificate is to be renewed.
const renewAfter = 8 * time.Hour

// Member is a host's side of its identity: host.key, host.crt and ca.crt in a directory that only the host can read.
// The key never leaves it. It may be used by many goroutines.
type Member struct {
	dir string
	key crypto.Signer

	mu        sync.Mutex
	cert      *tls.Certificate  // guarded by mu; nil before the host was admitted
	authority *x509.Certificate // guarded by mu; nil before
}

// OpenMember reads the identity in dir. One that has a key and no certificate yet is not admitted; the key is made when
// there is none.
func OpenMember(dir string) (*Member, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the host's identity: %w", err)
	}
	m := &Member{dir: dir}
	key, err := m.readKey()
	if errors.Is(err, fs.ErrNotExist) {
		key, err = m.makeKey()
	}
	if err != nil {
		return nil, fmt.Errorf("the key of this host: %w", err)
	}
	m.key = key
	cert, err := readCertificate(filepath.Join(dir, "host.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the certificate of this host: %w", err)
	}
	authority, err := readCertificate(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("the certificate of the server's authority: %w", err)
	}
	return m, m.take(cert, authority)
}

func (m *Member) keyPath() string { return filepath.Join(m.dir, "host.key") }

func (m *Member) readKey() (crypto.Signer, error) {
	text, err := os.ReadFile(m.keyPath())
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key", m.keyPath())
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.keyPath(), err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a key of another kind", m.keyPath())
	}
	return signer, nil
}

func (m *Member) makeKey() (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(m.keyPath(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

// take has the member be what a certificate says. It is called under mu, or before anybody else has m.
func (m *Member) take(cert, authority *x509.Certificate) error {
	public, ok := m.key.Public().(*ecdsa.PublicKey)
	if !ok || !public.Equal(cert.PublicKey) {
		return errors.New("the certificate is not for the key of this host")
	}
	if err := cert.CheckSignatureFrom(authority); err != nil {
		return fmt.Errorf("the certificate is not of the server's authority: %w", err)
	}
	if _, err := hostOf(cert); err != nil {
		return err
	}
	m.cert = &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: m.key, Leaf: cert}
	m.authority = authority
	return nil
}

// Request is a certificate request for the host's key, in DER.
func (m *Member) Request() ([]byte, error) {
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, m.key)
}

// Host is who the member is; false when it was not admitted yet.
func (m *Member) Host() (Host, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert == nil {
		return Host{}, false
	}
	h, err := hostOf(m.cert.Leaf)
	return h, err == nil
}

// Admitted keeps what the server has answered to an admission. The authority is that of the fingerprint.
func (m *Member) Admitted(cert, authority []byte, f Fingerprint) error {
	if !f.IsZero() && FingerprintOf(authority) != f {
		return ErrOtherAuthority
	}
	a, err := x509.ParseCertificate(authority)
	if err != nil {
		return fmt.Errorf("read the certificate of the server's authority: %w", err)
	}
	// The host's certificate last: it is what says that there was an admission.
	if err := m.keep("ca.crt", a); err != nil {
		return err
	}
	return m.store(cert, a)
}

// Renewed keeps the next certificate.
func (m *Member) Renewed(cert []byte) error {
	m.mu.Lock()
	authority := m.authority
	m.mu.Unlock()
	if authority == nil {
		return errors.New("a host that was not admitted has nothing to renew")
	}
	return m.store(cert, authority)
}

func (m *Member) store(cert []byte, authority *x509.Certificate) error {
	c, err := x509.ParseCertificate(cert)
	if err != nil {
		return fmt.Errorf("read the certificate of this host: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.take(c, authority); err != nil {
		return err
	}
	return m.keep("host.crt", c)
}

func (m *Member) keep(name string, c *x509.Certificate) error {
	return durable.WriteFile(filepath.Join(m.dir, name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600)
}

// RenewAt is when the certificate is to be renewed, and EndsAt when it ends; both are zero for a member that was not
// admitted.
func (m *Member) RenewAt() time.Time {
	if c := m.leaf(); c != nil {
		return c.NotBefore.Add(skew + renewAfter)
	}
	return time.Time{}
}

// EndsAt is when the certificate ends.
func (m *Member) EndsAt() time.Time {
	if c := m.leaf(); c != nil {
		return c.NotAfter
	}
	return time.Time{}
}

func (m *Member) leaf() *x509.Certificate {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert == nil {
		return nil
	}
	return m.cert.Leaf
}

// TLS is the configuration of a client that is the host, and knows the server by its authority. Each connection has the
// certificate of its time. It is nil for a member that was not admitted.
func (m *Member) TLS() *tls.Config {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert == nil {
		return nil
	}
	config := PinCertificate(m.authority)
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.cert, nil
	}
	return config
}
