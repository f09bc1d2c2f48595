package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An authority makes certificates of hosts.
type authority struct {
	t    testing.TB
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	a := &authority{t: t, dir: t.TempDir(), key: key, cert: cert}
	a.write("ca.crt", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	check(a.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

// peering is that of a host, with a new certificate that is good until then.
func (a *authority) peering(host string, until time.Time) *Peering {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a.t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: host}, NotAfter: until,
		URIs:        []*url.URL{{Scheme: "pinnace", Host: "host", Path: "/" + host}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	check(a.t, err)
	secret, err := x509.MarshalECPrivateKey(key)
	check(a.t, err)
	name := strings.ReplaceAll(host, "/", "-")
	return &Peering{
		Certificate: a.write(name+".crt", "CERTIFICATE", der), Key: a.write(name+".key", "EC PRIVATE KEY", secret),
		Authorities: filepath.Join(a.dir, "ca.crt"),
	}
}

func (a *authority) host(name string) *Peering {
	return a.peering(name+"/1", time.Now().Add(time.Hour))
}

// earlier is a host's with an admission that has ended since.
func (a *authority) earlier(name string) *Peering {
	return a.peering(name+"/0", time.Now().Add(time.Hour))
}

// waitingFor is the configuration of host b, which lets a host in to what it has.
func waitingFor(at netip.AddrPort, peering *Peering, from string, targets map[string]Backend) Config {
	l := Listener{ID: "peers", Address: at, Protocol: PEER, Peers: []string{from + "/1"}}
	for name, b := range targets {
		l.Routes = append(l.Routes, Route{ID: name, Names: []string{name}, Backends: []Backend{b}})
	}
	return Config{Peering: peering, Listeners: []Listener{l}}
}

func remote(id string, at netip.AddrPort, host, target string) Backend {
	return Backend{ID: id, Address: at, State: Active, Peer: host + "/1", Target: target}
}

// leadingTo is the configuration of host a, which has a port that leads to other hosts.
func leadingTo(peering *Peering, at netip.AddrPort, backends ...Backend) Config {
	c := one(at, backends...)
	c.Peering = peering
	return c
}

// twoHosts are host a with a port that leads to target "web:80" of host b, which leads to a server.
type twoHosts struct {
	*authority
	a, b         *running
	entry, peers netip.AddrPort
}

func newTwoHosts(t *testing.T, server netip.AddrPort) *twoHosts {
	t.Helper()
	ca := newAuthority(t)
	h := &twoHosts{
		authority: ca, entry: freePort(t), peers: freePort(t),
		a: start(t, Options{}), b: start(t, Options{helloTimeout: 3 * time.Second}), // long enough for a machine that is busy
	}
	h.b.apply(waitingFor(h.peers, ca.host("b"), "a", map[string]Backend{"web:80": active("web", server)}))
	h.a.apply(leadingTo(ca.host("a"), h.entry, remote("web", h.peers, "b", "web:80")))
	return h
}

func TestConnectionsGoFromHostToHost(t *testing.T) {
	h := newTwoHosts(t, named(t, "on b"))
	who, err := once(h.entry)
	if err != nil || who != "on b" {
		t.Fatalf("answered by %q, %v", who, err)
	}
	for name, p := range map[string]*running{"a": h.a, "b": h.b} {
		eventually(t, "the connection has ended on "+name, func() (bool, string) {
			s := p.status()
			return s.Connections == 0 && s.OpenTo("web") == 0, fmt.Sprintf("%+v", s)
		})
	}
}

// A stream arrives as it was sent, and its ends one after the other, as without a host in between.
func TestStreamsBetweenHosts(t *testing.T) {
	const size = 8 << 20
	got := make(chan []byte, 1)
	h := newTwoHosts(t, server(t, func(c *net.TCPConn) {
		sum := sha256.New()
		n, err := io.Copy(sum, struct{ io.Reader }{c}) // until the client is done, which still listens then
		if err != nil || n != size {
			t.Errorf("the server got %d bytes, %v", n, err)
		}
		got <- sum.Sum(nil)
		_, _ = io.WriteString(c, "thank you")
	}))
	data := make([]byte, size)
	_, _ = rand.Read(data)
	c := mustCall(t, h.entry)
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	_, err := c.Write(data)
	check(t, errors.Join(err, c.CloseWrite()))
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "thank you" {
		t.Fatalf("got %q, %v", answer, err)
	}
	if want := sumOf(data); !bytes.Equal(<-got, want) {
		t.Error("the bytes are others")
	}
}

// A reset comes out as a reset, and never as an end in order.
func TestResetsBetweenHosts(t *testing.T) {
	h := newTwoHosts(t, server(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_ = c.SetLinger(0)
	}))
	c := mustCall(t, h.entry)
	_, err := io.WriteString(c, "x")
	check(t, err)
	if _, err := io.ReadAll(c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client saw %v", err)
	}
}

// What a server answers before it has read everything arrives.
func TestEarlyAnswersBetweenHosts(t *testing.T) {
	h := newTwoHosts(t, server(t, func(c *net.TCPConn) {
		_, _ = io.ReadFull(c, make([]byte, 1))
		_, _ = io.WriteString(c, "too large")
		_ = c.CloseWrite()
	}))
	c := mustCall(t, h.entry)
	_, err := io.WriteString(c, strings.Repeat("x", 1<<16))
	check(t, err)
	if answer, err := io.ReadAll(c); err != nil || string(answer) != "too large" {
		t.Errorf("the client saw %q, %v", answer, err)
	}
}

func TestServersLearnTheClientsAddressAcrossHosts(t *testing.T) {
	seen := make(chan netip.AddrPort, 1)
	h := newTwoHosts(t, server(t, func(c *net.TCPConn) {
		from, _, err := readHeader(c)
		if err != nil {
			t.Error(err)
		}
		seen <- from
	}))
	cfg := leadingTo(h.host("a"), h.entry, remote("web", h.peers, "b", "web:80"))
	cfg.Listeners[0].ProxyProtocol = ProxyV2
	h.a.apply(cfg)
	c := mustCall(t, h.entry)
	if got, want := <-seen, c.LocalAddr().(*net.TCPAddr).AddrPort(); got != want {
		t.Errorf("the server was told %v, the client is %v", got, want)
	}
}

// What is draining on its host, or not there any more, is passed over for what is.
func TestRefusedTargetsCostNothing(t *testing.T) {
	h := newTwoHosts(t, named(t, "unused"))
	h.b.apply(waitingFor(h.peers, h.host("b"), "a", map[string]Backend{
		"leaves:80": draining("leaves", named(t, "leaves")), "dead:80": active("dead", freePort(t)), "stays:80": active("stays", named(t, "stays")),
	}))
	h.a.apply(leadingTo(h.host("a"), h.entry,
		remote("gone", h.peers, "b", "gone:80"), remote("leaves", h.peers, "b", "leaves:80"), remote("dead", h.peers, "b", "dead:80"),
		remote("nobody", freePort(t), "b", "stays:80"), remote("stays", h.peers, "b", "stays:80")))
	for range 8 {
		if who, err := once(h.entry); err != nil || who != "stays" {
			t.Fatalf("answered by %q, %v", who, err)
		}
	}
}

// Long connections survive that their backend drains, on both hosts, and end when it goes.
func TestDrainingBetweenHosts(t *testing.T) {
	at := named(t, "on b")
	h := newTwoHosts(t, at)
	c := mustCall(t, h.entry)
	asks := func() {
		t.Helper()
		if who, err := c.ask(); err != nil || who != "on b" {
			t.Fatalf("answered by %q, %v", who, err)
		}
	}
	asks()
	h.b.apply(waitingFor(h.peers, h.host("b"), "a", map[string]Backend{"web:80": draining("web", at)}))
	asks()
	if n := h.b.status().OpenTo("web"); n != 1 {
		t.Errorf("host b counts %d connections to what drains", n)
	}
	h.b.apply(waitingFor(h.peers, h.host("b"), "a", nil))
	if _, err := c.ask(); err == nil {
		t.Error("the connection outlives its backend")
	}
}

// Who may not come in gets no further than the handshake, whatever it asks for.
func TestStrangersBetweenHosts(t *testing.T) {
	h := newTwoHosts(t, server(t, func(*net.TCPConn) { t.Error("somebody came through") }))
	other := newAuthority(t)
	for name, p := range map[string]*Peering{
		"another authority's":  {Certificate: other.host("a").Certificate, Key: filepath.Join(other.dir, "a-1.key"), Authorities: filepath.Join(h.dir, "ca.crt")},
		"no host of the fleet": h.host("c"),
		"an earlier admission": h.earlier("a"),
		"expired":              h.peering("a/1", time.Now().Add(-time.Minute)),
	} {
		t.Run(name, func(t *testing.T) {
			i := identity{Peering: *p}
			if err := sayHello(t, h.peers, &i, []byte{1, 6, 'w', 'e', 'b', ':', '8', '0'}); err == nil {
				t.Error("was let in")
			}
		})
	}
	t.Run("no certificate", func(t *testing.T) {
		c, err := tls.Dial("tcp", h.peers.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{peerProtocol}})
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
			_ = c.Close()
		}
		if err == nil {
			t.Error("was let in")
		}
	})
	t.Run("nothing said", func(t *testing.T) {
		c := mustCall(t, h.peers)
		if b, err := io.ReadAll(c); len(b) > 0 {
			t.Errorf("got %q, %v", b, err)
		}
	})
	l, _ := h.b.status().Listener("peers")
	if l.TurnedAway == nil || l.TurnedAway.NotHost != 2 || l.TurnedAway.Slow != 1 {
		t.Errorf("counted %+v", l.TurnedAway)
	}
}

