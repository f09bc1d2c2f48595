package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// fault is what is wrong with one value. The zero fault means that nothing is.
type fault struct {
	code, message, why, fix, suggestion string
}

// origin is where a value that was written down stands.
type origin struct {
	key  *Key
	name string // for keys of named tables, the name
	at   span
}

// decoder fills a Manifest from a tree, driven by the table.
type decoder struct {
	m         *Manifest
	root      *node
	list      *problemList
	canonical bool // values are in canonical units
	whole     bool // the text was read to its end, so what is missing is missing
}

// Parse reads the text of a manifest. It returns every problem at once, up to a thousand of them, in the order of the text. The
// Manifest is nil if and only if there is an error among them; warnings may come with a Manifest.
//
// A source may be at most MaxSourceSize bytes long. Parse does not keep or change it.
func Parse(source []byte) (*Manifest, Problems) {
	return parse(schemaV1(), string(source))
}

func parse(schema *spec, src string) (*Manifest, Problems) {
	list := &problemList{src: src}
	root, whole := read(src, list)
	return fill(schema, root, whole, list)
}

// fill makes a Manifest of the tree of a TOML text.
func fill(schema *spec, root *node, whole bool, list *problemList) (*Manifest, Problems) {
	m := &Manifest{source: list.src, origins: make([]origin, 0, 64)}
	d := &decoder{m: m, root: root, list: list, whole: whole}
	top := &scope{m: m}
	d.table(schema, root, top)
	if whole {
		d.rules()
		d.warnings(root, top)
	}
	list.problems.sort()
	if list.problems.HasErrors() {
		return nil, list.problems
	}
	return m, list.problems
}

// table reads the members of a table, which may be nil: then the defaults are filled in. Rows that depend on
// others come after those.
func (d *decoder) table(t *spec, n *node, s *scope) {
	if n != nil {
		for _, c := range n.items {
			if t.byName[c.key] == nil {
				d.unknown(t, c, s)
			}
		}
	}
	for _, late := range []bool{false, true} {
		for _, c := range t.children {
			if c.conditional() == late {
				d.member(t, n, c, s)
			}
		}
	}
}

// member reads one row of a table.
func (d *decoder) member(t *spec, parent *node, c *spec, s *scope) {
	var n *node
	if parent != nil {
		n = parent.child(c.name)
	}
	if n != nil {
		d.m.origins = append(d.m.origins, origin{key: c.Key, name: s.name, at: n.at})
	}
	switch c.Type {
	case Table:
		d.inner(c, n, s)
	case Tables:
		d.named(c, n, s)
	default:
		if n == nil {
			d.absent(t, parent, c, s)
			return
		}
		if !s.broken && !c.When.holds(t, s) {
			d.report(n.keyAt, c.Key, s.name, fault{
				code: CodeNotApplicable, message: "does not apply here: only " + c.When.String(),
				fix: "remove it, or set what it goes with",
			})
			return
		}
		if c.Since != "" {
			d.m.later = append(d.m.later, c.path(s.name))
		}
		if !d.value(c, n, s) && c.decides {
			s.broken = true
		}
	}
}

// inner reads a table that has a fixed name.
func (d *decoder) inner(c *spec, n *node, s *scope) {
	if n != nil && n.kind != kindTable {
		d.report(n.at, c.Key, s.name, tableExpected(c, n))
		return
	}
	in := &scope{m: s.m, name: s.name, silent: n == nil && slices.Contains(s.excused, c.name)}
	if c.present != nil && !c.present(in, n != nil) {
		return
	}
	d.table(c, n, in)
}

// named reads a table of named tables.
func (d *decoder) named(c *spec, n *node, s *scope) {
	if n == nil {
		return
	}
	if n.kind != kindTable {
		d.report(n.at, c.Key, "", namedExpected(c, n))
		return
	}
	entries := n.items
	if int64(len(entries)) > c.Max {
		d.report(n.keyAt, c.Key, "", tooMany(len(entries), c.Max))
		entries = entries[:c.Max]
	}
	for _, e := range entries {
		if f := c.check(e.key); f.code != "" {
			d.reportAt(e.keyAt, c.Path+"."+displayName(e.key), f)
		}
		d.m.origins = append(d.m.origins, origin{key: c.Key, name: e.key, at: e.keyAt})
		if e.kind != kindTable {
			d.reportAt(e.at, c.Path+"."+displayName(e.key), elementExpected(c, e))
			continue
		}
		in := &scope{m: s.m, name: e.key}
		c.elements.enter(in, e.key)
		d.table(c, e, in)
		c.elements.store(in)
	}
}

// absent deals with a row that is not written down: an error, a default, or nothing.
func (d *decoder) absent(t *spec, parent *node, c *spec, s *scope) {
	if c.conditional() && s.broken {
		return
	}
	if !c.When.holds(t, s) {
		return
	}
	if c.Required || len(c.RequiredWhen) > 0 && c.RequiredWhen.holds(t, s) {
		s.broken = s.broken || c.decides
		if d.whole && !s.silent && !slices.Contains(s.excused, c.name) {
			d.missing(t, parent, c, s)
		}
		return
	}
	if c.Since != "" {
		return
	}
	fallback := c.fallbackIn(t, s)
	if fallback == nil {
		return
	}
	d.m.filled++
	d.fallback(c, fallback, s)
}

