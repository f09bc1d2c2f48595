package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// notices collects what a client says.
type notices struct {
	mu   sync.Mutex
	said []string
}

func (n *notices) add(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said = append(n.said, s)
}

func (n *notices) String() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.said, "\n")
}

// mirrored is a registry with a mirror that has the same image below the prefix hub.
func mirrored(t *testing.T, settings Host) (f, mirror *fakeRegistry, c *Client, said *notices) {
	t.Helper()
	f, mirror, said = newFakeRegistry(t), newFakeRegistry(t), &notices{}
	mirror.mu.Lock()
	for path, h := range mirror.handlers {
		mirror.handlers[strings.Replace(path, "/v2/web/", "/v2/hub/web/", 1)] = h
	}
	mirror.mu.Unlock()
	settings.Mirrors = append(settings.Mirrors, mirror.addr+"/hub")
	c = newClient(t, Options{
		Hosts: map[string]Host{f.addr: settings}, Notice: said.add,
		Keychain: perHost{f.addr: {"alice", "of the registry"}, mirror.addr: {"bob", "of the mirror"}},
	})
	return f, mirror, c, said
}

// pull resolves web:1 and reads its layer, as often as it takes when a mirror lies.
func pull(t *testing.T, f *fakeRegistry, c *Client) error {
	t.Helper()
	image, err := c.Resolve(t.Context(), f.addr+"/web:1")
	if err != nil {
		return err
	}
	layer := func() ([]byte, error) { return readAll(c, image.Repository, f.layer) }
	b, err := layer()
	if errors.Is(err, ErrMirror) {
		b, err = layer()
	}
	if err == nil && !bytes.Equal(b, f.layer) {
		err = errors.New("the layer is not the right one")
	}
	return err
}

func TestMirrorIsAskedForDigestsOnly(t *testing.T) {
	f, mirror, c, said := mirrored(t, Host{})
	mirror.handle("/v2/hub/web/manifests/1", func(http.ResponseWriter, *http.Request) { t.Error("the mirror was asked for a tag") })
	f.protect()
	mirror.protect()
	if err := pull(t, f, c); err != nil {
		t.Fatal(err)
	}
	for _, p := range f.paths() {
		if p != "/v2/" && p != "/v2/web/manifests/1" {
			t.Errorf("the registry was asked for %s", p)
		}
	}
	if got := strings.Join(mirror.paths(), " "); !strings.Contains(got, "/v2/hub/web/blobs/"+digestOf(f.layer)) || !strings.Contains(got, digestOf(f.config)) {
		t.Errorf("the mirror was asked for %s", got)
	}
	for who, r := range map[string]*fakeRegistry{"alice": f, "bob": mirror} {
		for _, header := range r.credentials() {
			req := http.Request{Header: http.Header{"Authorization": {header}}}
			if name, _, _ := req.BasicAuth(); name != who {
				t.Errorf("%s got the credentials of %q", r.addr, name)
			}
		}
	}
	if said.String() != "" {
		t.Errorf("notices: %s", said)
	}
}

func TestMirrorFails(t *testing.T) {
	other := []byte("another layer, as it is")
	cases := map[string]struct {
		change func(f, mirror *fakeRegistry)
		said   string
	}{
		"has nothing":     {func(_, m *fakeRegistry) { m.drop("/v2/hub/") }, "has no"},
		"is down":         {func(_, m *fakeRegistry) { m.server.Close() }, "nothing listens there"},
		"is overloaded":   {func(_, m *fakeRegistry) { m.all(http.StatusServiceUnavailable) }, "answers 503"},
		"rate limits":     {func(_, m *fakeRegistry) { m.all(http.StatusTooManyRequests) }, "allows no more requests"},
		"refuses":         {func(_, m *fakeRegistry) { m.all(http.StatusForbidden) }, "refuses to give"},
		"is no registry":  {func(_, m *fakeRegistry) { m.all(http.StatusTeapot) }, "answers 418"},
		"sends elsewhere": {func(_, m *fakeRegistry) { m.bearer("https://auth.evil.example/token", "x") }, "token_hosts"},
		"lies about a config": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.config), serveBytes(bytes.Replace(f.config, []byte("linux"), []byte("xinul"), 1)))
		}, "have the digest"},
		"lies about a layer": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.layer), serveBytes(other[:len(f.layer)]))
		}, "have the digest"},
		"has another size": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.layer), serveBytes(other))
		}, "are declared"},
		"goes on for ever": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.layer), func(w http.ResponseWriter, _ *http.Request) {
				flush(w)
				for range 64 {
					if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
						return
					}
				}
			})
		}, "have the digest"},
		"breaks off": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.layer), func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(f.layer[:9])
				flush(w)
				panic(http.ErrAbortHandler)
			})
		}, "broke off after 9 of"},
		"breaks off lying": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.layer), func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(other[:9])
				flush(w)
				panic(http.ErrAbortHandler)
			})
		}, "have the digest"},
		"stalls": {func(f, m *fakeRegistry) {
			m.handle("/v2/hub/web/blobs/"+digestOf(f.layer), func(w http.ResponseWriter, req *http.Request) {
				_, _ = w.Write(f.layer[:9])
				flush(w)
				<-req.Context().Done()
			})
		}, "broke off after 9 of"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f, mirror, client, said := mirrored(t, Host{})
			// So that a blob can be asked for by its rest.
			f.handle("/v2/web/blobs/"+digestOf(f.layer), func(w http.ResponseWriter, req *http.Request) {
				http.ServeContent(w, req, "", zeroTime, bytes.NewReader(f.layer))
			})
			c.change(f, mirror)
			if name == "stalls" {
				client.limits.window = 200 * time.Millisecond
			}
			for range 2 { // the second time what is wrong is known
				if err := pull(t, f, client); err != nil {
					t.Error(err)
				}
			}
			if !strings.Contains(said.String(), c.said) || !strings.Contains(said.String(), "mirror "+mirror.addr+" is passed over for "+f.addr) {
				t.Errorf("notices: got %q, want %q", said, c.said)
			}
			if n := strings.Count(said.String(), "\n"); n > 1 {
				t.Errorf("%d notices for one thing:\n%s", n+1, said)
			}
		})
	}
}

