package registry

import (
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// TestDebianMirror has Debian's registry as a cache in front of another.
func TestDebianMirror(t *testing.T) {
	origin, _ := serve(t)
	mirror := debianRegistry(t, "proxy:\n  remoteurl: http://"+origin+"\n")
	img := manyLayers(t, 3)
	put(t, origin+"/shop/web:1", img)
	said := &notices{}
	c := newClient(t, Options{Hosts: map[string]Host{origin: {Mirrors: []string{mirror}}}, Notice: said.add})
	if err := pullImage(t, c, origin+"/shop/web:1", img); err != nil || said.String() != "" {
		t.Errorf("got %v, notices %q", err, said)
	}
}

// TestDebianCuts breaks each connection off after so many bytes.
func TestDebianCuts(t *testing.T) {
	addr := debianRegistry(t, "")
	img, err := random.Image(3_000_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	img = forPlatform(t, img, "linux", "amd64")
	putAs(t, addr, "/shop/web:1", img, http.DefaultTransport, authn.Anonymous)
	cutter := newCutter(t, addr, 1_000_000)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	size, err := layers[0].Size()
	if err != nil {
		t.Fatal(err)
	}
	if err := pullImage(t, newClient(t, Options{}), cutter.addr+"/shop/web:1", img); err != nil {
		t.Error(err)
	}
	if sent := cutter.sent.Load(); sent > size*12/10 || cutter.cuts.Load() < 2 {
		t.Errorf("%d bytes for %d, after %d cuts", sent, size, cutter.cuts.Load())
	}
}

// cutter passes connections on and cuts them.
type cutter struct {
	addr string
	sent atomic.Int64 // bytes that the client was sent
	cuts atomic.Int32
}

func newCutter(t *testing.T, to string, after int64) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: l.Addr().String()}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				down.Close()
				continue
			}
			running.Go(func() { _, _ = io.Copy(up, down); up.Close() })
			running.Go(func() {
				n, err := io.CopyN(down, up, after)
				c.sent.Add(n)
				if err == nil {
					c.cuts.Add(1)
				}
				down.Close()
				up.Close()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return c
}
