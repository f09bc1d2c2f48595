package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Host is who a host's certificate says that it is.
type Host struct {
	// ID is that of the host, Admission that by which it joined.
	ID, Admission string
}

// Grace is for how long after its end a certificate may be used to renew it: a server that was away for long locks no
// host out.
const Grace = 30 * 24 * time.Hour

// uriScheme and uriHost begin the name of a host in its certificate: pinnace://host/ID/ADMISSION.
const (
	uriScheme = "pinnace"
	uriHost   = "host"
)

func (h Host) uris() []*url.URL {
	return []*url.URL{{Scheme: uriScheme, Host: uriHost, Path: "/" + h.ID + "/" + h.Admission}}
}

// hostOf reads the name in a certificate.
func hostOf(c *x509.Certificate) (Host, error) {
	if len(c.URIs) == 1 && c.URIs[0].Scheme == uriScheme && c.URIs[0].Host == uriHost {
		id, admission, ok := strings.Cut(strings.TrimPrefix(c.URIs[0].Path, "/"), "/")
		if ok && id != "" && admission != "" && !strings.Contains(admission, "/") && id == c.Subject.CommonName {
			return Host{ID: id, Admission: admission}, nil
		}
	}
	return Host{}, errors.New("the certificate is not that of a host")
}

// ExpiredError means that a certificate was that of a host, and has ended.
type ExpiredError struct {
	Host Host
	At   time.Time
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the certificate of host %s has expired at %s", e.Host.ID, e.At.UTC().Format(time.DateTime))
}

// VerifyHost says whose certificate it is that somebody has proved to have the key of. An *ExpiredError has the host too.
func (a *Authority) VerifyHost(c *x509.Certificate, now time.Time) (Host, error) {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	at := now
	if at.After(c.NotAfter) {
		at = c.NotAfter
	}
	_, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Host{}, fmt.Errorf("the certificate is not of this server's authority, or not yet good: %w", err)
	}
	h, err := hostOf(c)
	if err != nil {
		return Host{}, err
	}
	if !at.Equal(now) {
		return Host{}, &ExpiredError{Host: h, At: c.NotAfter}
	}
	return h, nil
}
