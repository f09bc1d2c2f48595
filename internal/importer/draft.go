package importer

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// setting is one line of a manifest in the making.
type setting struct {
	table, key string // table is "" at the top; "ports.web"
	value      string // as TOML has it, on one line
	from       *node  // where it comes from; nil for what a manifest needs and the file does not say
	required   bool   // a manifest cannot be without it
}

// draft is a manifest in the making.
type draft struct{ settings []setting }

// set carries a value over: n is taken, and its value, written in TOML, is that of a key. A key that is there
// already is not set again; n is dropped then.
func (d *draft) set(n *node, table, key, value string) bool {
	if d.has(table, key) {
		n.drop("%s is set from another place in the file", strings.TrimPrefix(table+"."+key, "."))
		return false
	}
	n.take()
	d.settings = append(d.settings, setting{table: table, key: key, value: value, from: n})
	return true
}

func (d *draft) has(table, key string) bool {
	return slices.ContainsFunc(d.settings, func(s setting) bool { return s.table == table && s.key == key })
}

func (d *draft) hasTable(table string) bool {
	return slices.ContainsFunc(d.settings, func(s setting) bool { return s.table == table || strings.HasPrefix(s.table, table+".") })
}

// value gives a value that was set, as TOML has it.
func (d *draft) value(table, key string) string {
	for _, s := range d.settings {
		if s.table == table && s.key == key {
			return s.value
		}
	}
	return ""
}

// tables gives the tables of settings below a prefix, in the order in which they were made.
func (d *draft) tables(prefix string) []string {
	var names []string
	for _, s := range d.settings {
		if strings.HasPrefix(s.table, prefix) && !slices.Contains(names, s.table) {
			names = append(names, s.table)
		}
	}
	return names
}

// sections are the tables of a manifest in the order of its reference. Those with a dot at the end stand for
// all tables below.
var sections = []string{
	"", "env", "resources", "stop", "ports.", "health.ready", "health.live", "rollout", "rollout.before", "secrets.", "volumes.", "network",
}

// topKeys are the keys at the top in the order of the reference.
var topKeys = []string{"schema", "name", "entrypoint", "command", "workdir", "user", "arch", "restart", "vars"}

// render writes the manifest, and tells which setting is on which line.
func (d *draft) render(format Format) (text []byte, lines map[int]int) {
	var b bytes.Buffer
	lines = map[int]int{}
	fmt.Fprintf(&b, "# Converted by pinnace import (%s), which listed what it could not carry over. Check it before you use it.\n", format)
	line := 2
	for _, section := range sections {
		tables := []string{section}
		if strings.HasSuffix(section, ".") {
			tables = d.tables(section)
		}
		for _, table := range tables {
			indices := d.inTable(table)
			if len(indices) == 0 {
				continue
			}
			if table != "" {
				fmt.Fprintf(&b, "\n[%s]\n", table)
				line += 2
			}
			for _, i := range indices {
				s := d.settings[i]
				fmt.Fprintf(&b, "%s = %s\n", bareOrQuoted(s.key), s.value)
				lines[line] = i
				line++
			}
		}
	}
	return b.Bytes(), lines
}

func (d *draft) inTable(table string) []int {
	var indices []int
	for i, s := range d.settings {
		if s.table == table {
			indices = append(indices, i)
		}
	}
	if table == "" {
		slices.SortStableFunc(indices, func(a, b int) int {
			return slices.Index(topKeys, d.settings[a].key) - slices.Index(topKeys, d.settings[b].key)
		})
	}
	return indices
}

const bare = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

func bareOrQuoted(key string) string {
	if key != "" && strings.Trim(key, bare) == "" {
		return key
	}
	return text(key)
}

// text writes a string as TOML, on one line.
func text(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < ' ' || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r < 0xa0:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func texts(list []string) string {
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = text(s)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

// label makes a name that a manifest can have of one that it cannot.
func label(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
	s = strings.Trim(strings.TrimLeft(s, "0123456789-"), "-")
	s = strings.TrimRight(s[:min(len(s), most)], "-")
	if s == "" {
		return "app"
	}
	return s
}
