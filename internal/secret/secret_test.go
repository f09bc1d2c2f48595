package secret_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/secret"
	"github.com/pinnacehq/pinnace/internal/secret/storetest"
)

func newKeys(t *testing.T) (*secret.Keys, string) {
	t.Helper()
	text, err := secret.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	k, err := secret.ParseKeys(text)
	if err != nil {
		t.Fatal(err)
	}
	return k, string(text)
}

func TestSeal(t *testing.T) {
	k, text := newKeys(t)
	other, otherText := newKeys(t)
	for _, size := range []int{0, 1, 510, 511, 512, 513, 70_000, secret.MaxPlain} {
		plain := make([]byte, size)
		_, _ = rand.Read(plain) // documented never to fail
		sealed, err := k.Seal(plain)
		if err != nil || len(sealed) > secret.MaxSealed {
			t.Fatalf("seal %d bytes: %d, %v", size, len(sealed), err)
		}
		if got, err := k.Open(sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes come back as %d, %v", size, len(got), err)
		}
		if _, err := other.Open(sealed); !errors.Is(err, secret.ErrKey) {
			t.Errorf("another key: %v", err)
		}
		if again, err := k.Seal(plain); err != nil || secret.Digest(again) == secret.Digest(sealed) {
			t.Errorf("the same text has the same digest: %v", err)
		}
	}
	if _, err := k.Seal(make([]byte, secret.MaxPlain+1)); err == nil {
		t.Error("sealed too much")
	}

	// Zeroes at the end are the text's own; sizes tell little.
	sealed, err := k.Seal([]byte("value\x01\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(sealed); err != nil || string(got) != "value\x01\x00\x00" {
		t.Errorf("got %q, %v", got, err)
	}
	if short, err := k.Seal([]byte("v")); err != nil || len(short) != len(sealed) {
		t.Errorf("sealed, they have %d and %d bytes, %v", len(short), len(sealed), err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if got, err := k.Open(bad); err == nil {
			t.Fatalf("with byte %d changed it opens as %q", i, got)
		}
	}
	for n := range sealed {
		if _, err := k.Open(sealed[:n]); err == nil {
			t.Fatalf("cut at %d it opens", n)
		}
	}

	// A file of several keys opens what was sealed for any, and seals for the first.
	both, err := secret.ParseKeys([]byte(otherText + "\n# before\n" + text))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := both.Open(sealed); err != nil || len(got) == 0 {
		t.Error(err)
	}
	if !both.Hold(k.Recipient()) || !both.Hold(other.Recipient()) || k.Hold(other.Recipient()) || both.Recipient() != other.Recipient() {
		t.Error("the keys are mixed up")
	}
	for _, shown := range []string{fmt.Sprint(k), fmt.Sprintf("%v %+v %#v", k, k, k), k.LogValue().String()} {
		if strings.Contains(shown, "SECRET") {
			t.Errorf("a key shows as %s", shown)
		}
	}
}

func TestParseKeysRefuses(t *testing.T) {
	_, text := newKeys(t)
	for _, bad := range []string{"", "# nothing\n", "AGE-SECRET-KEY-1CANARYCANARY", text + "canary\n", "age1canary"} {
		if _, err := secret.ParseKeys([]byte(bad)); err == nil || strings.Contains(strings.ToLower(err.Error()), "canary") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	open := func() secret.Store {
		s, err := secret.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	storetest.Run(t, open, func(digest string) {
		path := filepath.Join(dir, strings.TrimPrefix(digest, "sha256:")+".age")
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("the file is %v, %v", info, err)
		}
		if err := os.WriteFile(path, []byte("other"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", info, err)
	}
}
