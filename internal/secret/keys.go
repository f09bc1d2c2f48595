// Package secret seals what nobody may read where it is stored, and stores it sealed: in a directory, or in a database
// (package postgres).
//
// Sealing is age's envelope encryption: each sealed value has a key of its own, and that key is sealed for the server's
// key, which is in no store. What is sealed is named by the digest of its sealed bytes, so that whoever keeps the name
// (the event log, whose chain protects it) notices when other bytes come back; the same values give another name each
// time, so that a name tells nothing of them.
//
// What is sealed, for whom and in what form is not this package's business.
package secret

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"filippo.io/age"
)

// ErrKey means that something was sealed for another key.
var ErrKey = errors.New("it was sealed for another key")

// Keys open what was sealed for one of them, and seal for the first.
type Keys struct {
	identities []age.Identity
	recipients []string // of the identities
	first      age.Recipient
}

var _ slog.LogValuer = (*Keys)(nil)

// GenerateKey makes a key, as text for ParseKeys.
func GenerateKey() ([]byte, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "# seals the secrets of Pinnace; without it they are lost\n# public key: %s\n%s\n", id.Recipient(), id), nil
}

// ParseKeys reads keys as age-keygen writes them: one a line, and lines that begin with #. Errors have nothing of a key.
func ParseKeys(text []byte) (*Keys, error) {
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil || len(identities) == 0 {
		// The library's text may quote the line.
		return nil, errors.New("there is no key of age in it, or a line that is none: want lines that begin with AGE-SECRET-KEY-1, and comments with #")
	}
	k := &Keys{identities: identities}
	for _, id := range identities {
		var r age.Recipient
		switch id := id.(type) {
		case *age.X25519Identity:
			r = id.Recipient()
		case *age.HybridIdentity:
			r = id.Recipient()
		default:
			return nil, errors.New("there is a key of a kind that is not used here: age-keygen makes the right one")
		}
		if k.first == nil {
			k.first = r
		}
		k.recipients = append(k.recipients, fmt.Sprint(r))
	}
	return k, nil
}

// LogValue keeps keys out of logs.
func (k *Keys) LogValue() slog.Value { return slog.StringValue(k.String()) }

// String is the public half of the first key.
func (k *Keys) String() string { return k.Recipient() }

// GoString implements fmt.GoStringer.
func (k *Keys) GoString() string { return k.Recipient() }

// Recipient is the public half of the key that seals.
func (k *Keys) Recipient() string { return k.recipients[0] }

// Count is how many keys there are.
func (k *Keys) Count() int { return len(k.identities) }

// Hold tells whether one of the keys opens what is sealed for a recipient.
func (k *Keys) Hold(recipient string) bool {
	return slices.Contains(k.recipients, recipient)
}

// MaxPlain bounds what is sealed in one piece, in bytes.
const MaxPlain = 1 << 20

// pad is what sizes are rounded up to, so that the size of what is sealed tells little of it.
const pad = 512

// Seal seals a text of at most MaxPlain bytes.
func (k *Keys) Seal(plain []byte) ([]byte, error) {
	if len(plain) > MaxPlain {
		return nil, fmt.Errorf("seal %d bytes: the most is %d", len(plain), MaxPlain)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, k.first)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	padded := make([]byte, (len(plain)+1+pad-1)/pad*pad)
	copy(padded, plain)
	padded[len(plain)] = 1 // and zeroes to the end
	if _, err := w.Write(padded); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return out.Bytes(), nil
}

// Open opens what Seal gave. The error wraps ErrKey when it was sealed for none of the keys.
func (k *Keys) Open(sealed []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), k.identities...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("open: %w", ErrKey)
	}
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	padded, err := io.ReadAll(io.LimitReader(r, MaxPlain+pad+1))
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	plain, ok := bytes.CutSuffix(bytes.TrimRight(padded, "\x00"), []byte{1})
	if !ok || len(plain) > MaxPlain {
		return nil, errors.New("open: what was sealed is too long, or was not sealed by this program")
	}
	return plain, nil
}

// digestPrefix is how a digest begins.
const digestPrefix = "sha256:"

// Digest names sealed bytes.
func Digest(sealed []byte) string {
	sum := sha256.Sum256(sealed)
	return digestPrefix + hex.EncodeToString(sum[:])
}

// ValidDigest tells whether a text can be a name of sealed bytes.
func ValidDigest(text string) bool {
	digits, ok := strings.CutPrefix(text, digestPrefix)
	b, err := hex.DecodeString(digits)
	return ok && err == nil && len(b) == sha256.Size && strings.ToLower(digits) == digits
}
