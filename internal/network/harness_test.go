package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patient is how long a test waits for an answer that must come.
const patient = 5 * time.Second

// needRoot skips what makes namespaces, unless the whole suite was asked for.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("makes network namespaces: set PINNACE_E2E=1 to run it")
	}
}

// must returns v, or ends the test.
func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNetns makes a namespace of the test's own.
func newNetns(t testing.TB, name string) *namespace {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, createNamespace(path))
	ns, err := openNamespace(path)
	if err != nil {
		_ = removeNamespace(path)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = ns.close()
		if err := removeNamespace(path); err != nil {
			t.Error(err)
		}
	})
	lo := must[netlink.Link](t)(ns.links.LinkByName("lo"))
	check(t, ns.links.LinkSetUp(lo))
	return ns
}

// connect joins two namespaces with a pair of links and gives each end an address.
func connect(t testing.TB, a *namespace, nameA, addrA string, b *namespace, nameB, addrB string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nameA
	check(t, a.links.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: nameB, PeerNamespace: netlink.NsFd(int(b.file.Fd())),
	}))
	for _, end := range []struct {
		ns         *namespace
		name, addr string
	}{{a, nameA, addrA}, {b, nameB, addrB}} {
		l := must[netlink.Link](t)(end.ns.links.LinkByName(end.name))
		check(t, replaceAddress(end.ns, l, netip.MustParsePrefix(end.addr)))
		check(t, end.ns.links.LinkSetUp(l))
	}
}

func (n *namespace) route(t testing.TB, dst, via string) {
	t.Helper()
	check(t, n.links.RouteReplace(&netlink.Route{
		Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(via),
	}))
}

// serve answers "hello from <name>" to every TCP connection and UDP packet at address.
func serve(t testing.TB, ns *namespace, name, address string) {
	t.Helper()
	var l net.Listener
	var p net.PacketConn
	check(t, ns.do(func() (err error) {
		if l, err = net.Listen("tcp", address); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp", address)
		return err
	}))
	done := make(chan struct{}, 2)
	go func() {
		defer func() { done <- struct{}{} }()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "hello from %s", name)
			_ = c.Close()
		}
	}()
	go func() {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 100)
		for {
			_, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = p.WriteTo([]byte("hello from "+name), from)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		_ = p.Close()
		<-done
		<-done
	})
}