// fallbackIn gives the default of the row in the table t that s is in, or nil.
func (c *spec) fallbackIn(t *spec, s *scope) *node {
	for i, dependent := range c.DefaultWhen {
		if dependent.When.holds(t, s) {
			return c.cases[i]
		}
	}
	return c.fallback
}

// fallback sets a default. Defaults are written as in TOML, also while canonical bytes are read.
func (d *decoder) fallback(c *spec, n *node, s *scope) {
	was := d.canonical
	d.canonical = false
	d.value(c, n, s)
	d.canonical = was
}

func (d *decoder) missing(t *spec, parent *node, c *spec, s *scope) {
	var at span
	if parent != nil {
		at = parent.keyAt
	}
	f := fault{code: CodeMissing, message: "is missing"}
	if len(c.RequiredWhen) > 0 {
		f.message = "is missing: required " + c.RequiredWhen.String()
	}
	f.fix = "add " + example(t, c, parent != nil)
	d.report(at, c.Key, s.name, f)
}

// example shows how a missing key may be written.
func example(t *spec, c *spec, inside bool) string {
	value := c.Example
	if value == "" && len(c.Values) > 0 {
		value = quote(c.Values[0])
	}
	line := c.name + " = " + value
	if !inside && t.Path != "" {
		return t.Path + " = { " + line + " }"
	}
	return line
}

func tooMany(n int, limit int64) fault {
	return fault{code: CodeOutOfRange, message: fmt.Sprintf("%d entries; at most %d are allowed", n, limit)}
}

func (d *decoder) report(at span, k *Key, name string, f fault) {
	if f.fix == "" && f.suggestion == "" {
		f.fix = k.sample(f.code)
	}
	d.reportAt(at, k.path(name), f)
}

// sample shows a value that is right, for values that are so wrong that nothing better can be said.
func (k *Key) sample(code string) string {
	value := k.Example
	switch {
	case code != CodeWrongType && code != CodeOutOfRange && code != CodeBadUnit:
		return ""
	case value != "":
	case k.Default != "" && k.Default != "[]":
		value = k.Default
	case len(k.Values) > 0 && k.Type == String:
		value = strconv.Quote(k.Values[0])
	case len(k.DefaultWhen) > 0:
		value = k.DefaultWhen[0].Value
	default:
		return ""
	}
	return "write for example " + k.last() + " = " + value
}

func (d *decoder) reportAt(at span, path string, f fault) {
	d.list.add(at, Problem{Code: f.code, Key: path, Message: f.message, Why: f.why, Fix: f.fix, Suggestion: f.suggestion})
}

func tableExpected(c *spec, n *node) fault {
	f := fault{code: CodeWrongType, message: "expected a table, found " + n.show()}
	if len(c.children) > 0 {
		f.fix = "write a table [" + c.Path + "] with the keys " + strings.Join(names(c.children), ", ")
	}
	if c.Type == StringMap {
		f.fix = "write a table [" + c.Path + `] with lines such as LOG_LEVEL = "info"`
	}
	if n.how == byArray {
		f.message = "expected a table, found a list of tables"
		f.fix = "write [" + c.Path + "] with single brackets"
	}
	return f
}

func namedExpected(c *spec, n *node) fault {
	f := fault{
		code: CodeWrongType, message: "expected a table of named tables, found " + n.show(),
		why: "every entry has a name, so that a change is a change of that entry and not of a position in a list",
		fix: "write [" + c.Path + ".NAME] for each entry, with a name of your choice",
	}
	if n.how == byArray {
		f.message = "expected a table of named tables, found a list of tables"
	}
	return f
}

func elementExpected(c *spec, n *node) fault {
	f := fault{code: CodeWrongType, message: "expected a table, found " + n.show()}
	if n.how == byArray {
		f.message = "expected a table, found a list of tables"
		f.fix = fmt.Sprintf("write [%s.%s] with single brackets", c.Path, displayName(n.key))
		return f
	}
	first := c.children[0]
	if c.byName[n.key] != nil {
		f.why = "[" + c.Path + "] holds named tables, and this key belongs into one of them"
		f.fix = "write [" + c.Path + ".NAME] above it, with a name of your choice"
		return f
	}
	if n.kind == kindInteger && first.Type == Integer || n.kind == kindString && first.check != nil && first.check(n.text).code == "" {
		f.fix = fmt.Sprintf("write %s.%s = { %s = %s }", c.Path, displayName(n.key), first.name, n.literal())
		return f
	}
	f.fix = fmt.Sprintf("write a table [%s.%s]", c.Path, displayName(n.key))
	return f
}

func names(specs []*spec) []string {
	out := make([]string, len(specs))
	for i, s := range specs {
		out[i] = s.name
	}
	return out
}

// show names a value in a message.
func (n *node) show() string {
	switch n.kind {
	case kindTable, kindArray, kindOther:
		return n.kind.String()
	default:
		return n.kind.String() + " " + n.literal()
	}
}

// literal gives a scalar as it may be written in TOML.
func (n *node) literal() string {
	if n.kind == kindString {
		return quote(n.text)
	}
	return shorten(n.text)
}
