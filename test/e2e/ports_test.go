package e2e

import (
	"bufio"
	"fmt"
	"net"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestPorts reaches an instance in the ways that are not plain TCP: by UDP, and over a port whose process is told by a
// PROXY header who connects.
func TestPorts(t *testing.T) {
	l := newLab(t)
	port, udp, told := freePort(t), freePort(t), freePort(t)
	m := l.manifest("app", web("app", port)+fmt.Sprintf(`
[ports.echo]
port        = 5300
protocol    = "udp"
expose      = "public"
edge        = "raw"
public_port = %d

[ports.told]
port           = 9000
expose         = "public"
edge           = "raw"
public_port    = %d
proxy_protocol = "v2"
`, udp, told))
	image := l.push("app", "v1", workloadImage(t, "1", func(c *v1.Config) { c.Env = append(c.Env, "PORTS=1") }))
	l.must("deploy", "-f", m, "--image", image)

	conn := l.dial("udp", udp)
	for i := range 50 {
		want := fmt.Sprintf("packet %d", i)
		if _, err := conn.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 100)
		n, err := conn.Read(got)
		if err != nil || string(got[:n]) != want {
			t.Fatalf("sent %q, got %q, %v", want, got[:n], err)
		}
	}

	conn = l.dial("tcp", told)
	lines := bufio.NewReader(conn)
	if got, err := lines.ReadString('\n'); got != conn.LocalAddr().String()+"\n" {
		t.Errorf("the process was told that %q connects, want %q (%v)", got, conn.LocalAddr(), err)
	}
	if _, err := fmt.Fprintln(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if got, err := lines.ReadString('\n'); got != "hello\n" {
		t.Errorf("got %q behind the header, %v", got, err)
	}
}

// dial connects to a public port, for a moment.
func (l *lab) dial(network string, port int) net.Conn {
	l.t.Helper()
	conn, err := net.Dial(network, fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	return conn
}
