package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
)

// misbehaviours are what a server can do instead of an answer. good is what it would have sent.
var misbehaviours = map[string]func(w http.ResponseWriter, req *http.Request, good []byte){
	"body without end": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		flush(w)
		for range 64 {
			if _, err := w.Write(bytes.Repeat([]byte(" "), 1<<20)); err != nil {
				return
			}
		}
	},
	"error without end": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.WriteHeader(http.StatusBadRequest)
		for range 64 {
			if _, err := w.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
				return
			}
		}
	},
	"header without end": raw(func(c net.Conn, _ *http.Request) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n")
		for i := range 1 << 20 {
			if _, err := fmt.Fprintf(c, "X-%d: %s\r\n", i, strings.Repeat("y", 1000)); err != nil {
				return
			}
		}
	}),
	"hints without end": raw(func(c net.Conn, _ *http.Request) {
		for range 1 << 20 {
			if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"); err != nil {
				return
			}
		}
	}),
	"silence":           func(_ http.ResponseWriter, req *http.Request, _ []byte) { <-req.Context().Done() },
	"silence in header": raw(func(c net.Conn, req *http.Request) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nX-A"); wait(c) }),
	"silence in body": func(w http.ResponseWriter, req *http.Request, good []byte) {
		w.Header().Set("Content-Length", strconv.Itoa(len(good)))
		_, _ = w.Write(good[:1])
		flush(w)
		<-req.Context().Done()
	},
	"silence at the end": func(w http.ResponseWriter, req *http.Request, good []byte) {
		flush(w)
		_, _ = w.Write(good)
		flush(w)
		<-req.Context().Done()
	},
	"a byte now and then": func(w http.ResponseWriter, req *http.Request, good []byte) {
		w.Header().Set("Content-Length", strconv.Itoa(len(good)))
		for i := range good {
			if _, err := w.Write(good[i : i+1]); err != nil || req.Context().Err() != nil {
				return
			}
			flush(w)
			select {
			case <-req.Context().Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	},
	"end of connection": raw(func(net.Conn, *http.Request) {}),
	"reset":             raw(func(c net.Conn, _ *http.Request) { _ = c.(*net.TCPConn).SetLinger(0) }),
	"no HTTP":           raw(func(c net.Conn, _ *http.Request) { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n\r\n") }),
	"no chunks": raw(func(c net.Conn, _ *http.Request) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzzz\r\n")
	}),
	"two lengths": raw(func(c net.Conn, _ *http.Request) {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello!!")
	}),
	"another protocol": raw(func(c net.Conn, _ *http.Request) {
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: evil\r\nConnection: Upgrade\r\n\r\n")
		wait(c)
	}),
	"too short": func(w http.ResponseWriter, _ *http.Request, good []byte) {
		w.Header().Set("Content-Length", strconv.Itoa(len(good)))
		_, _ = w.Write(good[:len(good)-1])
	},
	"too short, cleanly": func(w http.ResponseWriter, _ *http.Request, good []byte) {
		flush(w)
		_, _ = w.Write(good[:len(good)-1])
	},
	"one byte more": func(w http.ResponseWriter, _ *http.Request, good []byte) {
		flush(w)
		_, _ = w.Write(append(slices.Clone(good), '\n'))
	},
	"one bit flipped": func(w http.ResponseWriter, _ *http.Request, good []byte) {
		bad := slices.Clone(good)
		bad[len(bad)/2] ^= 1
		_, _ = w.Write(bad)
	},
	"nothing":    func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusOK) },
	"no content": func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusNoContent) },
	"an unasked part": func(w http.ResponseWriter, _ *http.Request, good []byte) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(good)-1, len(good)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(good)
	},
	"a web page": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html><body>Please log in to the hotel's WLAN</body></html>")
	},
	"compressed by itself": func(w http.ResponseWriter, _ *http.Request, good []byte) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(append([]byte{0x1f, 0x8b}, good...))
	},
	"itself for ever": func(w http.ResponseWriter, req *http.Request, _ []byte) {
		http.Redirect(w, req, req.URL.Path, http.StatusFound)
	},
	"a redirect to nowhere": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("Location", "http://[::1]:namedport/\x7f")
		w.WriteHeader(http.StatusFound)
	},
	"a redirect without target": func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(http.StatusFound) },
	"refused for ever": func(w http.ResponseWriter, req *http.Request, _ []byte) {
		w.Header().Set("WWW-Authenticate", headerOf("Bearer", "http://"+req.Host+"/token"))
		w.WriteHeader(http.StatusUnauthorized)
	},
	"another scope each time": func(w http.ResponseWriter, req *http.Request, _ []byte) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",scope="repository:%d:pull"`, req.Host, time.Now().UnixNano()))
		w.WriteHeader(http.StatusUnauthorized)
	},
	"challenges without end": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("WWW-Authenticate", strings.Repeat(`Basic realm="x", `, 3000))
		w.WriteHeader(http.StatusUnauthorized)
	},
	"a challenge in other letters": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("WWW-Authenticate", "Bearer "+strings.Repeat("\u023a", 50)+" realm=\"x\xff")
		w.WriteHeader(http.StatusUnauthorized)
	},
	"forbidden":             status(http.StatusForbidden),
	"not found":             status(http.StatusNotFound),
	"a teapot":              status(http.StatusTeapot),
	"gone":                  status(http.StatusGone),
	"500":                   status(http.StatusInternalServerError),
	"503 storm":             status(http.StatusServiceUnavailable),
	"429 storm":             status(http.StatusTooManyRequests),
	"429 at once":           patience(http.StatusTooManyRequests, "0"),
	"429 for a day":         patience(http.StatusTooManyRequests, "86400"),
	"429 for ever":          patience(http.StatusTooManyRequests, "99999999999999999999"),
	"429 in the past":       patience(http.StatusTooManyRequests, "Wed, 21 Oct 2015 07:28:00 GMT"),
	"429 in the far future": patience(http.StatusTooManyRequests, "Wed, 21 Oct 2315 07:28:00 GMT"),
	"429 of nonsense":       patience(http.StatusTooManyRequests, "-1; \x01"),
	"503 for a day":         patience(http.StatusServiceUnavailable, "86400"),
	"an error in other words": func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `{"errors":[{"code":"\u001b[2J","message":"\u001b]0;x\u0007`+strings.Repeat("long ", 1000)+`\n\n"}]}`)
	},
}

