package registry

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// transports are made as they are needed: one for each way to check addresses, and those of hosts with
// certificates of their own.
type transports struct {
	network network

	mu sync.Mutex
	of map[transportKey]*http.Transport // guarded by mu
}

// network is what transports are made over. Tests have one of their own.
type network struct {
	header time.Duration // for an answer to begin
	roots  *x509.CertPool
	proxy  func(*http.Request) (*url.URL, error)
	// connect makes a connection to a host:port, to an address of it that check has nothing against.
	connect func(ctx context.Context, network, address string, check func(netip.Addr) error) (net.Conn, error)
}

// theInternet is the network as it is.
func theInternet() network {
	return network{header: 30 * time.Second, proxy: http.ProxyFromEnvironment, connect: connect}
}

func connect(ctx context.Context, network, address string, check func(netip.Addr) error) (net.Conn, error) {
	d := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return check(ap.Addr())
	}
	return d.DialContext(ctx, network, address)
}

type transportKey struct {
	host  string // when it has TLS settings of its own
	reach reach
}

func (t *transports) get(host string, settings Host, r reach) *http.Transport {
	key := transportKey{reach: r}
	if settings.ownTLS() {
		key.host = hostKey(host)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[key] == nil {
		if t.of == nil {
			t.of = map[transportKey]*http.Transport{}
		}
		t.of[key] = newTransport(t.network, settings, r)
	}
	return t.of[key]
}

func (t *transports) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, transport := range t.of {
		transport.CloseIdleConnections()
	}
}

func newTransport(over network, settings Host, r reach) *http.Transport {
	security := &tls.Config{RootCAs: cmp.Or(settings.RootCAs, over.roots), MinVersion: tls.VersionTLS12}
	if settings.ClientCertificate != nil {
		security.Certificates = []tls.Certificate{*settings.ClientCertificate}
	} else {
		security.GetClientCertificate = haveNoCertificate
	}
	d := dialer{network: over, reach: r}
	return &http.Transport{
		Proxy:                  d.proxy,
		DialContext:            d.dial,
		TLSClientConfig:        security,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  over.header,
		IdleConnTimeout:        90 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		MaxIdleConnsPerHost:    8,
		ForceAttemptHTTP2:      true,
		// Digests are of the bytes as they are stored; the transport must not undo a compression.
		DisableCompression: true,
	}
}

// onCertificateRequest is the context's func() that hears when a host asks for a certificate that we don't have.
type onCertificateRequest struct{}

// haveNoCertificate answers a host that asks for a certificate. In TLS 1.3 the host refuses us only after the
// handshake has ended for us, so that instead of its alert we may get no more than a connection that is gone.
func haveNoCertificate(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
	if tell, ok := asked.Context().Value(onCertificateRequest{}).(func()); ok {
		tell()
	}
	return new(tls.Certificate), nil
}

// isHungUp says whether the other side ended the connection before it answered. The ways in which that shows are many,
// some of them known to net/http alone: it is whatever is neither a connection that never was nor a wait that was too long.
func isHungUp(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	return (!ok || op.Op != "dial") && (!isNet || !timeout.Timeout()) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// dialer checks addresses themselves, after DNS, so that no name can lead past it.
type dialer struct {
	network network
	reach   reach
	proxies sync.Map // host:port -> struct{}
}

// proxy is the administrator's choice: it is dialled wherever it is, and looks up names itself.
func (d *dialer) proxy(req *http.Request) (*url.URL, error) {
	proxy, err := d.network.proxy(req)
	if proxy != nil {
		d.proxies.Store(net.JoinHostPort(proxy.Hostname(), port(proxy)), struct{}{})
	}
	return proxy, err
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, ok := d.proxies.Load(address); ok {
		conn, err := d.network.connect(ctx, network, address, func(netip.Addr) error { return nil })
		if err != nil {
			return nil, err
		}
		return proxyConn{conn}, nil
	}
	// The names of this machine are spoken to without TLS, so they must not lead elsewhere.
	onlyHere := isLoopback(hostname(address))
	return d.network.connect(ctx, network, address, func(a netip.Addr) error {
		if neverDialled(a) || reachOf(a) > d.reach {
			return &Error{Kind: ErrForbidden, Message: fmt.Sprintf("it leads to the address %s, which registries have no business with", a)}
		}
		if onlyHere && reachOf(a) != reachHere {
			return &Error{Kind: ErrForbidden, Message: fmt.Sprintf("a name of this machine leads to the address %s, which is another's", a)}
		}
		return nil
	})
}

// proxyConn keeps the address of a proxy from being taken for the registry's.
type proxyConn struct{ net.Conn }

func (proxyConn) RemoteAddr() net.Addr { return proxyAddr{} }

type proxyAddr struct{}

func (proxyAddr) Network() string { return "proxy" }
func (proxyAddr) String() string  { return "proxy" }

// reach is how near to this machine an address is.
type reach int

const (
	reachPublic  reach = iota
	reachPrivate       // the networks of an organisation
	reachHere          // this machine
)

var (
	// blocked are addresses that are no registry's, whoever says so: this network, the networks reserved for
	// nobody, and where clouds serve a machine's own credentials besides link-local addresses.
	blocked = prefixes(
		"0.0.0.0/8", "240.0.0.0/4",
		"fd00:ec2::/32",      // Amazon
		"fd20:ce::254/128",   // Google
		"168.63.129.16/32",   // Azure
		"100.100.100.200/32", // Alibaba
		"192.0.0.192/32",     // Oracle
	)
	// private are those that net/netip does not count as such: what carriers and overlay networks use, and
	// IPv6's site-local addresses of old.
	private = prefixes("100.64.0.0/10", "fec0::/10", "192.0.0.0/24", "198.18.0.0/15")
)

func prefixes(list ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// neverDialled says whether an address is no registry's, whoever says so.
func neverDialled(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || within(blocked, a) {
		return true
	}
	inner, ok := innerIPv4(a)
	return ok && neverDialled(inner)
}

func reachOf(a netip.Addr) reach {
	a = a.Unmap().WithZone("")
	r := reachPublic
	switch {
	case a.IsLoopback():
		r = reachHere
	case a.IsPrivate(), within(private, a):
		r = reachPrivate
	}
	if inner, ok := innerIPv4(a); ok {
		r = max(r, reachOf(inner))
	}
	return r
}

// innerIPv4 is the IPv4 address that packets to an IPv6 address may be translated or tunnelled to.
func innerIPv4(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return netip.Addr{}, false
	}
	b := a.As16()
	at := func(i int) (netip.Addr, bool) { return netip.AddrFrom4([4]byte(b[i : i+4])), true }
	switch {
	case b == netip.IPv6Loopback().As16():
		return netip.Addr{}, false
	case within(translated, a):
		return at(12) // NAT64, and the compatible addresses of old
	case b[0] == 0x20 && b[1] == 0x02:
		return at(2) // 6to4
	case b[0] == 0x20 && b[1] == 0x01 && b[2] == 0 && b[3] == 0: // Teredo, inverted
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}), true
	case b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe:
		return at(12) // ISATAP
	}
	return netip.Addr{}, false
}

var translated = prefixes("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