// sayHello says hello as host i to the proxy at an address, and returns why it was not led on.
func sayHello(t *testing.T, at netip.AddrPort, i *identity, hello []byte) error {
	t.Helper()
	config, err := i.config(func(string) error { return nil })
	check(t, err)
	raw := mustCall(t, at)
	c := tls.Client(raw, config)
	if _, err := c.Write(hello); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil {
		return err
	}
	if answer[0] != peerTaken {
		return fmt.Errorf("answer %d", answer[0])
	}
	return nil
}

func TestHostsSayWhatTheyWant(t *testing.T) {
	h := newTwoHosts(t, named(t, "on b"))
	i := identity{Peering: *h.host("a")}
	for name, hello := range map[string][]byte{
		"another version":  {2, 6, 'w', 'e', 'b', ':', '8', '0'},
		"no name":          {1, 0},
		"a name cut short": {1, 6, 'w', 'e'},
		"an unknown name":  append([]byte{1, 255}, bytes.Repeat([]byte{'x'}, 255)...),
		"a pattern":        {1, 3, '*', '.', '*'},
	} {
		t.Run(name, func(t *testing.T) {
			if err := sayHello(t, h.peers, &i, hello); err == nil {
				t.Error("was led on")
			}
		})
	}
	if err := sayHello(t, h.peers, &i, []byte{1, 6, 'w', 'e', 'b', ':', '8', '0'}); err != nil {
		t.Errorf("the right words: %v", err)
	}
}

