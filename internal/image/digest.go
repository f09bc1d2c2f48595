package image

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

const digestPrefix = "sha256:"

// digestHex checks a digest before anything is done with it, above all before it becomes part of a path,
// and gives its 64 hex digits.
func digestHex(digest string) (string, error) {
	digits, ok := strings.CutPrefix(digest, digestPrefix)
	if !ok || len(digits) != hex.EncodedLen(sha256.Size) {
		return "", refuse("digest %s: want sha256: and 64 hex digits", quote(digest))
	}
	for _, c := range digits {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", refuse("digest %s: want sha256: and 64 lower-case hex digits", quote(digest))
		}
	}
	return digits, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return digestPrefix + hex.EncodeToString(sum[:])
}