// TestMirrorThatIsDownIsNotAskedAgain: not for a while, so that one black hole does not cost a wait for each
// layer.
func TestMirrorThatIsDownIsNotAskedAgain(t *testing.T) {
	f, mirror, c, _ := mirrored(t, Host{})
	mirror.all(http.StatusBadGateway)
	for range 3 {
		if err := pull(t, f, c); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(mirror.paths()); n != 1 {
		t.Errorf("it was asked %d times", n)
	}
	c.limits.shun = 0
	c.mirrors = mirrorHealth{}
	if err := pull(t, f, c); err != nil {
		t.Fatal(err)
	}
	if n := len(mirror.paths()); n < 3 {
		t.Errorf("it was asked %d times, want again for each thing", n)
	}
}

// TestMirrorsInOrder also has the registry itself fail, which is then the error.
func TestMirrorsInOrder(t *testing.T) {
	second := newFakeRegistry(t)
	f, first, c, said := mirrored(t, Host{})
	settings := c.hosts[f.addr]
	settings.Mirrors = append(settings.Mirrors, second.addr)
	c.hosts[f.addr] = settings
	first.drop("/v2/hub/web/blobs/")
	if err := pull(t, f, c); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(second.paths(), " "); !strings.Contains(got, "/v2/web/blobs/"+digestOf(f.layer)) {
		t.Errorf("the second mirror was asked for %s", got)
	}
	second.drop("/v2/web/blobs/")
	f.drop("/v2/web/blobs/")
	if err := pull(t, f, c); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "registry "+f.addr) {
		t.Errorf("nobody has it: got %v", err)
	}
	if !strings.Contains(said.String(), second.addr) {
		t.Errorf("notices: %s", said)
	}
}

// TestMirrorGoesOnWhereTheOtherBrokeOff counts what came from where.
func TestMirrorGoesOnWhereTheOtherBrokeOff(t *testing.T) {
	f, mirror, c, _ := mirrored(t, Host{})
	content := noise(100_000)
	var sent atomic.Int64
	mirror.handle("/v2/hub/web/blobs/"+digestOf(content), func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(content[:60_000])
		flush(w)
		panic(http.ErrAbortHandler)
	})
	f.handle("/v2/web/blobs/"+digestOf(content), func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(counter{w, &sent}, req, "", zeroTime, bytes.NewReader(content))
	})
	got, err := readAll(c, f.addr+"/web", content)
	if err != nil || !bytes.Equal(got, content) || sent.Load() != 40_000 {
		t.Errorf("got %d bytes, %d of them from the registry, %v", len(got), sent.Load(), err)
	}
}

// counter counts what is sent before anybody can have it.
type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

// TestPushGoesPastMirrors: as does whatever asks what the registry itself has.
func TestPushGoesPastMirrors(t *testing.T) {
	f, mirror, c, _ := mirrored(t, Host{})
	f.drop("/v2/web/blobs/")
	if err := c.CheckBlob(t.Context(), f.addr+"/web", digestOf(f.layer), int64(len(f.layer))); !errors.Is(err, ErrNotFound) {
		t.Errorf("check: got %v", err)
	}
	_, err := c.Push(t.Context(), f.addr+"/web", newArtifact(Descriptor{MediaType: typeManifest, Digest: digestOf(f.manifest), Size: 1}, "x"))
	if err == nil {
		t.Error("a push into a registry that takes none went well")
	}
	if len(mirror.paths()) > 0 {
		t.Errorf("the mirror was asked for %v", mirror.paths())
	}
}

func TestBlobIsClosedEarly(t *testing.T) {
	f, _, c, _ := mirrored(t, Host{})
	r, err := c.Blob(t.Context(), f.addr+"/web", digestOf(f.layer), int64(len(f.layer)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 3)); err == nil {
		t.Error("it can be read after Close")
	}
}

func TestCheckHostAndMirror(t *testing.T) {
	for s, want := range map[string][2]bool{ // host, mirror
		"registry.example":          {true, true},
		"registry.example:5000":     {true, true},
		"127.0.0.1:5000":            {true, true},
		"[::1]:5000":                {true, true},
		"localhost":                 {true, true},
		"docker.io":                 {true, false}, // it is no mirror of anything
		"registry.example:5000/hub": {false, true},
		"registry.example/a/b":      {false, true},
		"registry.example/":         {false, false},
		"registry.example//a":       {false, false},
		"registry.example/UPPER":    {false, false},
		"https://registry.example":  {false, false},
		"https:":                    {false, false},
		"user@registry.example":     {false, false},
		"registry.example:":         {false, false},
		"registry.example:port":     {false, false},
		"*.example":                 {false, false},
		"":                          {false, false},
		"/":                         {false, false},
		"a b":                       {false, false},
	} {
		if got := [2]bool{CheckHost(s) == nil, CheckMirror(s) == nil}; got != want {
			t.Errorf("%q: got host %v, mirror %v; want %v", s, got[0], got[1], want)
		}
	}
}
