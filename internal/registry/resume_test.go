package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// noise is content that does not compress and never repeats.
func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// flaky serves a blob and breaks off each answer after so many bytes. What it does to a request for the rest
// of it is up to the test; the bytes that left are counted.
type flaky struct {
	content []byte
	every   int
	sent    atomic.Int64
	asked   atomic.Int32
	rest    func(w http.ResponseWriter, from int64) // nil is right
}

func (f *flaky) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.asked.Add(1)
	w.Header().Set("Etag", `"one"`)
	from := int64(0)
	if r := req.Header.Get("Range"); r != "" {
		from, _ = strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(r, "bytes="), "-"), 10, 64)
		if f.rest != nil {
			f.rest(w, from)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(f.content)-1, len(f.content)))
	}
	f.send(w, from, from > 0)
}

func (f *flaky) send(w http.ResponseWriter, from int64, partial bool) {
	w.Header().Set("Content-Length", strconv.FormatInt(int64(len(f.content))-from, 10))
	if partial {
		w.WriteHeader(http.StatusPartialContent)
	}
	n, _ := w.Write(f.content[from:min(len(f.content), int(from)+f.every)])
	f.sent.Add(int64(n))
	flush(w)
	if int(from)+f.every < len(f.content) {
		panic(http.ErrAbortHandler)
	}
}

func readAll(c *Client, repository string, content []byte) ([]byte, error) {
	r, err := c.Blob(context.Background(), repository, digestOf(content), int64(len(content)))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func TestBrokenTransferGoesOn(t *testing.T) {
	content := noise(300_000)
	for _, every := range []int{5000, 7777, 100_000, 299_999} {
		f := newFakeRegistry(t)
		server := &flaky{content: content, every: every}
		f.handle("/v2/web/blobs/"+digestOf(content), server.ServeHTTP)
		got, err := readAll(newClient(t, Options{}), f.addr+"/web", content)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("every %d: got %d bytes, %v", every, len(got), err)
		}
		if sent := server.sent.Load(); sent > int64(len(content))*12/10 {
			t.Errorf("every %d: %d bytes were sent for %d", every, sent, len(content))
		}
	}
}

func TestBrokenTransferGoesOnWithAFreshTokenAndRedirect(t *testing.T) {
	content := noise(100_000)
	f, storage := newFakeRegistry(t), newFakeRegistry(t)
	server := &flaky{content: content, every: 30_000}
	var signature atomic.Int32
	f.handle("/v2/web/blobs/"+digestOf(content), func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, fmt.Sprintf("%s/storage/%d", storage.server.URL, signature.Add(1)), http.StatusTemporaryRedirect)
	})
	for i := range 5 {
		path := fmt.Sprintf("/storage/%d", i)
		storage.handle(path, func(w http.ResponseWriter, req *http.Request) { // each is good once
			storage.handle(path, http.NotFound)
			server.ServeHTTP(w, req)
		})
	}
	f.protect()
	got, err := readAll(newClient(t, Options{Keychain: user{"alice", "secret"}}), f.addr+"/web", content)
	if err != nil || !bytes.Equal(got, content) || signature.Load() != 4 {
		t.Errorf("got %d bytes after %d redirects, %v", len(got), signature.Load(), err)
	}
	if c := storage.credentials(); len(c) > 0 {
		t.Errorf("the storage got credentials: %v", c)
	}
}

