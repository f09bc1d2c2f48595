package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/identity"
)

// TestWhereTLSIs: in the clear is on loopback alone, unless it is said.
func TestWhereTLSIs(t *testing.T) {
	authority, err := identity.NewAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, key := writePair(t, t.TempDir(), 1)
	for _, test := range []struct {
		listen string
		flags  tlsFlags
		secure bool // with TLS
		pinned bool // by the server's own authority
		bad    bool
	}{
		{listen: "127.0.0.1:7400"},
		{listen: "[::1]:7400"},
		{listen: "localhost:7400"},
		{listen: "127.0.0.1:7400", flags: tlsFlags{everywhere: true}, secure: true, pinned: true},
		{listen: "127.0.0.1:7400", flags: tlsFlags{cert: cert, key: key}, secure: true},
		{listen: "192.0.2.1:7400", secure: true, pinned: true},
		{listen: "0.0.0.0:7400", secure: true, pinned: true},
		{listen: ":7400", secure: true, pinned: true},
		{listen: "[::]:7400", secure: true, pinned: true},
		{listen: "pinnace.example:7400", secure: true, pinned: true},
		{listen: "192.0.2.1:7400", flags: tlsFlags{cert: cert, key: key}, secure: true},
		{listen: "192.0.2.1:7400", flags: tlsFlags{plain: true}},
		{listen: "192.0.2.1:7400", flags: tlsFlags{plain: true, everywhere: true}, bad: true},
		{listen: "192.0.2.1:7400", flags: tlsFlags{plain: true, cert: cert, key: key}, bad: true},
		{listen: "192.0.2.1:7400", flags: tlsFlags{cert: cert}, bad: true},
		{listen: "192.0.2.1:7400", flags: tlsFlags{cert: cert, key: cert}, bad: true},
		{listen: "192.0.2.1", bad: true},
	} {
		secure, pin, err := test.flags.of(test.listen, authority)
		if (err != nil) != test.bad || (secure != nil) != test.secure || pin.IsZero() == test.pinned {
			t.Errorf("%s with %+v: got TLS %v, pinned %v, %v", test.listen, test.flags, secure != nil, !pin.IsZero(), err)
		}
	}
	flags := tlsFlags{names: []string{"pinnace.example"}}
	names := flags.allNames("192.0.2.1:7400")
	for _, want := range []string{"pinnace.example", "192.0.2.1", "127.0.0.1", "localhost"} {
		if !slices.Contains(names, want) {
			t.Errorf("%v lacks %s", names, want)
		}
	}
}

// TestFilePair: a certificate that was replaced is used without a restart, and one that does not fit its key is not.
func TestFilePair(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, 1)
	pair := &filePair{cert: cert, key: key}
	serial := func() int64 {
		t.Helper()
		c, err := pair.get(&tls.ClientHelloInfo{})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.Int64()
	}
	touch := func(ahead time.Duration) {
		t.Helper()
		for _, path := range []string{cert, key} {
			if err := os.Chtimes(path, time.Time{}, time.Now().Add(ahead)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := serial(); got != 1 {
		t.Errorf("got %d", got)
	}
	writePair(t, dir, 2)
	touch(time.Hour)
	if got := serial(); got != 2 {
		t.Errorf("after it was replaced: got %d", got)
	}
	if err := os.WriteFile(key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	touch(2 * time.Hour)
	if got := serial(); got != 2 {
		t.Errorf("with half a key: got %d", got)
	}
}

// writePair writes a certificate and its key into dir.
func writePair(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
