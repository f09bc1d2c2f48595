package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestUpdate: bundles go before the configuration, and further versions are answered, refused or never heard of.
func TestUpdate(t *testing.T) {
	first := Bundle{Name: "api", Version: 1, Values: SecretValues{"K": []byte("v")}}
	session(t, Options{HeartbeatTimeout: time.Hour}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
		go func() {
			g.send(Hello{Version: Version, Nonce: testNonce, Can: []string{CanSecrets}})
			if b, ok := g.next(g.reader).(Bundle); !ok || b.Version != 1 || string(b.Values["K"]) != "v" {
				t.Errorf("got %+v, want the bundle before the configuration", b)
			}
			if _, ok := g.next(g.reader).(Config); !ok {
				t.Error("no Config")
			}
			g.send(Started{PID: 5})
		}()
		if _, err := h.Configure(t.Context(), Config{Secrets: []Secret{{Bundle: "api", Version: 1}}}, first); err != nil {
			t.Fatal(err)
		}
		answer := func(a Bundled) {
			b, ok := g.next(g.reader).(Bundle)
			if !ok || b.Signal != "HUP" {
				t.Errorf("got %+v", b)
			}
			g.send(Bundled{Name: "other", Version: a.Version}) // of nobody here
			g.send(a)
		}
		go answer(Bundled{Name: "api", Version: 2})
		if err := h.Update(t.Context(), Bundle{Name: "api", Version: 2, Signal: "HUP"}); err != nil {
			t.Error(err)
		}
		go answer(Bundled{Name: "api", Version: 3, Error: "no\x1broom"})
		err := h.Update(t.Context(), Bundle{Name: "api", Version: 3, Signal: "HUP"})
		if !errors.Is(err, ErrBundleRefused) || !strings.Contains(err.Error(), "version 3") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("got %v, want ErrBundleRefused", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go answer(Bundled{Name: "api", Version: 3})
		if err := h.Update(ctx, Bundle{Name: "api", Version: 4, Signal: "HUP"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
	})
}

// TestTooOld: an init that knows of no volumes or secrets does not start a workload that has some.
func TestTooOld(t *testing.T) {
	for _, c := range []Config{{Secrets: []Secret{{Bundle: "api"}}}, {Volumes: []Volume{{Name: "data"}}}} {
		session(t, Options{HeartbeatTimeout: time.Hour}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
			go g.hello()
			if _, err := h.Configure(t.Context(), c); err == nil || !strings.Contains(err.Error(), "earlier version") {
				t.Errorf("%+v: got %v", c, err)
			}
		})
	}
}

func TestFreeze(t *testing.T) {
	session(t, Options{HeartbeatTimeout: time.Hour}, nil, func(t *testing.T, h *Host, g *fakeGuest) {
		g.start(t, h)
		answer := func(forMS int64, a Frozen) {
			m, ok := g.next(g.reader).(Freeze)
			if !ok || m.Volume != "data" || m.ForMS != forMS {
				t.Errorf("got %+v", m)
			}
			g.send(Frozen{ID: m.ID + 1000, Volume: "data", Error: "of nobody here"})
			a.ID, a.Volume = m.ID, m.Volume
			g.send(a)
		}
		go answer(1500, Frozen{})
		if err := h.Freeze(t.Context(), "data", 1500*time.Millisecond); err != nil {
			t.Error(err)
		}
		go answer(1, Frozen{Error: "it is\nfrozen already"})
		if err := h.Freeze(t.Context(), "data", time.Microsecond); err == nil || !strings.HasSuffix(err.Error(), "the guest says: it is frozen already") {
			t.Errorf("got %v", err)
		}
		for _, want := range []bool{true, false} {
			go answer(0, Frozen{Whole: want})
			if whole, err := h.Thaw(t.Context(), "data"); err != nil || whole != want {
				t.Errorf("got %v, %v, want %v", whole, err, want)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { _, _, _ = g.reader.Next() }()
		if _, err := h.Thaw(ctx, "data"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without an answer: %v", err)
		}
	})
}

// TestBundleBounds: what a bundle may hold, by the guest's own check.
func TestBundleBounds(t *testing.T) {
	many := SecretValues{}
	for i := range MaxBundleKeys + 1 {
		many[fmt.Sprint("k", i)] = nil
	}
	for _, tc := range []struct {
		name   string
		values SecretValues
		ok     bool
	}{
		{"nothing", nil, true},
		{"odd keys", SecretValues{"_": nil, "0": nil, "a.b-c": nil, strings.Repeat("k", MaxSecretKey): nil}, true},
		{"as large as can be", SecretValues{"k": make([]byte, MaxBundleBytes-1)}, true},
		{"too large", SecretValues{"k": make([]byte, MaxBundleBytes)}, false},
		{"too many", many, false},
		{"empty key", SecretValues{"": nil}, false},
		{"dot", SecretValues{".": nil}, false},
		{"dots", SecretValues{"..": nil}, false},
		{"the link", SecretValues{"..data": nil}, false},
		{"a path", SecretValues{"a/b": nil}, false},
		{"long", SecretValues{strings.Repeat("k", MaxSecretKey+1): nil}, false},
		{"newline", SecretValues{"a\nb": nil}, false},
	} {
		frame, err := Encode(nil, Bundle{Name: "api", Version: 1, Values: tc.values})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		_, err = Decode(TypeBundle, frame[5:])
		if (err == nil) != tc.ok {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}
}

// TestSecretsAreNotFormatted: whatever prints a bundle does not print secrets.
func TestSecretsAreNotFormatted(t *testing.T) {
	b := Bundle{Name: "api", Version: 1, Values: SecretValues{"KEY": []byte("canary")}}
	var out strings.Builder
	log := slog.New(slog.NewTextHandler(&out, nil))
	log.Info("bundle", "b", b, "p", &b, "v", b.Values)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", b, b.Values)
	}
	fmt.Fprintln(&out, fmt.Errorf("send %v", b))
	for _, form := range []string{"canary", "63616e617279", "99 97 110", "0x63"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("%q is in:\n%s", form, out.String())
		}
	}
}
