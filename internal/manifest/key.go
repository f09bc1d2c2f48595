package manifest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Type is the type of a key's value.
type Type uint8

// The types of values. Tables is a table of named tables, such as ports; StringMap is one of free names, such
// as env. A set has no order and no duplicates; an argv keeps its order.
const (
	String Type = iota
	Integer
	Bool
	Duration // "5s"; canonical: milliseconds
	Size     // "1GiB"; canonical: bytes
	CPU      // 0.5; canonical: thousandths
	Mode     // "0400"
	Argv
	StringSet
	IntegerSet
	StringMap
	Table
	Tables
)

// String gives the type as the reference page and error messages name it.
func (t Type) String() string {
	names := [...]string{
		"string", "integer", "true or false", "duration", "size", "number", "file mode", "list of strings",
		"set of strings", "set of integers", "table of strings", "table", "table of named tables",
	}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("Type(%d)", t)
}

// holdsValue tells values from the tables that hold them.
func (t Type) holdsValue() bool { return t != Table && t != Tables }

// Effect is what a change of a key does to instances that run.
type Effect string

// The effect classes, from the least to the most.
const (
	EffectNone    Effect = "none"     // is used by the next rollout, or not at all at run time
	EffectRouting Effect = "routing"  // changes where connections go; instances live on
	EffectInPlace Effect = "in place" // is taken up by the agent; instances live on
	EffectRestart Effect = "restart"  // restarts the instance where it is
	EffectReplace Effect = "replace"  // new instances take the place of the old ones
	EffectData    Effect = "data"     // touches stored data
)

// Meaning says in a few words what happens.
func (e Effect) Meaning() string {
	switch e {
	case EffectNone:
		return "takes effect with the next rollout, or has none at run time"
	case EffectRouting:
		return "connections go elsewhere; instances live on"
	case EffectInPlace:
		return "the agent takes it up; instances live on"
	case EffectRestart:
		return "instances are restarted where they are"
	case EffectReplace:
		return "new instances take the place of the old ones"
	case EffectData:
		return "touches stored data"
	default:
		return string(e)
	}
}

// Key is one row of the table: everything there is to know about one key of the manifest.
type Key struct {
	Path     string // as in TOML; "*" stands for a name that the author chooses
	Type     Type
	Required bool
	Default  string   // as written in TOML; "" for none, or for the image's (then ImageDefault says what)
	Values   []string // the only values there are
	Min, Max int64    // bounds in canonical units; for sets, lists and tables: of the number of entries
	Bounds   string   // bounds that are not a range, in words
	Effect   Effect
	Since    string // release of Pinnace that added the key to its schema version; "" for the first one
	Doc      string
	Example  string // a value as written in TOML, for keys that may have to be added

	// ImageDefault says what of the image is used when the key is absent. Such a default is not written into
	// the canonical form.
	ImageDefault string
	// When says under which condition the key applies, and RequiredWhen when it cannot be left out.
	When, RequiredWhen Condition
	// DefaultWhen gives defaults that depend on other keys.
	DefaultWhen []Case
	// Pattern is a regular expression for the value, for each member of a set, or for each name in a table: what
	// is valid matches it. Except is one for what matches Pattern and is reserved. Both keep to what ECMA 262 and
	// RE2 have in common. An editor uses them; the parser has words of its own for what is wrong.
	Pattern, Except string
	// Pending lists the values that this version of the platform cannot run yet; "*" stands for any value.
	Pending []string

	decides  bool                    // other rows of the same table depend on it
	check    func(string) fault      // for strings, set and list members, and the names in Tables and StringMap
	ref      func(*scope) any        // pointer to the field
	elements *elements               // for Tables
	present  func(*scope, bool) bool // for tables that may be absent: is it there; with true: make it
}

// scope is where the fields of a row are found: the manifest, and the named table that is being read.
type scope struct {
	m       *Manifest
	name    string
	port    *Port
	probe   *Probe
	secret  *Secret
	volume  *Volume
	excused []string // members that an unknown key was probably meant to be, so they are not said to be missing
	silent  bool     // the whole table is probably there under another name
	broken  bool     // a row that decides about others is wrong, so those are not judged
}

// elements reads and writes the entries of a table of named tables.
type elements struct {
	names func(*Manifest) []string
	enter func(*scope, string)
	store func(*scope)
}

// conditional tells whether other keys of the same table decide about this one.
func (k *Key) conditional() bool {
	return len(k.When) > 0 || len(k.RequiredWhen) > 0 || len(k.DefaultWhen) > 0
}

// BoundsText lists the bounds of the key: its values, its range, and what only words can say.
func (k *Key) BoundsText() []string {
	var parts []string
	if len(k.Values) > 0 {
		parts = append(parts, "`"+strings.Join(k.Values, "`, `")+"`")
	}
	if r := k.Range(); r != "" {
		parts = append(parts, r)
	}
	if k.Bounds != "" {
		parts = append(parts, k.Bounds)
	}
	return parts
}

// path gives the key path with the name filled in.
func (k *Key) path(name string) string {
	if name == "" {
		return k.Path
	}
	return strings.Replace(k.Path, "*", displayName(name), 1)
}

// last is the last part of the path.
func (k *Key) last() string {
	return k.Path[strings.LastIndexByte(k.Path, '.')+1:]
}

// table is the path of the table that the key is in; "" at the top.
func (k *Key) table() string {
	return strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(k.Path, k.last()), "."), ".*")
}

// Keys gives the table, in the order of the reference page.
func Keys() []Key {
	return slices.Clone(table())
}

// spec is a row with its place in the tree of tables.
type spec struct {
	*Key
	name     string
	fallback *node   // the parsed Default
	cases    []*node // the parsed values of DefaultWhen
	children []*spec // in the order of the table
	byName   map[string]*spec
	sorted   []*spec // children in canonical order
}

// schemaV1 is the compiled table. It never changes once made.
var schemaV1 = sync.OnceValue(func() *spec { return compile(table()) })

// compile turns the flat table into a tree. Every parent comes before its children.
func compile(keys []Key) *spec {
	root := &spec{Key: &Key{Type: Table}}
	nodes := map[string]*spec{"": root}
	for i := range keys {
		k := &keys[i]
		s := &spec{Key: k, name: k.last(), fallback: constant(k.Default)}
		for _, c := range k.DefaultWhen {
			s.cases = append(s.cases, constant(c.Value))
		}
		nodes[k.Path] = s
		parent := nodes[k.table()]
		parent.children = append(parent.children, s)
	}
	for _, s := range nodes {
		s.byName = make(map[string]*spec, len(s.children))
		for _, c := range s.children {
			s.byName[c.name] = c
		}
		s.sorted = slices.Clone(s.children)
		slices.SortFunc(s.sorted, func(a, b *spec) int { return strings.Compare(a.name, b.name) })
	}
	return root
}
