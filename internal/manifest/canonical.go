package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Hash names a manifest by the sha256 of its canonical form: "sha256:" and 64 lower-case hex digits.
type Hash string

const hashPrefix = "sha256:"

// ParseHash accepts exactly the form that HashOf makes.
func ParseHash(s string) (Hash, error) {
	digits, ok := strings.CutPrefix(s, hashPrefix)
	if !ok || len(digits) != 2*sha256.Size || !consistsOf(digits, numeric+"abcdef") {
		return "", fmt.Errorf("%s is not a manifest hash: sha256: and 64 lower-case hex digits", quote(s))
	}
	return Hash(s), nil
}

// HashOf gives the hash of canonical bytes, as sha256sum would.
func HashOf(canonical []byte) Hash {
	sum := sha256.Sum256(canonical)
	return Hash(hashPrefix + hex.EncodeToString(sum[:]))
}

// Hash gives the manifest hash.
func (m *Manifest) Hash() Hash { return HashOf(m.Canonical()) }

// Canonical gives the canonical form: JSON as in RFC 8785 with the key paths of TOML, every default of the
// schema version written out, and only strings, integers, booleans, lists and objects. Durations are
// milliseconds, sizes bytes, CPU thousandths. Defaults from the image, tables without members and keys that
// do not apply are absent. Two manifests mean the same if and only if these bytes are the same.
func (m *Manifest) Canonical() []byte {
	return m.canonical(schemaV1())
}

func (m *Manifest) canonical(schema *spec) []byte {
	e := encoder{out: make([]byte, 0, 1024), later: m.later}
	e.table(schema, &scope{m: m})
	return e.out
}

type encoder struct {
	out   []byte
	later []string
}

// table writes a table with its members in the order of their names.
func (e *encoder) table(t *spec, s *scope) {
	e.out = append(e.out, '{')
	for _, c := range t.sorted {
		e.member(t, c, s)
	}
	e.out = append(e.out, '}')
}

// member writes one row, unless there is nothing to write.
func (e *encoder) member(t, c *spec, s *scope) {
	before := len(e.out)
	if e.out[before-1] != '{' {
		e.out = append(e.out, ',')
	}
	e.string(c.name)
	e.out = append(e.out, ':')
	if !e.content(t, c, s) {
		e.out = e.out[:before]
	}
}

// content writes the value of a row and reports whether there is one.
func (e *encoder) content(t, c *spec, s *scope) bool {
	switch c.Type {
	case Table:
		in := &scope{m: s.m, name: s.name}
		if c.present != nil && !c.present(in, false) {
			return false
		}
		start := len(e.out)
		e.table(c, in)
		return len(e.out) > start+len("{}")
	case Tables:
		return e.named(c, s)
	default:
		if !c.When.holds(t, s) {
			return false
		}
		if c.Since != "" && !slices.Contains(e.later, c.path(s.name)) {
			return false
		}
		return e.value(c, s)
	}
}

func (e *encoder) named(c *spec, s *scope) bool {
	names := c.elements.names(s.m)
	e.out = append(e.out, '{')
	for i, name := range names {
		if i > 0 {
			e.out = append(e.out, ',')
		}
		e.string(name)
		e.out = append(e.out, ':')
		in := &scope{m: s.m, name: name}
		c.elements.enter(in, name)
		e.table(c, in)
	}
	e.out = append(e.out, '}')
	return len(names) > 0
}

func (e *encoder) value(c *spec, s *scope) bool {
	switch v := c.ref(s).(type) {
	case *string:
		e.string(*v)
		return *v != ""
	case *int:
		e.integer(int64(*v))
	case *int64:
		e.integer(*v)
	case *uint32:
		e.string(fmt.Sprintf("%04o", *v))
	case *time.Duration:
		e.integer(v.Milliseconds())
	case *bool:
		e.out = strconv.AppendBool(e.out, *v)
	case *[]string:
		e.list(len(*v), func(i int) { e.string((*v)[i]) })
		return *v != nil
	case *[]int:
		e.list(len(*v), func(i int) { e.integer(int64((*v)[i])) })
		return *v != nil
	case *map[string]string:
		e.stringMap(*v)
		return len(*v) > 0
	}
	return true
}

func (e *encoder) list(n int, item func(int)) {
	e.out = append(e.out, '[')
	for i := range n {
		if i > 0 {
			e.out = append(e.out, ',')
		}
		item(i)
	}
	e.out = append(e.out, ']')
}

// stringMap writes free names. They are ASCII, so the order of bytes is the order of RFC 8785.
func (e *encoder) stringMap(m map[string]string) {
	e.out = append(e.out, '{')
	for i, name := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			e.out = append(e.out, ',')
		}
		e.string(name)
		e.out = append(e.out, ':')
		e.string(m[name])
	}
	e.out = append(e.out, '}')
}

func (e *encoder) integer(v int64) { e.out = strconv.AppendInt(e.out, v, 10) }

// string writes a string as RFC 8785 wants it: short escapes where JSON has them, \u00xx for the other
// control characters, and everything else as it is.
func (e *encoder) string(s string) {
	e.out = append(e.out, '"')
	for _, r := range s {
		switch r {
		case '"', '\\':
			e.out = append(e.out, '\\', byte(r))
		case '\b':
			e.out = append(e.out, `\b`...)
		case '\t':
			e.out = append(e.out, `\t`...)
		case '\n':
			e.out = append(e.out, `\n`...)
		case '\f':
			e.out = append(e.out, `\f`...)
		case '\r':
			e.out = append(e.out, `\r`...)
		default:
			if r < 0x20 {
				e.out = fmt.Appendf(e.out, `\u%04x`, r)
			} else {
				e.out = utf8.AppendRune(e.out, r)
			}
		}
	}
	e.out = append(e.out, '"')
}
