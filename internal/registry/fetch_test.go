package registry

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestOverload(t *testing.T) {
	for _, status := range []int{429, 500, 502, 503, 504} {
		f := newFakeRegistry(t)
		var count atomic.Int32
		f.handle("/v2/web/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
			if count.Add(1) < 3 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(status)
				return
			}
			w.Header().Set("Content-Type", typeManifest)
			_, _ = w.Write(f.manifest)
		})
		if _, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1"); err != nil {
			t.Errorf("twice %d, then good: %v", status, err)
		}
		f.handle("/v2/web/manifests/1", func(w http.ResponseWriter, _ *http.Request) { count.Add(1); w.WriteHeader(status) })
		count.Store(0)
		_, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
		if !errors.Is(err, ErrUnreachable) || count.Load() != maxAttempts {
			t.Errorf("always %d: got %v after %d requests", status, err, count.Load())
		}
	}
}

func TestRetryAfterIsHonouredWithinReason(t *testing.T) {
	f := newFakeRegistry(t)
	var count atomic.Int32
	f.handle("/v2/web/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
		count.Add(1)
		w.Header().Set("Retry-After", "86400")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	_, err := newClient(t, Options{}).Resolve(t.Context(), f.addr+"/web:1")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no more requests") || count.Load() != 1 {
		t.Errorf("a day: got %v after %d requests", err, count.Load())
	}
	if d, ok := parseRetryAfter(time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)); !ok || d < 50*time.Second || d > time.Minute {
		t.Errorf("a date: got %v, %v", d, ok)
	}
	for _, bad := range []string{"", "-1", "soon", "99999999999"} {
		if d, ok := parseRetryAfter(bad); ok {
			t.Errorf("%q: got %v", bad, d)
		}
	}
}

func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })
		done := make(chan struct{})
		defer func() { <-done }()
		go func() { // a byte every ten seconds, for ever
			defer close(done)
			for {
				if _, err := w.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(10 * time.Second)
			}
		}()
		b := newBody(r, limits{window: 30 * time.Second, atLeast: 30 << 10}, -1, cancel)
		start := time.Now()
		n, err := io.Copy(io.Discard, b)
		if !errors.Is(err, errStalled) || time.Since(start) > time.Minute {
			t.Errorf("got %d bytes, %v after %v", n, err, time.Since(start))
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		// The reader may take its time.
		b := newBody(io.NopCloser(strings.NewReader("abc")), limits{window: 30 * time.Second, atLeast: 30 << 10}, 3, func(error) {})
		for _, want := range "abc" {
			var p [1]byte
			if _, err := b.Read(p[:]); err != nil || p[0] != byte(want) {
				t.Errorf("got %q, %v", p, err)
			}
			time.Sleep(time.Hour)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: got %v", err)
		}
	})
}
