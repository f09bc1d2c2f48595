package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newMember(t *testing.T) *Member {
	t.Helper()
	m, err := OpenMember(filepath.Join(t.TempDir(), "identity"))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sign(t *testing.T, a *Authority, m *Member, h Host, now time.Time) []byte {
	t.Helper()
	der, err := m.Request()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.SignHost(r, h, now)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestSecrets(t *testing.T) {
	var b [32]byte
	b[0] = 1
	s := SecretOf(TokenPrefix, b)
	pin := FingerprintOf([]byte("x"))
	for _, text := range []string{s.Text(), " " + s.WithPin(pin) + "\n"} {
		got, f, err := ParseSecret(text)
		if err != nil || got != s || strings.Contains(text, ".") != (f == pin) {
			t.Errorf("%q: got %v, %v, %v", text, got, f, err)
		}
	}
	for _, bad := range []string{"", "short", s.Text() + ".", s.Text() + ".ab", s.Text()[:19], s.Text() + " " + s.Text(), strings.Repeat("a", 600), s.Text() + "\x00"} {
		if _, _, err := ParseSecret(bad); err == nil {
			t.Errorf("%q is taken for a secret", bad)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v %s", s, s, s, s); strings.Contains(text, s.Text()) {
		t.Errorf("a secret is printed: %s", text)
	}
	colons := strings.ToUpper(pin.String()[:2]) + ":" + pin.String()[2:]
	if f, err := ParseFingerprint("sha256:" + colons); err != nil || f != pin {
		t.Errorf("got %v, %v", f, err)
	}
}

func TestAuthorityIsKept(t *testing.T) {
	text, err := GenerateAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.key")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := ParseAuthority([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadAuthority(path)
	if err != nil || again.Fingerprint() != a.Fingerprint() || again.Derive("a") != a.Derive("a") {
		t.Fatalf("got another authority: %v", err)
	}
	if a.Derive("a", "b") == a.Derive("ab") || a.Derive("a") == authority(t).Derive("a") {
		t.Error("what is derived is not of its parts and the key")
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: got %v", err)
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, authority(t).PEM(), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(path); err == nil {
		t.Error("an authority without its key was taken")
	}
}

func TestHostCertificates(t *testing.T) {
	a, m, now := authority(t), newMember(t), time.Now().Truncate(time.Second) // as certificates have it
	h := Host{ID: "h1", Admission: "adm-1"}
	parse := func(der []byte) *x509.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	cert := parse(sign(t, a, m, h, now))
	if got, err := a.VerifyHost(cert, now.Add(hostValidity-time.Second)); err != nil || got != h {
		t.Errorf("got %v, %v", got, err)
	}
	var expired *ExpiredError
	if _, err := a.VerifyHost(cert, now.Add(hostValidity+time.Minute)); !errors.As(err, &expired) || expired.Host != h {
		t.Errorf("expired: got %v", err)
	}
	for what, bad := range map[string]func() (Host, error){
		"another authority":    func() (Host, error) { return authority(t).VerifyHost(cert, now) },
		"not yet":              func() (Host, error) { return a.VerifyHost(cert, now.Add(-time.Hour)) },
		"that of the server":   func() (Host, error) { return a.VerifyHost(serverLeaf(t, a), now) },
		"that of an authority": func() (Host, error) { return a.VerifyHost(a.Certificate(), now) },
		"a host without a name": func() (Host, error) {
			return a.VerifyHost(parse(sign(t, a, m, Host{Admission: "adm"}, now)), now)
		},
		"a host with a path": func() (Host, error) {
			return a.VerifyHost(parse(sign(t, a, m, Host{ID: "a/b", Admission: "adm"}, now)), now)
		},
	} {
		if got, err := bad(); err == nil || errors.As(err, &expired) && got != (Host{}) {
			t.Errorf("%s: got %v, %v", what, got, err)
		}
	}
	if _, err := ParseRequest(make([]byte, maxRequest+1)); err == nil {
		t.Error("a large request was read")
	}
	der, err := m.Request()
	if err != nil {
		t.Fatal(err)
	}
	der[len(der)-1] ^= 1
	if _, err := ParseRequest(der); err == nil {
		t.Error("a request was read that its key did not sign")
	}
}

func serverLeaf(t *testing.T, a *Authority) *x509.Certificate {
	t.Helper()
	c, err := a.ServerTLS(nil, time.Now).GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return c.Leaf
}

func TestMemberKeepsItsIdentity(t *testing.T) {
	a, m, now := authority(t), newMember(t), time.Now().Truncate(time.Second) // as certificates have it
	h := Host{ID: "h1", Admission: "adm-1"}
	if _, admitted := m.Host(); admitted || m.TLS() != nil || m.Renewed(nil) == nil {
		t.Error("a member is somebody before it was admitted")
	}
	cert := sign(t, a, m, h, now)
	if err := m.Admitted(cert, a.Certificate().Raw, authority(t).Fingerprint()); !errors.Is(err, ErrOtherAuthority) {
		t.Errorf("an answer of another authority: got %v", err)
	}
	if err := m.Admitted(sign(t, a, newMember(t), h, now), a.Certificate().Raw, a.Fingerprint()); err == nil {
		t.Error("a certificate for another key was taken")
	}
	if err := m.Admitted(cert, a.Certificate().Raw, a.Fingerprint()); err != nil {
		t.Fatal(err)
	}
	if got := m.RenewAt().Sub(now).Round(time.Second); got != renewAfter {
		t.Errorf("it is renewed after %s", got)
	}
	if err := m.Renewed(sign(t, a, m, h, now.Add(renewAfter))); err != nil {
		t.Fatal(err)
	}
	again, err := OpenMember(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, admitted := again.Host(); !admitted || got != h || !again.EndsAt().Equal(m.EndsAt()) {
		t.Errorf("got %v, %v, which ends %s, want %s", got, admitted, again.EndsAt(), m.EndsAt())
	}
	for _, name := range []string{"host.key", "host.crt", "ca.crt"} {
		if info, err := os.Stat(filepath.Join(m.dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

// TestPins shakes hands over a real connection.
func TestPins(t *testing.T) {
	a, m := authority(t), newMember(t)
	h := Host{ID: "h1", Admission: "adm-1"}
	if err := m.Admitted(sign(t, a, m, h, time.Now()), a.Certificate().Raw, a.Fingerprint()); err != nil {
		t.Fatal(err)
	}
	shake := func(server, client *tls.Config) (*tls.ConnectionState, error) {
		left, right := net.Pipe()
		defer left.Close()
		defer right.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		accepted := tls.Server(left, server)
		done := make(chan error, 1)
		go func() { done <- accepted.HandshakeContext(ctx) }()
		conn := tls.Client(right, client)
		if err := conn.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		if err := <-done; err != nil {
			return nil, err
		}
		state := accepted.ConnectionState()
		return &state, nil
	}
	server := a.ServerTLS([]string{"pinnace.example", "192.0.2.1"}, time.Now)
	if _, err := shake(server, Pin(a.Fingerprint())); err != nil {
		t.Errorf("with the right pin: %v", err)
	}
	if _, err := shake(server, Pin(authority(t).Fingerprint())); !errors.Is(err, ErrOtherAuthority) {
		t.Errorf("with another pin: got %v", err)
	}
	state, err := shake(server, m.TLS())
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.VerifyHost(state.PeerCertificates[0], time.Now()); err != nil || got != h {
		t.Errorf("as a host: got %v, %v", got, err)
	}
	// A host has a certificate of the same authority, and is no server with it, whatever it shows beside.
	key, err := tls.LoadX509KeyPair(filepath.Join(m.dir, "host.crt"), filepath.Join(m.dir, "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	key.Certificate = append(key.Certificate, a.Certificate().Raw)
	if _, err := shake(&tls.Config{Certificates: []tls.Certificate{key}}, Pin(a.Fingerprint())); !errors.Is(err, ErrOtherAuthority) {
		t.Errorf("a host as the server: got %v", err)
	}
	// Others go by name.
	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate())
	for name, good := range map[string]bool{"pinnace.example": true, "192.0.2.1": true, "other.example": false} {
		if _, err := shake(server, &tls.Config{RootCAs: roots, ServerName: name}); (err == nil) != good {
			t.Errorf("by the name %s: got %v", name, err)
		}
	}
}

// TestServerCertificateIsReplaced: also when the clock went back.
func TestServerCertificateIsReplaced(t *testing.T) {
	now := time.Now()
	config := authority(t).ServerTLS(nil, func() time.Time { return now })
	get := func() *tls.Certificate {
		c, err := config.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	now = now.Add(serverValidity/3 - time.Minute)
	if get() != first {
		t.Error("it was replaced early")
	}
	now = now.Add(2 * time.Minute)
	second := get()
	now = now.Add(-10 * 365 * 24 * time.Hour)
	if third := get(); second == first || third == second {
		t.Error("it was not replaced")
	}
}