func status(code int) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) { w.WriteHeader(code) }
}

func patience(code int, value string) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		w.Header().Set("Retry-After", value)
		w.WriteHeader(code)
	}
}

// raw answers with bytes of its own.
func raw(answer func(net.Conn, *http.Request)) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, req *http.Request, _ []byte) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		answer(conn, req)
	}
}

// wait waits until the other side has enough.
func wait(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }

// stages are the requests that a pull makes, by path, and the misbehaviours that do no harm there.
var stages = map[string]struct {
	path func(f *fakeRegistry) string
	good func(f *fakeRegistry) []byte
	fine []string
}{
	"greeting": {
		func(*fakeRegistry) string { return "/v2/" }, func(*fakeRegistry) []byte { return []byte("{}") },
		// What is in the answer is of no interest.
		[]string{
			"body without end", "silence in body", "silence at the end", "a byte now and then", "too short", "too short, cleanly",
			"one byte more", "one bit flipped", "nothing", "a web page", "compressed by itself", "forbidden", "not found", "no chunks",
			"refused for ever", "another scope each time", // it has a token then
		},
	},
	"token": {
		func(*fakeRegistry) string { return "/token" }, func(*fakeRegistry) []byte { return []byte(`{"token":"issued"} `) },
		[]string{"one byte more", "too short, cleanly"}, // white space
	},
	"manifest": {
		func(*fakeRegistry) string { return "/v2/web/manifests/1" }, func(f *fakeRegistry) []byte { return f.manifest },
		[]string{"one byte more"}, // is another manifest of the same meaning
	},
	"manifest by digest": {
		func(f *fakeRegistry) string { return "/v2/web/manifests/" + digestOf(f.manifest) }, func(f *fakeRegistry) []byte { return f.manifest }, nil,
	},
	"config": {
		func(f *fakeRegistry) string { return "/v2/web/blobs/" + digestOf(f.config) }, func(f *fakeRegistry) []byte { return f.config },
		[]string{"silence at the end"},
	},
	"layer": {
		func(f *fakeRegistry) string { return "/v2/web/blobs/" + digestOf(f.layer) }, func(f *fakeRegistry) []byte { return f.layer },
		[]string{"silence at the end"},
	},
}

// TestEvilAnswers: whatever a server does at whatever step of a pull, the pull ends soon, with the right bytes
// or one clear error, and the credentials have gone nowhere.
func TestEvilAnswers(t *testing.T) {
	var cases sync.WaitGroup // they wait most of the time, so all run at once
	slots := make(chan struct{}, 32)
	count := 0
	for stage, s := range stages {
		for _, how := range slices.Sorted(maps.Keys(misbehaviours)) {
			count++
			fine := slices.Contains(s.fine, how)
			cases.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				evilAnswer(t, stage+": "+how, s.path, s.good, misbehaviours[how], stage == "manifest by digest", fine)
			})
		}
	}
	cases.Wait()
	t.Logf("%d cases", count)
	if count < 250 {
		t.Errorf("only %d cases", count)
	}
}

