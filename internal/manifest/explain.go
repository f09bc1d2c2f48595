package manifest

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Source says where an effective value comes from.
type Source string

// The sources of values.
const (
	SourceFile    Source = "file"    // the manifest says it
	SourceDefault Source = "default" // the default of the schema version
	SourceImage   Source = "image"   // the config of the image
)

// Value is one effective value of a manifest.
type Value struct {
	Key    string `json:"key"` // path, with the names that the author chose
	Source Source `json:"source"`
	// TOML is the value as it may be written down, and JSON as the canonical form has it, in canonical units.
	// Both are empty where the manifest does not know the value; then Text says in words what it is.
	TOML string          `json:"toml,omitempty"`
	JSON json.RawMessage `json:"value,omitempty"`
	Text string          `json:"text,omitempty"`
	// Line and Column are those of the value in the file, from 1; 0 for what the file does not say.
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Effect Effect `json:"effect"`
}

// Values lists every effective value in the order of the reference page, entries of named tables by name. What
// does not apply next to the others is left out, as in the canonical form.
func (m *Manifest) Values() []Value {
	v := &valuer{m: m, list: &problemList{src: m.source, noText: m.source == ""}}
	v.table(schemaV1(), &scope{m: m})
	return v.out
}

type valuer struct {
	m    *Manifest
	list *problemList // for positions
	out  []Value
}

func (v *valuer) table(t *spec, s *scope) {
	for _, c := range t.children {
		switch c.Type {
		case Table:
			in := &scope{m: s.m, name: s.name}
			if c.present == nil || c.present(in, false) {
				v.table(c, in)
			}
		case Tables:
			for _, name := range c.elements.names(s.m) {
				in := &scope{m: s.m, name: name}
				c.elements.enter(in, name)
				v.table(c, in)
			}
		case StringMap:
			v.variables(c, s)
		default:
			v.value(t, c, s)
		}
	}
}

func (v *valuer) value(t, c *spec, s *scope) {
	if !c.When.holds(t, s) {
		return
	}
	out := Value{Key: c.path(s.name), Effect: c.Effect}
	e := &encoder{}
	known := e.value(c, s)
	if known {
		out.JSON, out.TOML = e.out, c.toml(s)
	}
	at, written := v.m.origin(c.Key, s.name)
	switch {
	case written:
		out.Source = SourceFile
		v.place(&out, at)
	case known && c.Since == "":
		out.Source = SourceDefault
		if c.Default != "" {
			out.TOML = c.Default
		}
	case c.Path == "command" && v.m.Entrypoint != nil:
		out.Source, out.Text = SourceDefault, "none, as `entrypoint` is set"
	case c.ImageDefault != "":
		out.Source, out.Text = SourceDefault, c.ImageDefault
		if strings.Contains(c.ImageDefault, "image") {
			out.Source = SourceImage
		}
	default:
		return
	}
	v.out = append(v.out, out)
}

// variables lists the entries of a table of free names, each as a value of its own.
func (v *valuer) variables(c *spec, s *scope) {
	entries, ok := c.ref(s).(*map[string]string)
	if !ok {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(*entries)) {
		text := (*entries)[name]
		e := &encoder{}
		e.string(text)
		out := Value{Key: c.Path + "." + name, Source: SourceFile, TOML: (&encoder{}).quoted(text), JSON: e.out, Effect: c.Effect}
		if at, written := v.m.origin(c.Key, name); written {
			v.place(&out, at)
		}
		v.out = append(v.out, out)
	}
}

func (v *valuer) place(out *Value, at span) {
	if !v.list.noText {
		out.Line, out.Column = v.list.position(at.off)
	}
}

// Locate gives a problem the place of its key, or of the table around it, when that is written down: what others
// find out about a manifest points into it as what Parse finds does.
func (m *Manifest) Locate(p *Problem) {
	if m.source == "" {
		return
	}
	for path := p.Key; path != ""; path = parent(path) {
		if at, written := m.placeOf(path); written {
			(&problemList{src: m.source}).place(p, at)
			return
		}
	}
}

// parent takes the last part off a path.
func parent(path string) string {
	return path[:max(strings.LastIndexByte(path, '.'), 0)]
}

// placeOf finds a key path with the names that the author chose.
func (m *Manifest) placeOf(path string) (span, bool) {
	for _, o := range m.origins {
		full := o.key.path(o.name)
		if o.name != "" && (o.key.Type == Tables || o.key.Type == StringMap) {
			full = o.key.Path + "." + displayName(o.name)
		}
		if full == path {
			return o.at, true
		}
	}
	return span{}, false
}

// origin tells where a value is written down.
func (m *Manifest) origin(k *Key, name string) (at span, written bool) {
	for _, o := range m.origins {
		if o.key == k && o.name == name {
			return o.at, true
		}
	}
	return span{}, false
}

// toml writes the value of a row as TOML, in the shortest spelling.
func (c *spec) toml(s *scope) string {
	e := &encoder{}
	switch v := c.ref(s).(type) {
	case *time.Duration:
		return strconv.Quote(formatDuration(v.Milliseconds()))
	case *int64:
		if c.Type == CPU {
			return formatMilli(*v)
		}
		return strconv.Quote(formatSize(*v))
	case *[]string:
		parts := make([]string, len(*v))
		for i, item := range *v {
			parts[i] = (&encoder{}).quoted(item)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case *[]int:
		parts := make([]string, len(*v))
		for i, item := range *v {
			parts[i] = strconv.Itoa(item)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	case *string:
		return e.quoted(*v)
	default:
		// Integers, booleans and modes look the same in both.
		e.value(c, s)
		return string(e.out)
	}
}

// quoted writes a string as JSON does and TOML reads it too: TOML wants an escape for DEL, JSON allows one.
func (e *encoder) quoted(s string) string {
	e.string(s)
	return string(bytes.ReplaceAll(e.out, []byte{0x7f}, []byte(`\u007f`)))
}

// Find looks a key up by its path. In place of a name that the author chooses there may be any name, NAME or *;
// it is returned too. The path of one entry, such as ports.web, finds the table, and that of a variable, such as
// env.PATH, finds env. If there is no such key, the problem says what comes close.
func Find(path string) (key Key, name string, problem *Problem) {
	at := schemaV1()
	parts := strings.Split(path, ".")
	for i, part := range parts {
		next := at.byName[part]
		switch {
		case at.Type == StringMap && name == "", at.Type == Tables && name == "" && i > 0:
			name = part
			continue
		case next == nil:
			list := &problemList{noText: true}
			(&decoder{list: list}).unknown(at, &node{key: part}, &scope{name: name})
			p := list.problems[0]
			if at.byName[p.Suggestion] != nil {
				p.Suggestion = strings.Join(append(parts[:i:i], p.Suggestion), ".")
			}
			return Key{}, "", &p
		}
		at = next
	}
	if name == "*" {
		name = "NAME"
	}
	return *at.Key, name, nil
}

// Members lists the rows that stand directly in the table that k is.
func (k *Key) Members() []Key {
	var out []Key
	for _, other := range table() {
		if other.table() == k.Path && k.Path != "" {
			out = append(out, other)
		}
	}
	return out
}
