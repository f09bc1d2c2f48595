package manifesttest

import (
	"bytes"
	"slices"
	"strings"
)

// style is one of the spellings that TOML has for a table.
type style int

const (
	dotted style = iota
	inline
	header
)

// write spells the manifest out: each table in a style of its own, and the tables in any order.
func (d *draft) write() []byte {
	var top, below bytes.Buffer
	groups := make(map[string][]entry)
	var order []string
	for _, e := range d.entries {
		at := d.group(e)
		if _, seen := groups[at]; !seen {
			order = append(order, at)
		}
		groups[at] = append(groups[at], e)
	}
	d.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, at := range order {
		entries := groups[at]
		if d.oneIn(2) {
			d.rng.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
		}
		switch s := d.styleOf(at); {
		case at == "":
			d.lines(&top, entries, 0)
		case s == dotted:
			d.lines(&top, entries, 0)
		case s == inline && !deep(entries, at):
			d.line(&top, strings.Split(at, "."), d.inlineTable(entries, strings.Count(at, ".")+1))
		default:
			below.WriteString("[" + d.key(strings.Split(at, ".")) + "]")
			d.ending(&below)
			d.lines(&below, entries, strings.Count(at, ".")+1)
		}
	}
	return append(top.Bytes(), below.Bytes()...)
}

// group gives the table that an entry is written in. The tables within health and rollout are sometimes written
// as parts of those.
func (d *draft) group(e entry) string {
	return strings.Join(e.path[:len(e.path)-1], ".")
}

// styleOf is random, but the same for all tables that share a parent, as TOML does not let every mixture pass.
func (d *draft) styleOf(at string) style {
	parent, _, _ := strings.Cut(at, ".")
	if s, ok := d.chosen["style of "+parent]; ok {
		return style(s[0])
	}
	s := style(d.rng.IntN(3))
	if parent == "rollout" && s == inline {
		s = dotted // a table in braces is closed to [rollout.before]
	}
	d.chosen["style of "+parent] = string(rune(s))
	return s
}

// deep reports whether a value spans lines, which some readers do not want in an inline table.
func deep(entries []entry, at string) bool {
	return slices.ContainsFunc(entries, func(e entry) bool { return strings.Contains(e.value, "\n") && strings.Contains(at, ".") })
}

func (d *draft) lines(b *bytes.Buffer, entries []entry, skip int) {
	for _, e := range entries {
		if d.oneIn(12) {
			b.WriteString("# " + e.path[len(e.path)-1] + " = 1\n")
		}
		d.line(b, e.path[skip:], e.value)
	}
}

func (d *draft) line(b *bytes.Buffer, path []string, value string) {
	b.WriteString(d.key(path) + pick(d.Generator, []string{" = ", "=", "\t =  "}) + value)
	d.ending(b)
}

func (d *draft) ending(b *bytes.Buffer) {
	b.WriteString(pick(d.Generator, []string{"\n", "\n", "\n", "\n\n", " \n", " # why\n"}))
}

// key writes a dotted key, now and then with quotes that it does not need.
func (d *draft) key(path []string) string {
	parts := make([]string, len(path))
	for i, p := range path {
		parts[i] = p
		if p == "" || d.oneIn(30) {
			parts[i] = pick(d.Generator, []string{`"` + p + `"`, "'" + p + "'"})
		}
	}
	return strings.Join(parts, pick(d.Generator, []string{".", ".", ".", " . "}))
}

func (d *draft) inlineTable(entries []entry, skip int) string {
	parts := make([]string, len(entries))
	for i, e := range entries {
		parts[i] = d.key(e.path[skip:]) + " = " + e.value
	}
	if d.oneIn(5) {
		return "{\n  " + strings.Join(parts, ",\n  ") + ",\n}"
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}
