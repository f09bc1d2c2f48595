package network

import (
	"bufio"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/pinnacehq/pinnace/internal/durable"
)

func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	dir, otherDir := t.TempDir(), t.TempDir()
	m, other := w.manager(t, dir, "tstl"), w.manager(t, otherDir, "tstm")
	for range 2 { // a second time changes nothing
		for _, env := range []string{"red", "blue"} {
			must[*Namespace](t)(m.EnsureEnvironment(ctx, env))
			must[*Attachment](t)(m.Attach(ctx, env, "one", 1))
		}
		must[*Namespace](t)(other.EnsureEnvironment(ctx, "red"))
	}
	if a, b := m.envs["red"].state.Uplink, other.envs["red"].state.Uplink; a == b {
		t.Errorf("two managers use the same uplink addresses %v", a)
	}
	if v := sysctlValue(t, w.host, "ipv4/ip_forward"); v != "1" {
		t.Errorf("ip_forward is %s while environments have uplinks", v)
	}
	check(t, m.CleanUp(ctx))
	check(t, m.CleanUp(ctx))
	if rest := left(t, w.host, dir, "tstl"); len(rest) > 0 {
		t.Errorf("left after clean-up: %q", rest)
	}
	if v := sysctlValue(t, w.host, "ipv4/ip_forward"); v != "1" {
		t.Errorf("ip_forward is %s while another manager needs it", v)
	}
	if rest := left(t, w.host, otherDir, "tstm"); len(rest) == 0 {
		t.Error("the other manager lost what it had")
	}
	check(t, other.RemoveEnvironment(ctx, "red"))
	check(t, other.RemoveEnvironment(ctx, "red"))
	check(t, other.CleanUp(ctx))
	if rest := left(t, w.host, otherDir, "tstm"); len(rest) > 0 {
		t.Errorf("left by the other manager: %q", rest)
	}
	if v := sysctlValue(t, w.host, "ipv4/ip_forward"); v != "0" {
		t.Errorf("ip_forward is %s after the last manager left", v)
	}
	c, err := w.host.filters()
	check(t, err)
	if tables, err := c.ListTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables left: %v (%v)", tables, err)
	}
}

func TestForwardingThatWasOnStaysOn(t *testing.T) {
	w := newWorld(t)
	check(t, w.host.do(func() error { return writeSysctls(sysctl{"ipv4/ip_forward", "1"}) }))
	m := w.manager(t, t.TempDir(), "tstf")
	must[*Namespace](t)(m.EnsureEnvironment(context.Background(), "red"))
	// The host was a router and goes on to be one.
	serve(t, w.outside, "outside", ":80")
	w.outside.route(t, "198.51.100.0/24", "192.0.2.2")
	if got, err := ask(w.neighbour, "tcp", "192.0.2.1:80", patient); err != nil {
		t.Errorf("through the host: %q, %v", got, err)
	}
	check(t, m.CleanUp(context.Background()))
	if v := sysctlValue(t, w.host, "ipv4/ip_forward"); v != "1" {
		t.Errorf("ip_forward is %s after clean-up", v)
	}
}

func TestAttachments(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	m := w.manager(t, t.TempDir(), "tste")
	if _, err := m.Attach(ctx, "red", "one", 1); !errors.Is(err, ErrNotFound) {
		t.Errorf("attach to no environment: %v", err)
	}
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	one := must[*Attachment](t)(m.Attach(ctx, "red", "one", 1001))
	two := must[*Attachment](t)(m.Attach(ctx, "red", "two", 1002))
	again := must[*Attachment](t)(m.Attach(ctx, "red", "one", 1003))
	if again.IPv4 != one.IPv4 || again.Tap != one.Tap || again.UID != 1003 {
		t.Errorf("attached again: %+v, first: %+v", again, one)
	}
	if one.IPv4 == two.IPv4 || one.IPv6 == two.IPv6 || one.MAC.String() == two.MAC.String() || one.Tap == two.Tap {
		t.Errorf("not distinct: %+v and %+v", one, two)
	}
	red := m.envs["red"].ns
	tap := must[netlink.Link](t)(red.links.LinkByName(one.Tap)).(*netlink.Tuntap)
	if tap.Owner != 1003 || tap.MasterIndex == 0 {
		t.Errorf("tap belongs to uid %d, bridge %d", tap.Owner, tap.MasterIndex)
	}
	f := must[*os.File](t)(m.OpenTap(ctx, "red", "one"))
	if _, err := m.OpenTap(ctx, "red", "one"); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("opened twice: %v", err)
	}
	must[*Attachment](t)(m.Attach(ctx, "red", "one", 1003)) // while a VMM has it
	check(t, m.Detach(ctx, "red", "one"))
	check(t, m.Detach(ctx, "red", "one"))
	check(t, f.Close())
	if _, err := m.OpenTap(ctx, "red", "one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("open after detach: %v", err)
	}
	if _, err := red.links.LinkByName(one.Tap); !isNoLink(err) {
		t.Errorf("tap after detach: %v", err)
	}
	if n := must[*Attachment](t)(m.Attach(ctx, "red", "one", 1)); n.IPv4 == one.IPv4 {
		t.Errorf("the address %v was given out again at once", n.IPv4)
	}
	if got, err := m.Attachments("red"); err != nil || len(got) != 2 || got[0].Instance != "one" {
		t.Errorf("attachments: %+v, %v", got, err)
	}
	check(t, m.SetVirtualAddresses(ctx, "red", []netip.Addr{netip.MustParseAddr("10.101.0.7")}))
	if err := m.SetVirtualAddresses(ctx, "red", []netip.Addr{netip.MustParseAddr("10.100.0.1")}); err == nil {
		t.Error("the gateway's address was accepted as a virtual one")
	}
}

