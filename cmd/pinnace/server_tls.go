package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/pinnacehq/pinnace/internal/api/pinnace/v1/pinnacev1connect"
	"github.com/pinnacehq/pinnace/internal/identity"
)

// tlsFlags say how the API is served.
type tlsFlags struct {
	names      []string // in the server's own certificate
	cert, key  string   // of the operator, instead of that
	authority  string   // file with the certificate authority
	plain      bool     // no TLS, also outside loopback
	everywhere bool     // TLS, also on loopback
}

func (f *tlsFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringSliceVar(&f.names, "tls-name", nil, "a name or address of this server, for its certificate (repeat it)")
	flags.StringVar(&f.cert, "tls-cert", "", "file with a certificate chain for the API, instead of the server's own")
	flags.StringVar(&f.key, "tls-key", "", "file with the key of --tls-cert")
	flags.StringVar(&f.authority, "ca-file", "", "file with the key and certificate of the server's authority, instead of the server's own")
	flags.BoolVar(&f.plain, "tls-off", false, "serve the API without TLS also outside loopback: something in front of it does that")
	flags.BoolVar(&f.everywhere, "tls", false, "serve the API with TLS also on loopback")
}

// of says how to serve at an address, nil for without TLS, and by which authority's fingerprint those who call know it.
func (f *tlsFlags) of(listen string, authority *identity.Authority) (*tls.Config, identity.Fingerprint, error) {
	none := identity.Fingerprint{}
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return nil, none, fail(exitInvalid, "it looks like 127.0.0.1:7400", "--listen: %w", err)
	}
	own := f.cert != "" || f.key != ""
	switch {
	case f.plain && (own || f.everywhere):
		return nil, none, fail(exitInvalid, "", "--tls-off excludes --tls, --tls-cert and --tls-key")
	case own && (f.cert == "" || f.key == ""):
		return nil, none, fail(exitInvalid, "", "--tls-cert and --tls-key belong together")
	case own:
		pair := &filePair{cert: f.cert, key: f.key}
		if _, err := pair.get(nil); err != nil {
			return nil, none, fail(exitInvalid, "", "--tls-cert, --tls-key: %w", err)
		}
		return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: pair.get}, none, nil
	case f.plain, isLoopback(host) && !f.everywhere:
		return nil, none, nil
	}
	return authority.ServerTLS(f.allNames(listen), time.Now), authority.Fingerprint(), nil
}

// allNames are those that the server's certificate is for, besides the one that clients who know the authority ask for.
func (f *tlsFlags) allNames(listen string) []string {
	host, _, _ := net.SplitHostPort(listen)
	names := append([]string{"localhost", "127.0.0.1", "::1"}, f.names...)
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() || ip == nil && host != "" {
		names = append(names, host)
	}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// filePair is the operator's certificate, read again when its file was replaced: whoever renews it need not restart the
// server. While the new files do not fit each other, the last ones that did are used.
type filePair struct {
	cert, key string

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	read    [2]time.Time     // guarded by mu; when the files had changed last
}

func (p *filePair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var changed [2]time.Time
	for i, path := range []string{p.cert, p.key} {
		if info, err := os.Stat(path); err == nil {
			changed[i] = info.ModTime()
		}
	}
	if p.current != nil && changed == p.read {
		return p.current, nil
	}
	next, err := tls.LoadX509KeyPair(p.cert, p.key)
	if err != nil {
		if p.current != nil {
			return p.current, nil
		}
		return nil, err
	}
	p.current, p.read = &next, changed
	return p.current, nil
}

// local is how this server is reached from its own machine, with its admin token.
func (r *serverRole) local() (url, token string, client pinnacev1connect.ControlServiceClient, err error) {
	text, err := r.adminToken()
	if err != nil {
		return "", "", nil, err
	}
	secret, _, err := identity.ParseSecret(text)
	if err != nil {
		return "", "", nil, fmt.Errorf("the admin token of this server: %w", err)
	}
	keys, err := r.loadKeys()
	if err != nil {
		return "", "", nil, err
	}
	secure, pin, err := r.secure.of(r.listen, keys.authority)
	if err != nil {
		return "", "", nil, err
	}
	host, port, err := net.SplitHostPort(r.listen)
	if err != nil {
		return "", "", nil, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url = urlScheme(secure) + net.JoinHostPort(host, port)
	over := httpClient()
	if !pin.IsZero() {
		over.Transport.(*http.Transport).TLSClientConfig = identity.Pin(pin)
	}
	return url, secret.WithPin(pin), pinnacev1connect.NewControlServiceClient(over, url, connect.WithInterceptors(bearer(secret.Text()))), nil
}

func urlScheme(secure *tls.Config) string {
	if secure == nil {
		return "http://"
	}
	return "https://"
}