// ask connects from ns and returns what the other side says.
func ask(ns *namespace, network, address string, patience time.Duration) (string, error) {
	var c net.Conn
	err := ns.do(func() (err error) {
		c, err = net.DialTimeout(network, address, patience)
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write([]byte("hi")); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// A guest is the kernel of one more namespace behind a tap: frames go to and fro between its own tap and the
// one that the Manager made, as a VMM would carry them.
type guest struct {
	*namespace
	*Attachment
	// wire is the Manager's tap: what a guest with root can write to.
	wire *os.File
}

func newGuest(t testing.TB, m *Manager, env, instance string) *guest {
	t.Helper()
	ctx := context.Background()
	at := must[*Attachment](t)(m.Attach(ctx, env, instance, 12345))
	g := &guest{namespace: newNetns(t, instance), Attachment: at}
	g.wire = must[*os.File](t)(m.OpenTap(ctx, env, instance))
	var nic *os.File
	check(t, g.do(func() (err error) {
		nic, err = openTap("eth0")
		return err
	}))
	l := must[netlink.Link](t)(g.links.LinkByName("eth0"))
	check(t, g.links.LinkSetHardwareAddr(l, at.MAC))
	check(t, g.links.LinkSetUp(l))
	check(t, replaceAddress(g.namespace, l, at.IPv4))
	check(t, replaceAddress(g.namespace, l, at.IPv6))
	g.route(t, "0.0.0.0/0", at.Gateway4.String())
	g.route(t, "::/0", at.Gateway6.String())
	// A bridge passes frames once the kernel has noticed, in its own time, that a port's other side is there.
	awaitUp(t, m.envs[env].ns, at.Tap)
	awaitUp(t, m.envs[env].ns, bridgeName)
	done := make(chan struct{}, 2)
	carry := func(to, from *os.File) {
		defer func() { done <- struct{}{} }()
		b := make([]byte, 1<<16)
		for {
			n, err := from.Read(b)
			if err != nil {
				return
			}
			_, _ = to.Write(b[:n])
		}
	}
	go carry(g.wire, nic)
	go carry(nic, g.wire)
	t.Cleanup(func() {
		_ = nic.Close()
		_ = g.wire.Close()
		<-done
		<-done
	})
	return g
}

func awaitUp(t testing.TB, ns *namespace, name string) {
	t.Helper()
	for deadline := time.Now().Add(patient); ; time.Sleep(time.Millisecond) {
		if must[netlink.Link](t)(ns.links.LinkByName(name)).Attrs().OperState == netlink.OperUp {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("link %s does not come up", name)
		}
	}
}

// send writes a frame as the guest's kernel never would.
func (g *guest) send(t testing.TB, frame []byte) {
	t.Helper()
	// Ten bytes of an empty virtio-net header come first.
	if _, err := g.wire.Write(append(make([]byte, 10), frame...)); err != nil {
		t.Fatal(err)
	}
}

// A world is a host with a way out: "outside" is at 192.0.2.1, the host at 192.0.2.2 and, on a second link
// where "neighbour" is, at 198.51.100.2.
type world struct {
	host, outside, neighbour *namespace
	hostPath                 string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	needRoot(t)
	w := &world{host: newNetns(t, "host"), outside: newNetns(t, "outside"), neighbour: newNetns(t, "neighbour")}
	w.hostPath = w.host.file.Name()
	connect(t, w.host, "wan0", "192.0.2.2/24", w.outside, "eth0", "192.0.2.1/24")
	connect(t, w.host, "lan0", "198.51.100.2/24", w.neighbour, "eth0", "198.51.100.1/24")
	w.host.route(t, "0.0.0.0/0", "192.0.2.1")
	w.neighbour.route(t, "0.0.0.0/0", "198.51.100.2")
	return w
}

// manager opens a Manager whose host is w's, and cleans it up at the end of the test.
func (w *world) manager(t testing.TB, runDir, prefix string) *Manager {
	t.Helper()
	m := must[*Manager](t)(New(Options{
		RunDir: runDir, Prefix: prefix, HostNetns: w.hostPath, Uplink: Uplink{Mode: UplinkHost},
	}))
	t.Cleanup(func() {
		if err := m.CleanUp(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
		check(t, m.Close())
	})
	return m
}

// left lists what a prefix has left in ns and in a run directory.
func left(t testing.TB, ns *namespace, runDir, prefix string) []string {
	t.Helper()
	var out []string
	for _, l := range must[[]netlink.Link](t)(ns.links.LinkList()) {
		if strings.HasPrefix(l.Attrs().Name, prefix+"-") {
			out = append(out, "link "+l.Attrs().Name)
		}
	}
	c, err := ns.filters()
	check(t, err)
	tables, err := c.ListTables()
	check(t, err)
	for _, table := range tables {
		if strings.Contains(table.Name, "pinnace_"+prefix) {
			out = append(out, "table "+table.Name)
		}
	}
	for _, dir := range []string{"netns", "environments"} {
		entries, err := os.ReadDir(filepath.Join(runDir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	mounts := must[[]byte](t)(os.ReadFile("/proc/self/mountinfo"))
	if strings.Contains(string(mounts), runDir+"/") {
		out = append(out, "a mount below "+runDir)
	}
	return out
}

func sysctlValue(t testing.TB, ns *namespace, name string) string {
	t.Helper()
	var b []byte
	check(t, ns.do(func() (err error) {
		b, err = os.ReadFile("/proc/sys/net/" + name)
		return err
	}))
	return strings.TrimSpace(string(b))
}

// ethernet, arp and udp4 build frames field by field, true or false ones.
func ethernet(dst, src net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := append(append([]byte{}, dst...), src...)
	return append(append(f, byte(kind>>8), byte(kind)), payload...)
}

func arpReply(senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 2}
	b = append(append(b, senderMAC...), sender.AsSlice()...)
	return append(append(b, targetMAC...), target.AsSlice()...)
}

func udp4(src, dst netip.AddrPort, payload string) []byte {
	size := 28 + len(payload)
	b := []byte{0x45, 0, byte(size >> 8), byte(size), 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	sum := checksum(b)
	b[10], b[11] = byte(sum>>8), byte(sum)
	size = 8 + len(payload)
	b = append(b, byte(src.Port()>>8), byte(src.Port()), byte(dst.Port()>>8), byte(dst.Port()))
	return append(append(b, byte(size>>8), byte(size), 0, 0), payload...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