func TestBrokenTransferThatCannotGoOn(t *testing.T) {
	content := noise(200_000)
	size := int64(len(content))
	partial := func(value string, length int64) func(http.ResponseWriter, int64) {
		return func(w http.ResponseWriter, from int64) {
			w.Header().Set("Content-Range", strings.ReplaceAll(value, "FROM", strconv.FormatInt(from, 10)))
			w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
			w.WriteHeader(http.StatusPartialContent)
		}
	}
	var server *flaky
	cases := map[string]struct {
		every int
		rest  func(http.ResponseWriter, int64)
		kind  error
		want  string // in the error; empty when all ends well
		asked int32
	}{
		"ignores Range, late":  {every: 150_000, rest: func(w http.ResponseWriter, _ int64) { server.send(w, 0, false) }, kind: ErrUnreachable, want: "it ignores the Range", asked: 2},
		"ignores Range, early": {every: 20_000, rest: func(w http.ResponseWriter, _ int64) { _, _ = w.Write(content) }, asked: 2},
		"whole with other size": {every: 20_000, rest: func(w http.ResponseWriter, _ int64) {
			w.Header().Set("Content-Length", "199999")
			_, _ = w.Write(content[1:])
		}, kind: ErrWrongContent, want: "199999 bytes, but 200000 are declared", asked: 2},
		"another range":          {every: 50_000, rest: partial("bytes 0-199999/200000", size), kind: ErrWrongContent, want: `from byte 50000 of 200000, and answers with "bytes 0-199999/200000"`, asked: 2},
		"later":                  {every: 50_000, rest: partial("bytes 50001-199999/200000", size-50_001), kind: ErrWrongContent, want: "answers with", asked: 2},
		"past the end":           {every: 50_000, rest: partial("bytes FROM-200000/200001", size-50_000+1), kind: ErrWrongContent, want: "answers with", asked: 2},
		"another total":          {every: 50_000, rest: partial("bytes FROM-199999/999999", size-50_000), kind: ErrWrongContent, want: "answers with", asked: 2},
		"length contradicts":     {every: 50_000, rest: partial("bytes FROM-199999/200000", 5), kind: ErrWrongContent, want: "answers with", asked: 2},
		"no Content-Range":       {every: 50_000, rest: func(w http.ResponseWriter, _ int64) { w.WriteHeader(http.StatusPartialContent) }, kind: ErrWrongContent, want: `answers with ""`, asked: 2},
		"nonsense Content-Range": {every: 50_000, rest: partial("bytes zero-2/3", 1), kind: ErrWrongContent, want: "answers with", asked: 2},
		"not satisfiable":        {every: 50_000, rest: func(w http.ResponseWriter, _ int64) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, kind: ErrWrongContent, want: "nothing after byte 50000", asked: 2},
		"other entity tag": {every: 50_000, rest: func(w http.ResponseWriter, from int64) {
			w.Header().Set("Etag", `"two"`)
			partial("bytes FROM-199999/200000", size-from)(w, from)
		}, kind: ErrWrongContent, want: `its entity tag was "one", and is "two" now`, asked: 2},
		"gone":      {every: 50_000, rest: func(w http.ResponseWriter, _ int64) { w.WriteHeader(http.StatusNotFound) }, kind: ErrNotFound, want: "has no blob", asked: 2},
		"forbidden": {every: 50_000, rest: func(w http.ResponseWriter, _ int64) { w.WriteHeader(http.StatusForbidden) }, kind: ErrUnauthorized, want: "refuses", asked: 2},
		"a byte at a time": {every: 50_000, rest: func(w http.ResponseWriter, from int64) {
			partial("bytes FROM-199999/200000", size-from)(w, from)
			_, _ = w.Write(content[from : from+1])
			flush(w)
			panic(http.ErrAbortHandler)
		}, kind: ErrUnreachable, want: "broke off after 50003 of 200000 bytes", asked: maxAttempts},
		"in parts": {every: 50_000, rest: func(w http.ResponseWriter, from int64) {
			last := min(from+60_000, size) - 1
			partial(fmt.Sprintf("bytes FROM-%d/*", last), last-from+1)(w, from)
			_, _ = w.Write(content[from : last+1])
		}, asked: 4},
		"weak entity tag": {every: 50_000, rest: func(w http.ResponseWriter, from int64) {
			w.Header().Set("Etag", `W/"two"`)
			partial("bytes FROM-199999/200000", size-from)(w, from)
			_, _ = w.Write(content[from:])
		}, asked: 2},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFakeRegistry(t)
			server = &flaky{content: content, every: c.every, rest: c.rest}
			f.handle("/v2/web/blobs/"+digestOf(content), server.ServeHTTP)
			got, err := readAll(newClient(t, Options{}), f.addr+"/web", content)
			if c.want == "" {
				if err != nil || !bytes.Equal(got, content) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
			} else if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %v with %q", err, c.kind, c.want)
			}
			if n := server.asked.Load(); n != c.asked {
				t.Errorf("%d requests, want %d", n, c.asked)
			}
		})
	}
}