// Who answers at a host's address and is another one gets no byte of a client's.
func TestWrongHostAnswers(t *testing.T) {
	h := newTwoHosts(t, server(t, func(*net.TCPConn) { t.Error("the wrong host was asked") }))
	h.b.apply(waitingFor(h.peers, h.host("c"), "a", map[string]Backend{"web:80": active("web", named(t, "c"))}))
	if who, err := once(h.entry); err == nil {
		t.Errorf("answered by %q", who)
	}
	l, _ := h.a.status().Listener("web")
	if want := `it is host "c/1"`; len(l.Backends) != 1 || !strings.Contains(l.Backends[0].LastError, want) {
		t.Errorf("host a says %+v, want %q", l.Backends, want)
	}
}

// A host that leaves the fleet loses what it has open, and comes in no more.
func TestRemovedHostsAreOut(t *testing.T) {
	at := named(t, "on b")
	h := newTwoHosts(t, at)
	c := mustCall(t, h.entry)
	if _, err := c.ask(); err != nil {
		t.Fatal(err)
	}
	h.b.apply(waitingFor(h.peers, h.host("b"), "z", map[string]Backend{"web:80": active("web", at)}))
	if _, err := c.ask(); err == nil {
		t.Error("the connection of a host that was removed goes on")
	}
	if who, err := once(h.entry); err == nil {
		t.Errorf("a host that was removed is answered by %q", who)
	}
}

