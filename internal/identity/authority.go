package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// How long certificates are good for. Clocks may differ by skew: a certificate is good that long before it was made.
const (
	hostValidity   = 24 * time.Hour
	serverValidity = 90 * 24 * time.Hour
	caValidity     = 20 * 365 * 24 * time.Hour
	skew           = 5 * time.Minute
)

// Authority signs certificates. It may be used by many goroutines.
type Authority struct {
	key    crypto.Signer
	cert   *x509.Certificate
	secret []byte // from which Derive makes others
}

// GenerateAuthority makes an authority, as text for ParseAuthority.
func GenerateAuthority(now time.Time) (string, error) {
	_, text, err := newAuthority(now)
	return string(text), err
}

// LoadAuthority reads an authority from a file that only its owner can read: a key (PKCS #8, PEM), and its certificate
// (PEM).
func LoadAuthority(path string) (*Authority, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate authority: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the key of the server's certificate authority can be read by others: chmod 600 %s", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate authority: %w", err)
	}
	a, err := ParseAuthority(text)
	if err != nil {
		return nil, fmt.Errorf("the server's certificate authority: %s: %w", path, err)
	}
	return a, nil
}

// ParseAuthority reads an authority: a key (PKCS #8, PEM), and its certificate (PEM).
func ParseAuthority(text []byte) (*Authority, error) {
	var key crypto.Signer
	var cert *x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, err
			}
			key, _ = parsed.(crypto.Signer)
		case "CERTIFICATE":
			var err error
			if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
				return nil, err
			}
		}
	}
	if key == nil || cert == nil {
		return nil, errors.New("want a PRIVATE KEY that can sign and its CERTIFICATE, both PEM")
	}
	if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("the certificate is not that of the key")
	}
	if !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0 {
		return nil, errors.New("the certificate is not that of an authority")
	}
	return withKey(key, cert)
}

func newAuthority(now time.Time) (*Authority, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Pinnace authority"},
		NotBefore: now.Add(-skew), NotAfter: now.Add(caValidity),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	signed, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(signed)
	if err != nil {
		return nil, nil, err
	}
	a, err := withKey(key, cert)
	if err != nil {
		return nil, nil, err
	}
	return a, append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), a.PEM()...), nil
}

// NewAuthority makes an authority that is kept nowhere.
func NewAuthority(now time.Time) (*Authority, error) {
	a, _, err := newAuthority(now)
	return a, err
}

func withKey(key crypto.Signer, cert *x509.Certificate) (*Authority, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	secret, err := hkdf.Key(sha256.New, der, nil, "pinnace derived secrets", sha256.Size)
	return &Authority{key: key, cert: cert, secret: secret}, err
}

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

// Certificate is that of the authority itself.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// PEM is the certificate as a file.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Fingerprint is what others know the authority by.
func (a *Authority) Fingerprint() Fingerprint { return FingerprintOf(a.cert.Raw) }

// Derive makes 32 bytes that nobody can guess who has not the authority's key. The same parts give the same ones.
func (a *Authority) Derive(parts ...string) [32]byte {
	h := hmac.New(sha256.New, a.secret)
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return [32]byte(h.Sum(nil))
}

// maxRequest bounds a certificate request, in bytes.
const maxRequest = 8 << 10

// ParseRequest reads a certificate request in DER and checks that it was signed with its key. What else it says is of
// no account.
func ParseRequest(der []byte) (*x509.CertificateRequest, error) {
	if len(der) > maxRequest {
		return nil, fmt.Errorf("a certificate request of %d bytes, the most is %d", len(der), maxRequest)
	}
	r, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("read the certificate request: its key is not of the curve P-256")
	}
	if err := r.CheckSignature(); err != nil {
		return nil, fmt.Errorf("read the certificate request: %w", err)
	}
	return r, nil
}

// SignHost makes the certificate of a host, for 24 hours from now. The host is of an admission: what ends that ends the
// certificate too.
func (a *Authority) SignHost(r *x509.CertificateRequest, host Host, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host.ID}, NotBefore: now.Add(-skew), NotAfter: now.Add(hostValidity),
		URIs: host.uris(), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		// Hosts call the server, and the proxies of each other. Without a name of DNS it is not that of a server.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, r.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of host %s: %w", host.ID, err)
	}
	return der, nil
}

// signServer makes the certificate of a server for a key.
func (a *Authority) signServer(public crypto.PublicKey, names []string, now time.Time) ([]byte, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Pinnace server"}, NotBefore: now.Add(-skew), NotAfter: now.Add(serverValidity),
		DNSNames: []string{serverName}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
}

// KeyHash is the SHA-256 of the public key of a certificate request.
func KeyHash(r *x509.CertificateRequest) [32]byte { return sha256.Sum256(r.RawSubjectPublicKeyInfo) }
