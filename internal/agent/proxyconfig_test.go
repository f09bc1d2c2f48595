package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/guest/guesttest"
	"github.com/pinnacehq/pinnace/internal/proxy"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestPortsOfAllKinds: UDP beside TCP at the same numbers, and a PROXY header wherever connections come from.
func TestPortsOfAllKinds(t *testing.T) {
	l := newLab(t)
	l.runs("ns", l.serves(&answer{}, 53))
	l.start()
	l.deploy("ns-1", l.app("ns",
		`ports.dns = { port = 53, protocol = "udp", expose = "public", public_port = 53 }`,
		`ports.dnstcp = { port = 53, expose = "public", edge = "raw", public_port = 53 }`,
		`ports.secret = { port = 99, protocol = "udp", expose = "none" }`,
	))
	for id, want := range map[string]string{
		"public/0.0.0.0:53": proxy.TCP, "public/0.0.0.0:53/udp": proxy.UDP,
		"internal/dev/ns/10.101.0.2:53": proxy.TCP, "internal/dev/ns/10.101.0.2:53/udp": proxy.UDP,
	} {
		ln, ok := l.proxy.listener(id)
		if !ok || ln.Protocol != want || len(ln.Backends) != 1 || ln.ProxyProtocol != "" {
			t.Errorf("%s: got %+v, %v", id, ln, ok)
		}
	}
	l.proxy.do(func() {
		if n := len(l.proxy.config.Listeners); n > 6 { // IPv4 and IPv6 inside, one outside, of two ports
			t.Errorf("%d listeners", n)
		}
	})
}

// announced is a listener whose connections must begin with a PROXY header that names nobody.
type announced struct {
	net.Listener
	wrong chan<- error
}

func (a announced) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, len(proxy.LocalHeader()))
	if _, err := io.ReadFull(c, b); err != nil || !bytes.Equal(b, proxy.LocalHeader()) {
		select {
		case a.wrong <- errors.Join(err, errors.New("a connection began with "+string(b))):
		default:
		}
	}
	return c, c.SetReadDeadline(time.Time{})
}

// TestProbesSendAHeader: what reads a PROXY header first is probed with one, over HTTP and without.
func TestProbesSendAHeader(t *testing.T) {
	for name, ready := range map[string]string{
		"default": "",
		"http":    "[health.ready]\ntype = \"http\"\nport = \"web\"\n",
		"tcp":     "[health.ready]\ntype = \"tcp\"\nport = \"web\"\n",
	} {
		t.Run(name, func(t *testing.T) { probeWithHeader(t, ready) })
	}
}

func probeWithHeader(t *testing.T, ready string) {
	l := newLab(t)
	wrong := make(chan error, 1)
	l.runs("api", func(ctx context.Context, g *vmtest.FakeGuest) vmtest.End {
		return playing(guesttest.Workload{Run: func(ctx context.Context, _ *guesttest.Process) int {
			ln, err := l.net.listen(g.Spec.NIC.Tap, 8080)
			if err != nil {
				return 98
			}
			srv := &http.Server{Handler: &answer{}, ReadHeaderTimeout: time.Second}
			served := make(chan error, 1)
			go func() { served <- srv.Serve(announced{ln, wrong}) }()
			defer func() { _ = srv.Close(); <-served }()
			<-ctx.Done()
			return 0
		}})(ctx, g)
	})
	l.start()
	l.deploy("api-1", l.app("api", `ports.web = { port = 8080, expose = "public", edge = "raw", public_port = 80, proxy_protocol = "v2" }`, ready))
	for _, id := range []string{"public/0.0.0.0:80", "internal/dev/api/10.101.0.2:8080"} {
		if ln, ok := l.proxy.listener(id); !ok || ln.ProxyProtocol != proxy.ProxyV2 {
			t.Errorf("%s: got %+v, %v", id, ln, ok)
		}
	}
	select {
	case err := <-wrong:
		t.Errorf("%q: %v", ready, err)
	default:
	}
}
