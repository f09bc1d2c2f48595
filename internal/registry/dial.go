package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// dialers are two transports that differ in the addresses they connect to. The check is made on the
// address itself, after DNS, so that no name can lead past it.
type dialers struct {
	direct *http.Transport // the registry that the user named, wherever it is
	public *http.Transport // where it sends us: not to this machine, not into the private network
}

func newDialers(roots *x509.CertPool) dialers {
	return dialers{direct: newTransport(roots, neverDialled), public: newTransport(roots, func(a netip.Addr) bool {
		return neverDialled(a) || isPrivate(a)
	})}
}

func (d dialers) close() {
	d.direct.CloseIdleConnections()
	d.public.CloseIdleConnections()
}

func newTransport(roots *x509.CertPool, refuse func(netip.Addr) bool) *http.Transport {
	// A proxy is the administrator's choice: it is dialled wherever it is, and looks up names itself.
	var proxies sync.Map // host:port -> struct{}
	plain := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	checked := *plain
	checked.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		if refuse(ap.Addr()) {
			return &Error{Kind: ErrForbidden, Message: fmt.Sprintf("a registry leads to the address %s, which registries have no business with", ap.Addr())}
		}
		return nil
	}
	return &http.Transport{
		Proxy: func(req *http.Request) (*url.URL, error) {
			proxy, err := http.ProxyFromEnvironment(req)
			if proxy != nil {
				proxies.Store(net.JoinHostPort(proxy.Hostname(), port(proxy)), struct{}{})
			}
			return proxy, err
		},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if _, ok := proxies.Load(address); ok {
				return plain.DialContext(ctx, network, address)
			}
			return checked.DialContext(ctx, network, address)
		},
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    8,
		ForceAttemptHTTP2:      true,
		// Digests are of the bytes as they are stored; the transport must not undo a compression.
		DisableCompression: true,
	}
}

// metadataIPv6 is where one cloud serves instance credentials over IPv6; over IPv4 they are link-local.
var metadataIPv6 = netip.MustParseAddr("fd00:ec2::254")

// neverDialled are addresses that are no registry's, whoever says so.
func neverDialled(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a == metadataIPv6
}

func isPrivate(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	return a.IsLoopback() || a.IsPrivate() || carrierNAT.Contains(a)
}

// carrierNAT is used like private addresses by clouds and overlay networks.
var carrierNAT = netip.MustParsePrefix("100.64.0.0/10")
