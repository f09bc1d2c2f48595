//go:build linux

package pid1

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pinnacehq/pinnace/internal/guest"
)

// renderSecrets makes the one file of a bundle. The same values give the same bytes.
func renderSecrets(format string, values guest.SecretValues) ([]byte, error) {
	switch format {
	case guest.FormatJSON:
		return renderJSON(values)
	case guest.FormatDotenv:
		return renderDotenv(values)
	}
	return nil, fmt.Errorf("there is no format %q", format)
}

// renderJSON makes an object of strings, sorted by key, with a newline behind it.
func renderJSON(values guest.SecretValues) ([]byte, error) {
	texts := make(map[string]string, len(values))
	for key, value := range values {
		if !utf8.Valid(value) {
			return nil, fmt.Errorf("the value of %s is no UTF-8, which JSON cannot hold; use format = \"dir\"", key)
		}
		texts[key] = string(value)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // some readers of secrets are simple
	enc.SetIndent("", "  ")
	err := enc.Encode(texts)
	return out.Bytes(), err
}

// renderDotenv makes lines of KEY=value, sorted by key. A POSIX shell that reads the file has exactly the values.
// Libraries disagree about escapes, so that these are used only for values that have a ' and one of "$`\ as well:
//
//	nothing but letters, digits and _./:@%+,=-   as it is
//	no '                                        '…', with nothing escaped
//	none of "$`\                                "…", likewise
//	else                                        "…", with a \ before each of "$`\
func renderDotenv(values guest.SecretValues) ([]byte, error) {
	var out bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := string(values[key])
		if !isVariable(key) {
			return nil, fmt.Errorf("the key %s cannot be the name of a variable, which format = \"dotenv\" needs; use \"dir\" or \"json\"", key)
		}
		if strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("the value of %s has a NUL in it, which format = \"dotenv\" cannot hold; use \"dir\"", key)
		}
		out.WriteString(key + "=" + quote(value) + "\n")
	}
	return out.Bytes(), nil
}

func isVariable(key string) bool {
	for i, c := range []byte(key) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_':
		case '0' <= c && c <= '9' && i > 0:
		default:
			return false
		}
	}
	return key != ""
}

const (
	plainBytes   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:@%+,=-"
	escapedBytes = "\"$`\\"
)

func quote(value string) string {
	switch {
	case strings.Trim(value, plainBytes) == "":
		return value
	case !strings.Contains(value, "'"):
		return "'" + value + "'"
	case !strings.ContainsAny(value, escapedBytes):
		return `"` + value + `"`
	}
	var out strings.Builder
	out.WriteByte('"')
	for _, c := range []byte(value) {
		if strings.IndexByte(escapedBytes, c) >= 0 {
			out.WriteByte('\\')
		}
		out.WriteByte(c)
	}
	out.WriteByte('"')
	return out.String()
}