// childEnv tells this test binary to be the process that gets killed.
const childEnv = "PINNACE_NETWORK_TEST_CHILD"

func TestMain(m *testing.M) {
	if runDir, host, ok := strings.Cut(os.Getenv(childEnv), ","); ok {
		beKilled(runDir, host)
		return
	}
	os.Exit(m.Run())
}

// beKilled makes networks, says so, and waits for its end.
func beKilled(runDir, host string) {
	ctx := context.Background()
	m, err := New(Options{RunDir: runDir, Prefix: "tstk", HostNetns: host, Uplink: Uplink{Mode: UplinkHost}})
	for _, env := range []string{"red", "blue"} {
		if err == nil {
			_, err = m.EnsureEnvironment(ctx, env)
		}
		for _, instance := range []string{"one", "two"} {
			if err == nil {
				_, err = m.Attach(ctx, env, instance, 7)
			}
		}
	}
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		return
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

// killed runs beKilled to its end.
func killed(t *testing.T, w *world, runDir string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+runDir+","+w.hostPath)
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	line, _ := bufio.NewReader(out).ReadString('\n')
	check(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if line != "ready\n" {
		t.Fatalf("child said %q", line)
	}
}

func TestKilledManagerIsFollowed(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	dir := t.TempDir()
	killed(t, w, dir)
	m := w.manager(t, dir, "tstk")
	if got := m.Environments(); !slices.Equal(got, []string{"blue", "red"}) {
		t.Fatalf("environments after the kill: %q", got)
	}
	before := must[[]Attachment](t)(m.Attachments("red"))
	if len(before) != 2 {
		t.Fatalf("attachments after the kill: %+v", before)
	}
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	one := newGuest(t, m, "red", "one")
	if one.IPv4 != before[0].IPv4 {
		t.Errorf("guest one has %v now and had %v", one.IPv4, before[0].IPv4)
	}
	serve(t, w.outside, "outside", ":80")
	if got, err := ask(one.namespace, "tcp", "192.0.2.1:80", patient); err != nil {
		t.Errorf("from the adopted network: %q, %v", got, err)
	}
	check(t, m.Detach(ctx, "blue", "one")) // without Ensure
	check(t, m.CleanUp(ctx))
	if rest := left(t, w.host, dir, "tstk"); len(rest) > 0 {
		t.Errorf("left after clean-up: %q", rest)
	}
	if v := sysctlValue(t, w.host, "ipv4/ip_forward"); v != "0" {
		t.Errorf("ip_forward is %s: what it was before was lost in the kill", v)
	}
}

// A crash can come between any two steps; here are the places that each leave something odd.
func TestHalfMadeNetworksAreRepaired(t *testing.T) {
	ctx := context.Background()
	for name, damage := range map[string]func(t *testing.T, w *world, dir string, m *Manager){
		"no namespace yet": func(t *testing.T, _ *world, _ string, m *Manager) {
			check(t, removeNamespace(m.netnsPath("red")))
		},
		"namespace file without its mount": func(t *testing.T, _ *world, _ string, m *Manager) {
			check(t, removeNamespace(m.netnsPath("red")))
			check(t, os.WriteFile(m.netnsPath("red"), nil, 0o600))
		},
		"namespace without state": func(t *testing.T, _ *world, _ string, m *Manager) {
			check(t, os.Remove(m.statePath("red")))
		},
		"state that is garbage": func(t *testing.T, _ *world, _ string, m *Manager) {
			check(t, os.WriteFile(m.statePath("red"), []byte(`{"guests":{"../x":{"index":1}}}`), 0o600))
		},
		"unfinished write": func(t *testing.T, _ *world, _ string, m *Manager) {
			f := must[*os.File](t)(durable.CreateTemp(filepath.Dir(m.statePath("red")), 0o600))
			check(t, f.Close())
		},
		"no uplink": func(t *testing.T, w *world, _ string, m *Manager) {
			l := must[netlink.Link](t)(w.host.links.LinkByName(m.prefix + "-u0"))
			check(t, w.host.links.LinkDel(l))
		},
		"uplink without a mark": func(t *testing.T, w *world, _ string, m *Manager) {
			l := must[netlink.Link](t)(w.host.links.LinkByName(m.prefix + "-u0"))
			check(t, w.host.links.LinkSetAlias(l, ""))
		},
		"tables gone": func(t *testing.T, w *world, _ string, _ *Manager) {
			c, err := w.host.filters()
			check(t, err)
			c.FlushRuleset()
			check(t, c.Flush())
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			w := newWorld(t)
			dir := t.TempDir()
			first := w.manager(t, dir, "tsth")
			must[*Namespace](t)(first.EnsureEnvironment(ctx, "red"))
			must[*Attachment](t)(first.Attach(ctx, "red", "one", 1))
			check(t, first.Close())
			damage(t, w, dir, first)
			m := w.manager(t, dir, "tsth")
			must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
			red := newGuest(t, m, "red", "one")
			serve(t, w.outside, "outside", ":80")
			if got, err := ask(red.namespace, "tcp", "192.0.2.1:80", patient); err != nil {
				t.Errorf("after the repair: %q, %v", got, err)
			}
			check(t, m.CleanUp(ctx))
			if rest := left(t, w.host, dir, "tsth"); len(rest) > 0 {
				t.Errorf("left after clean-up: %q", rest)
			}
		})
	}
}

