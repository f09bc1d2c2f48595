// Package storetest is what every secret.Store has to do. It is imported by tests only.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/secret"
)

// Run has a store, which open opens each time anew, do all of it.
func Run(t *testing.T, open func() secret.Store, damage func(digest string)) {
	ctx := t.Context()
	s := open()
	if all, err := s.List(ctx); err != nil || len(all) != 0 {
		t.Fatalf("a new store has %v, %v", all, err)
	}
	before := time.Now().Add(-time.Minute)
	one, two := []byte("sealed"), bytes.Repeat([]byte{0, 1, 2, 255}, 70<<10)
	var digests []string
	for _, sealed := range [][]byte{one, two, one} { // again: the same
		digest, err := s.Put(ctx, sealed)
		if err != nil || digest != secret.Digest(sealed) {
			t.Fatalf("put: %q, %v", digest, err)
		}
		digests = append(digests, digest)
	}
	s = reopen(t, s, open)
	for i, want := range [][]byte{one, two} {
		if got, err := s.Get(ctx, digests[i]); err != nil || !bytes.Equal(got, want) {
			t.Errorf("got %d bytes of %d, %v", len(got), len(want), err)
		}
	}
	all, err := s.List(ctx)
	if err != nil || len(all) != 2 {
		t.Fatalf("the store has %v, %v", all, err)
	}
	for _, e := range all {
		if !slices.Contains(digests, e.Digest) || e.At.Before(before) || e.At.After(time.Now().Add(time.Minute)) {
			t.Errorf("the store has %+v", e)
		}
	}
	absent(ctx, t, s, secret.Digest([]byte("never")))
	for _, bad := range []string{"", "sha256:", "../../etc/passwd", "sha256:../x", "sha256:" + strings.Repeat("A", 64)} {
		if _, err := s.Get(ctx, bad); err == nil || errors.Is(err, secret.ErrNotFound) {
			t.Errorf("get %q: %v", bad, err)
		}
		if err := s.Remove(ctx, bad); err == nil {
			t.Errorf("removed %q", bad)
		}
	}
	damage(digests[1])
	if _, err := s.Get(ctx, digests[1]); !errors.Is(err, secret.ErrDamaged) {
		t.Errorf("other bytes under the name: %v", err)
	}
	for range 2 { // again: it is gone
		if err := s.Remove(ctx, digests[0]); err != nil {
			t.Error(err)
		}
	}
	absent(ctx, t, s, digests[0])
	s = reopen(t, s, open)
	absent(ctx, t, s, digests[0])
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func reopen(t *testing.T, s secret.Store, open func() secret.Store) secret.Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open()
}

func absent(ctx context.Context, t *testing.T, s secret.Store, digest string) {
	t.Helper()
	if _, err := s.Get(ctx, digest); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("get %s: %v, want that it is not there", digest, err)
	}
}
