package manifest

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// span is a place in the source: a byte offset and a length.
type span struct{ off, length int }

// kind is the TOML type of a node.
type kind uint8

const (
	kindTable kind = iota
	kindArray
	kindString
	kindInteger
	kindFloat
	kindBool
	kindDate
	kindOther // JSON null; there is nothing like it in TOML
)

func (k kind) String() string {
	return [...]string{"a table", "a list", "the string", "the integer", "the number", "the boolean", "the date or time", "null"}[k]
}

// origination says how a table came to be, which decides what may still be added to it.
type origination uint8

const (
	byParent origination = iota // [a.b] made a
	byHeader                    // [a]
	byDotted                    // a.b = 1 made a
	byValue                     // a = { … }: closed
	byArray                     // [[a]]
)

// node is a value of the document.
type node struct {
	kind  kind
	how   origination
	up    *node // the table that it is in
	key   string
	keyAt span // where the key stands; for a table, where it is first mentioned
	at    span // where the value stands
	text  string
	items []*node // members of a table in the order of the text, or elements of a list

	index map[string]*node // members by key, once there are many
}

// manyMembers is the number of members from which on a table is searched by hash, so that a hostile document
// cannot make us walk long lists again and again.
const manyMembers = 24

func (n *node) child(key string) *node {
	if n.index != nil {
		return n.index[key]
	}
	for _, c := range n.items {
		if c.key == key {
			return c
		}
	}
	return nil
}

func (n *node) add(c *node) {
	if n.items == nil {
		n.items = make([]*node, 0, 4)
	}
	n.items = append(n.items, c)
	if n.index != nil {
		n.index[c.key] = c
		return
	}
	if n.kind == kindTable && len(n.items) > manyMembers {
		n.index = make(map[string]*node, 2*len(n.items))
		for _, m := range n.items {
			n.index[m.key] = m
		}
	}
}

// document builds the tree of a TOML text from the expressions of the parser. It checks what the parser does
// not: that no key is defined twice, and how deep the document nests.
type document struct {
	parser  *unstable.Parser
	src     string
	base    int // offset in src of what the parser was given last
	root    *node
	current *node // the table that [header] opened
	depth   int   // parts in the path of current
	deepest int   // what depth may be at most
	slab    []node
	list    *problemList
	lost    bool // some of the text could not be read
	clean   int  // expressions that parsed
	end     int  // the start of the line after the last one
}

// newNode takes nodes from slabs: a manifest has dozens, and one allocation each would be most of the work. The
// first slab is about as big as the text needs.
func (d *document) newNode() *node {
	if len(d.slab) == 0 {
		d.slab = make([]node, 8+min(len(d.src)/12, 256))
	}
	n := &d.slab[0]
	d.slab = d.slab[1:]
	return n
}

func (d *document) span(r unstable.Range) span {
	return span{off: d.base + int(r.Offset), length: int(r.Length)}
}

// expression adds one top-level expression to the tree.
func (d *document) expression(e *unstable.Node) {
	d.clean++
	switch e.Kind {
	case unstable.Table:
		d.header(e, false)
	case unstable.ArrayTable:
		d.header(e, true)
	case unstable.KeyValue:
		if d.current != nil {
			d.keyValue(d.current, e, d.depth)
		}
	default: // comments are not kept
	}
	for it := e.Key(); it.Next(); {
		at := d.span(it.Node().Raw)
		d.end = at.off + at.length
	}
	if e.Kind == unstable.KeyValue {
		at := d.span(e.Raw)
		d.end = at.off + at.length
	}
	d.end = min(lineEnd(d.src, d.end)+1, len(d.src))
}

// header opens the table that [a.b] or [[a.b]] names. After a header that opens nothing there is no current table,
// and what follows is not judged. What follows a table's second header is: it is a table, wherever it belongs.
func (d *document) header(e *unstable.Node, array bool) {
	lost := d.lost
	d.current, d.lost = nil, true
	parent, depth := d.root, 0
	it := e.Key()
	for it.Next() {
		key := d.text(it.Node())
		at := d.span(it.Node().Raw)
		if depth++; depth > d.deepest {
			d.tooDeep(at)
			return
		}
		n := parent.child(key)
		last := it.IsLast()
		switch {
		case n == nil && last && array:
			n = d.table(parent, key, at, byArray)
			n.kind = kindArray
		case n == nil && last:
			n = d.table(parent, key, at, byHeader)
		case n == nil:
			n = d.table(parent, key, at, byParent)
		case last && !d.reopen(n, array), !last && (n.how == byValue || n.kind != kindTable && n.how != byArray):
			d.twice(n, at)
			if array || n.kind != kindTable {
				return
			}
		}
		if n.how == byArray {
			if last {
				n.add(&node{kind: kindTable, how: byHeader, up: n.up, key: n.key, keyAt: at, at: at})
			}
			n = n.items[len(n.items)-1]
		}
		parent = n
	}
	d.current, d.depth, d.lost = parent, depth, lost
}

// reopen says whether a header may name a table that is there already, and marks it.
func (d *document) reopen(n *node, array bool) bool {
	switch {
	case array && n.how == byArray:
		return true
	case !array && n.kind == kindTable && n.how == byParent:
		n.how = byHeader
		return true
	default:
		return false
	}
}