func TestOneManagerPerDirectoryAndPrefix(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	m := w.manager(t, dir, "tstp")
	must[*Namespace](t)(m.EnsureEnvironment(context.Background(), "red"))
	open := func(dir string) error {
		second, err := New(Options{RunDir: dir, Prefix: "tstp", HostNetns: w.hostPath, Uplink: Uplink{Mode: UplinkHost}})
		if err == nil {
			check(t, second.Close())
		}
		return err
	}
	if err := open(dir); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("second manager in one directory: %v", err)
	}
	if err := open(t.TempDir()); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("second manager with one prefix: %v, want an error that names %s", err, dir)
	}
}

// Without HostNetns the host is the namespace of whoever calls New.
func TestHostIsTheCallersNamespace(t *testing.T) {
	w := newWorld(t)
	ctx := context.Background()
	dir := t.TempDir()
	var m *Manager
	check(t, w.host.do(func() (err error) {
		m, err = New(Options{RunDir: dir, Prefix: "tstc", Uplink: Uplink{Mode: UplinkHost}})
		return err
	}))
	defer func() { check(t, m.Close()) }()
	must[*Namespace](t)(m.EnsureEnvironment(ctx, "red"))
	if rest := left(t, w.host, dir, "tstc"); !slices.Contains(rest, "link tstc-u0") {
		t.Errorf("made elsewhere; the host has %q", rest)
	}
	check(t, m.CleanUp(ctx))
	if rest := left(t, w.host, dir, "tstc"); len(rest) > 0 {
		t.Errorf("left after clean-up: %q", rest)
	}
}

func TestDialIsInsideTheEnvironment(t *testing.T) {
	w := newWorld(t)
	m := w.manager(t, t.TempDir(), "tsti")
	at := netip.MustParseAddrPort("10.100.0.1:9000")
	if _, err := m.Dial(t.Context(), "red", at); !errors.Is(err, ErrNotFound) {
		t.Errorf("no environment: %v", err)
	}
	must[*Namespace](t)(m.EnsureEnvironment(t.Context(), "red"))
	if _, err := m.Dial(t.Context(), "red", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	serve(t, m.envs["red"].ns, "inside", at.String())
	c, err := m.Dial(t.Context(), "red", at)
	check(t, err)
	check(t, c.Close())
}
