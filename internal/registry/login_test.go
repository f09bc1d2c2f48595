package registry

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestLoggedIn: a login is shown to its registry when that asks, by either scheme, and to no other, on another port neither.
func TestLoggedIn(t *testing.T) {
	for _, scheme := range []string{"Basic", "Bearer"} {
		t.Run(scheme, func(t *testing.T) {
			addr := protected(t, scheme)
			keychain := LoggedIn(addr, goodUser, goodPassword, anonymous{})
			if _, err := newClient(t, Options{Keychain: keychain}).Resolve(t.Context(), addr+"/web:1"); err != nil {
				t.Errorf("right: %v", err)
			}
			_, err := newClient(t, Options{Keychain: LoggedIn(addr, goodUser, "canary-wrong", anonymous{})}).Resolve(t.Context(), addr+"/web:1")
			if !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "canary") {
				t.Errorf("wrong: %v", err)
			}
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				t.Fatal(err)
			}
			for _, other := range []string{host, host + ":1", "registry.example"} {
				_, err := newClient(t, Options{Keychain: LoggedIn(other, goodUser, goodPassword, anonymous{})}).Resolve(t.Context(), addr+"/web:1")
				if !errors.Is(err, ErrUnauthorized) {
					t.Errorf("a login at %s: %v", other, err)
				}
			}
			if shown := fmt.Sprintf("%v %+v %#v %s", keychain, keychain, keychain, keychain); strings.Contains(shown, goodPassword) {
				t.Errorf("it shows as %s", shown)
			}
		})
	}
}

// TestDebianLoggedIn: the same with the distribution's registry.
func TestDebianLoggedIn(t *testing.T) {
	addr := debianRegistry(t, htpasswd(t))
	img := manyLayers(t, 2)
	putAs(t, addr, "/shop/web:1", img, http.DefaultTransport, alice())
	if err := pullImage(t, newClient(t, Options{Keychain: LoggedIn(addr, goodUser, goodPassword, anonymous{})}), addr+"/shop/web:1", img); err != nil {
		t.Error(err)
	}
	if err := pullImage(t, newClient(t, Options{Keychain: LoggedIn("r.example", goodUser, goodPassword, anonymous{})}), addr+"/shop/web:1", img); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("a login at another registry: %v", err)
	}
}