func TestTotalDeadline(t *testing.T) {
	f := newFakeRegistry(t)
	content := noise(1 << 20)
	f.handle("/v2/web/blobs/"+digestOf(content), func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		for i := 0; i < len(content) && req.Context().Err() == nil; i += 16 << 10 { // faster than the floor
			_, _ = w.Write(content[i : i+16<<10])
			flush(w)
			select {
			case <-time.After(20 * time.Millisecond):
			case <-req.Context().Done():
			}
		}
	})
	c := newClient(t, Options{})
	c.limits.total, c.limits.slowest, c.limits.atLeast = 100*time.Millisecond, 0, 1
	_, err := readAll(c, f.addr+"/web", content)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "takes too long for blob") {
		t.Errorf("got %v", err)
	}
}

func TestWindowsOfABody(t *testing.T) {
	l := limits{window: 30 * time.Second, atLeast: 30 << 10}
	feed := func(t *testing.T, chunk int, pauses ...time.Duration) error {
		r, w := io.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer w.Close()
			for _, p := range pauses {
				if _, err := w.Write(make([]byte, chunk)); err != nil {
					return
				}
				time.Sleep(p)
			}
		}()
		b := newBody(r, l, -1, cancel)
		_, err := io.Copy(io.Discard, b)
		err = errors.Join(err, b.Close()) // which ends the writer
		<-done
		return err
	}
	synctest.Test(t, func(t *testing.T) {
		// Much, then nothing for most of a window, again and again: slow, but it moves.
		if err := feed(t, 1<<20, 29*time.Second, 29*time.Second, 29*time.Second, 29*time.Second); err != nil {
			t.Errorf("bursts: got %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		// The first half minute had its megabyte, the second has nothing.
		if err := feed(t, 1<<20, time.Minute+time.Nanosecond); !errors.Is(err, errStalled) {
			t.Errorf("silence: got %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		// Just below, and just above the floor.
		pauses := make([]time.Duration, 200)
		for i := range pauses {
			pauses[i] = time.Second
		}
		if err := feed(t, 1000, pauses...); !errors.Is(err, errStalled) {
			t.Errorf("below: got %v", err)
		}
		if err := feed(t, 1100, pauses...); err != nil {
			t.Errorf("above: got %v", err)
		}
	})
}

func TestParseContentRange(t *testing.T) {
	for s, want := range map[string]contentRange{
		"bytes 0-0/1": {0, 0, 1}, "bytes 5-9/10": {5, 9, 10}, "Bytes 5-9/*": {5, 9, -1},
	} {
		if got, err := parseContentRange(s); err != nil || got != want {
			t.Errorf("%q: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "bytes", "bytes */10", "bytes 5-/10", "bytes -5/10", "bytes 9-5/10", "bytes 5-10/10", "bytes 0-1", "items 0-0/1",
		"bytes 0-99999999999999999999/*", "bytes +1-2/3", "bytes 1-2/3/4", "bytes  1-2/3", "bytes 1 - 2/3",
	} {
		if got, err := parseContentRange(s); err == nil {
			t.Errorf("%q: got %v", s, got)
		}
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-4/10")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseContentRange(s)
		if err != nil {
			return
		}
		if r.first < 0 || r.last < r.first || r.total >= 0 && r.total <= r.last || r.last-r.first+1 <= 0 {
			t.Errorf("%q: got %+v", s, r)
		}
	})
}
