package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// outside is where the server of newOutside listens.
const outside = "192.0.2.77:80"

// newOutside makes a namespace that plays the outside, with a server in it, and returns its path.
func newOutside(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("pe2e-out-%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	ip("netns", "add", name)
	t.Cleanup(func() { ip("netns", "del", name) })
	ip("-n", name, "link", "set", "lo", "up")
	host, _, _ := net.SplitHostPort(outside)
	ip("-n", name, "address", "add", host+"/32", "dev", "lo")
	path := "/run/netns/" + name

	var l net.Listener
	listening := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		f, err := os.Open(path)
		if err == nil {
			err = errors.Join(unix.Setns(int(f.Fd()), unix.CLONE_NEWNET), f.Close())
		}
		if err == nil {
			l, err = net.Listen("tcp", outside)
		}
		listening <- err
	}()
	if err := <-listening; err != nil {
		t.Fatalf("listen outside: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return path
}

// TestEgress deploys an app with each value of network.egress and asks from inside what is in reach.
func TestEgress(t *testing.T) {
	if skip != "" {
		t.Skip(skip)
	}
	l := newLab(t, "--uplink", newOutside(t))
	ref := l.push("app", "v1", workloadImage(t, "1", nil))
	for _, egress := range []string{"all", "internal", "none"} {
		port := freePort(t)
		l.must("deploy", "-f", l.manifest(egress, web(egress, port)+"network.egress = \""+egress+"\"\n"), "--image", ref)
		reach := func(addr string) string { return l.get(port, "/reach?addr="+url.QueryEscape(addr)) }
		if got, want := reach(outside), egress == "all"; (got == "open") != want {
			t.Errorf("egress %s: the outside is %q", egress, got)
		}
		if got := reach("all.internal:8080"); got != "open" {
			t.Errorf("egress %s: a name of the environment is %q", egress, got)
		}
	}
}