func evilAnswer(t *testing.T, name string, path func(*fakeRegistry) string, good func(*fakeRegistry) []byte,
	answer func(http.ResponseWriter, *http.Request, []byte), byDigest, fine bool,
) {
	f := newFakeRegistry(t)
	f.bearer(f.server.URL+"/token", "issued")
	f.handle("/token", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"token":"issued"}`) })
	bytes := good(f)
	at := path(f)
	f.mu.Lock()
	was := f.handlers[at]
	f.mu.Unlock()
	f.handle(at, func(w http.ResponseWriter, req *http.Request) {
		if at != "/token" && at != "/v2/" && req.Header.Get("Authorization") == "" {
			was(w, req) // which asks for a token first
			return
		}
		answer(w, req, bytes)
	})
	c := newClient(t, Options{Keychain: perHost{f.addr: {"alice", canaryPassword}}})
	c.limits.window, c.transports.network.header = 300*time.Millisecond, 300*time.Millisecond
	if fine { // and must not fail because the machine is busy
		c.limits.window, c.transports.network.header = 3*time.Second, 3*time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	started := time.Now()
	err := pullOnce(ctx, c, f, byDigest)
	switch {
	case ctx.Err() != nil:
		t.Errorf("%s: it hung", name)
	case (err == nil) != fine:
		t.Errorf("%s: got %v after %v", name, err, time.Since(started))
	case err != nil:
		if e, ok := errors.AsType[*Error](err); !ok || e.Kind == nil || e.Registry == "" && !errors.Is(err, ErrWrongContent) {
			t.Errorf("%s: an error that does not say whose it is: %v", name, err)
		}
		if text := err.Error(); len(text) > 900 || strings.ContainsAny(text, "\n\r\x1b\x07") || strings.Contains(text, "CANARY") {
			t.Errorf("%s: not fit for a terminal: %q", name, text)
		}
	}
}

func pullOnce(ctx context.Context, c *Client, f *fakeRegistry, byDigest bool) error {
	ref := f.addr + "/web:1"
	if byDigest {
		ref = f.addr + "/web@" + digestOf(f.manifest)
	}
	image, err := c.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	blob, err := c.Blob(ctx, image.Repository, digestOf(f.layer), int64(len(f.layer)))
	if err != nil {
		return err
	}
	b, err := io.ReadAll(blob)
	if err := errors.Join(err, blob.Close()); err != nil {
		return err
	}
	if digestOf(b) != digestOf(f.layer) { // as the store does
		return wrongContent("the layer has another digest")
	}
	return nil
}

// TestNearAndFar: a registry can lead no nearer to this machine than it is itself, and never to the places that
// are nobody's.
func TestNearAndFar(t *testing.T) {
	n := newInternet(t, map[string]string{
		"far.example": "203.0.113.1", "near.example": "10.0.0.1", "here.example": "127.0.0.1",
		"storage.far.example": "203.0.113.2", "storage.near.example": "10.9.9.9", "storage.here.example": "127.0.0.2", "storage.never.example": "169.254.169.254",
	})
	order := []string{"far", "near", "here", "never"}
	for i, from := range order[:3] {
		for j, to := range order {
			t.Run(from+" to "+to, func(t *testing.T) {
				layer := []byte("layer")
				n.begin(func(w http.ResponseWriter, req *http.Request) {
					switch {
					case strings.HasPrefix(req.Host, "storage."):
						_, _ = w.Write(layer)
					case strings.Contains(req.URL.Path, "/blobs/"):
						http.Redirect(w, req, "https://storage."+to+".example/x", http.StatusFound)
					}
				})
				c := n.over(newClient(t, Options{Keychain: evilCredential{config: &authn.AuthConfig{}}}))
				_, err := readAll(c, from+".example/web", layer)
				if good := j <= i; (err == nil) != good {
					t.Errorf("got %v", err)
				}
				if err != nil && !errors.Is(err, ErrForbidden) {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// TestProxyIsNotTheRegistry: it may be near, which says nothing about where the registry is.
func TestProxyIsNotTheRegistry(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	over := theInternet()
	d := dialer{network: over, reach: reachPublic}
	if _, err := d.dial(t.Context(), "tcp", server.Addr().String()); !errors.Is(err, ErrForbidden) {
		t.Errorf("without a proxy: got %v", err)
	}
	d.proxies.Store(server.Addr().String(), struct{}{})
	conn, err := d.dial(t.Context(), "tcp", server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		t.Error("it looks like a registry on this machine")
	}
}
