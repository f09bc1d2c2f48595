package proxy

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// newNetns makes a namespace with its loopback up at path, until the end of the test.
func newNetns(t testing.TB, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("makes network namespaces: set PINNACE_E2E=1 to run it")
	}
	check(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		if err == nil {
			err = loopbackUp()
		}
		done <- err
	}()
	check(t, <-done)
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// inside opens the namespace for the test itself to use.
func inside(t testing.TB, path string) *namespace {
	t.Helper()
	ns, err := openNamespace(path)
	check(t, err)
	t.Cleanup(ns.close)
	return ns
}

func listenInside(t testing.TB, path, name, address string) {
	t.Helper()
	l, err := inside(t, path).listenNet(netip.MustParseAddrPort(address))
	check(t, err)
	serveOn(t, l, speak(name))
}

// dialInside connects from inside the namespace, with a connection as net has it.
func dialInside(ctx context.Context, t testing.TB, path, address string) (*net.TCPConn, error) {
	t.Helper()
	made, err := inside(t, path).dial(ctx, netip.MustParseAddrPort(address))
	if err != nil {
		return nil, err
	}
	defer func() { _ = made.Close() }() // FileConn takes a copy
	c, err := net.FileConn(made.file)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func askInside(t testing.TB, path, address string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := dialInside(ctx, t, path, address)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	return caller{c}.ask()
}

// Two environments with the same addresses, a public port each, and a virtual address each.
func TestNamespacesAreKeptApart(t *testing.T) {
	dir := t.TempDir()
	red, blue := filepath.Join(dir, "red"), filepath.Join(dir, "blue")
	config := Config{}
	public := map[string]netip.AddrPort{}
	for name, path := range map[string]string{"red": red, "blue": blue} {
		newNetns(t, path)
		listenInside(t, path, name, "127.100.0.2:8080")
		backends := []Backend{{ID: name, Netns: path, Address: netip.MustParseAddrPort("127.100.0.2:8080"), State: Active}}
		public[name] = freePort(t)
		config.Listeners = append(config.Listeners,
			Listener{ID: name + "/public", Address: public[name], Backends: backends},
			Listener{ID: name + "/virtual", Netns: path, Address: netip.MustParseAddrPort("127.101.0.1:80"), Backends: backends},
			Listener{ID: name + "/virtual6", Netns: path, Address: netip.MustParseAddrPort("[::1]:80"), Backends: backends})
		config.DNS = append(config.DNS, DNS{
			Netns: path, Addresses: []netip.AddrPort{netip.MustParseAddrPort("127.100.0.1:53"), netip.MustParseAddrPort("[::1]:53")},
			Records: map[string][]netip.Addr{name + ".internal": {netip.MustParseAddr("10.101.0.1")}},
		})
	}
	p := start(t, Options{})
	p.apply(config)
	for name, path := range map[string]string{"red": red, "blue": blue} {
		if who, err := once(public[name]); who != name || err != nil {
			t.Errorf("public port of %s: %q, %v", name, who, err)
		}
		for _, address := range []string{"127.101.0.1:80", "[::1]:80"} {
			if who, err := askInside(t, path, address); who != name || err != nil {
				t.Errorf("virtual address %s in %s: %q, %v", address, name, who, err)
			}
		}
		for _, other := range []string{"red", "blue"} {
			want := "NXDOMAIN"
			if other == name {
				want = "NOERROR 10.101.0.1"
			}
			for _, server := range []string{"127.100.0.1:53", "[::1]:53"} {
				c, err := dialInside(t.Context(), t, path, server)
				check(t, err)
				a, _, err := new(dns.Client).ExchangeWithConn(new(dns.Msg).SetQuestion(other+".internal.", dns.TypeA), &dns.Conn{Conn: c})
				check(t, err)
				_ = c.Close()
				if got := describe(a); got != want {
					t.Errorf("%s.internal in %s: %s, want %s", other, name, got, want)
				}
			}
		}
	}
	// Nothing of it is in the host's namespace.
	if c, err := net.Dial("tcp", "127.101.0.1:80"); err == nil {
		_ = c.Close()
		t.Error("a virtual address answers in the host's namespace")
	}
}

// The path of a namespace may come to lead to another one, and may not be there yet.
func TestNamespaceIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "red")
	p := start(t, Options{})
	at := freePort(t)
	backend := Backend{ID: "a", Netns: path, Address: netip.MustParseAddrPort("127.0.0.1:8080"), State: Active}
	config := one(at, backend)
	config.Listeners = append(config.Listeners, Listener{
		ID: "virtual", Netns: path, Address: netip.MustParseAddrPort("127.0.0.1:80"), Backends: []Backend{backend},
	})
	s, err := p.Apply(t.Context(), config)
	check(t, err)
	if l, _ := s.Listener("virtual"); !strings.Contains(l.Error, "no such file") {
		t.Errorf("before the namespace is there: %+v", l)
	}
	for _, name := range []string{"first", "second"} {
		newNetns(t, path)
		listenInside(t, path, name, "127.0.0.1:8080")
		if name == "second" {
			p.apply(config)
		}
		eventually(t, "the namespace is taken up", func() (bool, string) {
			who, err := once(at)
			who2, err2 := "", err
			if err == nil {
				who2, err2 = askInside(t, path, "127.0.0.1:80")
			}
			return who == name && who2 == name && err2 == nil, who + " " + who2
		})
		check(t, unix.Unmount(path, unix.MNT_DETACH))
	}
}