// keyValue adds key = value to a table that is depth parts below the root.
func (d *document) keyValue(parent *node, e *unstable.Node, depth int) {
	it := e.Key()
	for it.Next() {
		key := d.text(it.Node())
		at := d.span(it.Node().Raw)
		if depth++; depth > d.deepest {
			d.tooDeep(at)
			return
		}
		n := parent.child(key)
		if it.IsLast() {
			if n != nil {
				d.twice(n, at)
				return
			}
			n = d.newNode()
			n.key, n.keyAt, n.how, n.up = key, at, byValue, parent
			if d.value(n, e.Value(), d.valueStart(at), depth) {
				parent.add(n)
			}
			return
		}
		if n == nil {
			n = d.table(parent, key, at, byDotted)
		} else if n.kind != kindTable || n.how != byDotted {
			d.twice(n, at)
			if n.kind != kindTable {
				return
			}
		}
		parent = n
	}
}

func (d *document) table(parent *node, key string, at span, how origination) *node {
	n := d.newNode()
	n.key, n.keyAt, n.at, n.how, n.up = key, at, at, how, parent
	parent.add(n)
	return n
}

// value fills n from a value of the parser. The parser gives no place for lists, so start is where the value
// begins, as seen from its key. The result is false for a list that is too long to be kept.
func (d *document) value(n *node, v *unstable.Node, start, depth int) bool {
	n.at = span{off: start, length: 1}
	if v.Raw.Length > 0 {
		n.at = d.span(v.Raw)
	}
	switch v.Kind {
	case unstable.String:
		n.kind, n.text = kindString, d.text(v)
	case unstable.Integer:
		n.kind, n.text = kindInteger, d.text(v)
	case unstable.Float:
		n.kind, n.text = kindFloat, d.text(v)
	case unstable.Bool:
		n.kind, n.text = kindBool, d.text(v)
	case unstable.Array:
		n.kind = kindArray
		if !d.deepEnough(v, n.at, depth) {
			return true
		}
		for it := v.Children(); it.Next(); {
			if len(n.items) == maxElements {
				d.tooLong(n.at)
				return false
			}
			item := d.newNode()
			item.how = byValue
			if !d.value(item, it.Node(), start, depth+1) {
				return false
			}
			n.items = append(n.items, item)
		}
	case unstable.InlineTable:
		n.kind = kindTable
		if !d.deepEnough(v, n.at, depth) {
			return true
		}
		for it := v.Children(); it.Next(); {
			d.keyValue(n, it.Node(), depth)
		}
	default:
		n.kind, n.text = kindDate, d.text(v)
		if !validDate(n.text) {
			d.notDate(n.at, n.text)
		}
	}
	return true
}

// deepEnough refuses what nests too deep before descending into it, so that the recursion has a bound.
func (d *document) deepEnough(v *unstable.Node, at span, depth int) bool {
	if depth >= d.deepest && v.Child() != nil {
		d.tooDeep(at)
		return false
	}
	return true
}

// valueStart finds the first byte of the value after the key at s.
func (d *document) valueStart(s span) int {
	i := s.off + s.length
	rest := strings.TrimLeft(d.src[i:], " \t")
	rest = strings.TrimLeft(strings.TrimPrefix(rest, "="), " \t")
	return len(d.src) - len(rest)
}

// text gives the text of a node. Most of it is a part of the source, which needs no copy; only escapes and
// multi-line strings differ from what is written.
func (d *document) text(n *unstable.Node) string {
	raw := d.span(n.Raw)
	s := d.src[raw.off : raw.off+raw.length]
	switch len(s) - len(n.Data) {
	case 0:
		return s
	case 2:
		return s[1 : len(s)-1]
	default:
		return string(n.Data)
	}
}

// path gives the key path of a node.
func (n *node) path() string {
	path := displayName(n.key)
	for n = n.up; n != nil && n.key != ""; n = n.up {
		path = displayName(n.key) + "." + path
	}
	return path
}

func (d *document) twice(first *node, at span) {
	line, _ := d.list.position(first.keyAt.off)
	d.list.add(at, Problem{
		Code:    CodeSyntax,
		Key:     first.path(),
		Message: "defined twice; the first time is on " + lineName(line),
		Why:     "a table or a value is written down in one place only",
		Fix:     "keep one of the two",
	})
}

// tooLong refuses a list before it takes much memory. No key takes so many values.
func (d *document) tooLong(at span) {
	d.lost = true
	d.list.add(at, Problem{
		Code:    CodeOutOfRange,
		Message: fmt.Sprintf("a list of more than %d values", maxElements),
		Why:     "no key of a manifest takes that many",
	})
}

func (d *document) notDate(at span, text string) {
	d.list.add(at, Problem{
		Code: CodeSyntax, Message: "there is no such date or time as " + shorten(text), Fix: "a string needs quotes",
	})
}

func (d *document) tooDeep(at span) {
	d.list.add(at, Problem{
		Code:    CodeSyntax,
		Message: "nested deeper than 4 levels",
		Why:     "no key of a manifest is that deep",
	})
}