func TestNoHostTakesAllPlaces(t *testing.T) {
	at := named(t, "on b")
	h := newTwoHosts(t, at)
	cfg := waitingFor(h.peers, h.host("b"), "a", map[string]Backend{"web:80": active("web", at)})
	cfg.Listeners[0].MaxConns = 4
	h.b.apply(cfg)
	var open []caller
	for range 2 {
		c := mustCall(t, h.entry)
		if _, err := c.ask(); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	if who, err := once(h.entry); err == nil {
		t.Errorf("beyond the share of a host, one is answered by %q", who)
	}
	check(t, open[0].Close())
	eventually(t, "there is room again", func() (bool, string) {
		who, err := once(h.entry)
		return err == nil && who == "on b", fmt.Sprint(who, err)
	})
}

// A certificate that was renewed is used from then on, without anybody saying so.
func TestRenewedCertificates(t *testing.T) {
	h := newTwoHosts(t, named(t, "on b"))
	h.a.apply(leadingTo(h.peering("a/1", time.Now().Add(-time.Minute)), h.entry, remote("web", h.peers, "b", "web:80")))
	if who, err := once(h.entry); err == nil {
		t.Fatalf("with a certificate that has expired, answered by %q", who)
	}
	renewed := h.host("a")
	// File systems keep time in steps that two writes may fall into.
	for _, path := range []string{renewed.Certificate, renewed.Key} {
		check(t, os.Chtimes(path, time.Now(), time.Now().Add(time.Second)))
	}
	if who, err := once(h.entry); err != nil || who != "on b" {
		t.Errorf("with a renewed certificate, answered by %q, %v", who, err)
	}
}

// A newer proxy goes on with the port for other hosts, and what is open stays.
func TestTakeOverBetweenHosts(t *testing.T) {
	h := newTwoHosts(t, named(t, "on b"))
	c := mustCall(t, h.entry)
	if _, err := c.ask(); err != nil {
		t.Fatal(err)
	}
	newer := spawn(t, h.b.socket, true)
	eventually(t, "the newer proxy has taken over", func() (bool, string) {
		s, err := ask(t, h.b.socket)
		if err != nil {
			return false, err.Error()
		}
		return s.PID == newer.Process.Pid && s.Leaving == 1, fmt.Sprintf("%+v", s)
	})
	if who, err := c.ask(); err != nil || who != "on b" {
		t.Errorf("what was open is answered by %q, %v", who, err)
	}
	if who, err := once(h.entry); err != nil || who != "on b" {
		t.Errorf("what is new is answered by %q, %v", who, err)
	}
	check(t, c.Close())
}

func TestConfigsOfPeers(t *testing.T) {
	ca := newAuthority(t)
	at, there := netip.MustParseAddrPort("127.0.0.1:1"), netip.MustParseAddrPort("127.0.0.1:2")
	good := func() Config {
		c := waitingFor(at, ca.host("b"), "a", map[string]Backend{"web:80": active("web", there)})
		c.Listeners = append(c.Listeners, Listener{ID: "web", Address: there, Backends: []Backend{remote("x", at, "a", "x:80")}})
		return c
	}
	c := good()
	check(t, c.Validate())
	for want, spoil := range map[string]func(c *Config){
		"there is no peering":                func(c *Config) { c.Peering = nil },
		"not an absolute path":               func(c *Config) { c.Peering.Key = "key" },
		"target has 0 bytes":                 func(c *Config) { c.Listeners[1].Backends[0].Target = "" },
		"peer has 0 bytes":                   func(c *Config) { c.Listeners[1].Backends[0].Peer = "" },
		"has no netns":                       func(c *Config) { c.Listeners[1].Backends[0].Netns = "/x" },
		"no visible character":               func(c *Config) { c.Listeners[0].Routes[0].Names[0] = "a b" },
		"only routes of peer have one":       func(c *Config) { c.Listeners[0].Routes[0].Protocol = TCP },
		"the PROXY protocol is not for udp":  func(c *Config) { r := &c.Listeners[0].Routes[0]; r.Protocol, r.ProxyProtocol = UDP, ProxyV2 },
		"peers are for the protocol peer":    func(c *Config) { c.Listeners[1].Peers = []string{"a"} },
		"a peer's name has 0 bytes":          func(c *Config) { c.Listeners[0].Peers = []string{""} },
		"is not led on to another":           func(c *Config) { c.Listeners[0].Routes[0].Backends[0] = remote("x", at, "c", "x:80") },
		"backends of peer belong to its rou": func(c *Config) { c.Listeners[0].Backends = []Backend{active("x", at)} },
	} {
		c := good()
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
