package identity

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The kinds of secrets, as the first characters of their text, for people and scanners to know them by.
const (
	TokenPrefix = "pnt_"
	JoinPrefix  = "pnj_"
)

// maxSecret bounds the text of a secret, in bytes.
const maxSecret = 512

// Secret is a text that proves who somebody is. It prints as a placeholder, so that it comes into no log by accident;
// Text gives it away.
type Secret struct{ text string }

// NewSecret makes a secret of 32 bytes that random gives.
func NewSecret(prefix string, random io.Reader) (Secret, error) {
	var b [32]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return Secret{}, fmt.Errorf("draw a secret: %w", err)
	}
	return SecretOf(prefix, b), nil
}

// SecretOf makes a secret of bytes that nobody can guess.
func SecretOf(prefix string, b [32]byte) Secret {
	return Secret{prefix + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))}
}

// ParseSecret reads what somebody was given: a secret, and behind a dot the fingerprint of the authority of the server
// that it is for, which may be missing.
func ParseSecret(text string) (Secret, Fingerprint, error) {
	text = strings.TrimSpace(text)
	secret, pin, pinned := strings.Cut(text, ".")
	// What is shorter was not made here; an empty file above all must not become a password.
	if len(secret) < 20 || len(text) > maxSecret || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return Secret{}, Fingerprint{}, errors.New("that is no token")
	}
	if !pinned {
		return Secret{secret}, Fingerprint{}, nil
	}
	f, err := ParseFingerprint(pin)
	if err != nil {
		return Secret{}, Fingerprint{}, fmt.Errorf("that is no token: behind the dot, %w", err)
	}
	return Secret{secret}, f, nil
}

// Text is the secret itself.
func (s Secret) Text() string { return s.text }

// WithPin is the secret with the fingerprint of the authority of its server, as people get it.
func (s Secret) WithPin(f Fingerprint) string {
	if f.IsZero() {
		return s.text
	}
	return s.text + "." + f.String()
}

// Hash is what is kept of a secret: its SHA-256, in hexadecimal. A secret has too much chance in it to be found by
// trying, so that the hash needs neither salt nor effort.
func (s Secret) Hash() string {
	sum := sha256.Sum256([]byte(s.text))
	return hex.EncodeToString(sum[:])
}

// String hides the secret.
func (s Secret) String() string { return "(a secret)" }

// GoString hides the secret.
func (s Secret) GoString() string { return s.String() }

// Fingerprint is the SHA-256 of a certificate.
type Fingerprint [sha256.Size]byte

// FingerprintOf is that of a certificate in DER.
func FingerprintOf(der []byte) Fingerprint { return sha256.Sum256(der) }

// ParseFingerprint reads 64 hexadecimal digits, with "sha256:" before them or without, and with or without colons
// between, as openssl writes them.
func ParseFingerprint(text string) (f Fingerprint, err error) {
	digits := strings.ReplaceAll(strings.TrimPrefix(text, "sha256:"), ":", "")
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(f) {
		return f, fmt.Errorf("%.80q is not a fingerprint: want sha256: and 64 hexadecimal digits", text)
	}
	return Fingerprint(b), nil
}

// IsZero reports whether there is no fingerprint.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }
