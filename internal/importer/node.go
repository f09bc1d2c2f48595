package importer

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

type kind uint8

const (
	kindTable kind = iota
	kindList
	kindString
	kindInteger
	kindFloat
	kindBool
	kindNull
	kindExpression // what only the program that the file is for can tell
)

// Bounds of a tree. Real files are far below.
const (
	maxNodes = 20_000
	maxDepth = 40
)

// node is a value in a file. A table keeps the order of the file, and may have several members of one key.
type node struct {
	up    *node
	key   string
	name  string // of a block: `group "web"`
	index int    // in a list, from 0
	line  int
	kind  kind
	text  string // of scalars and expressions
	items []*node
	why   string // kindExpression: why it is not known

	done  bool
	used  bool   // it is carried over as a whole; of its members only those that are done
	notes []Note // Key and Line are filled in at the end
}

// budget counts nodes, so that a small file cannot become a large tree.
type budget struct{ nodes int }

func (b *budget) node(up *node, key string, line, depth int) (*node, error) {
	if b.nodes++; b.nodes > maxNodes {
		return nil, fmt.Errorf("line %d: the file has more than %d values", line, maxNodes)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("line %d: nested more than %d deep", line, maxDepth)
	}
	return &node{up: up, key: key, line: line, index: -1}, nil
}

// checkNesting refuses files whose brackets nest so deep that a parser's recursion would be the first to
// notice. It knows no strings; no honest file has that many brackets in those, either.
func checkNesting(src []byte) error {
	depth := 0
	const most = 1000
	for i, b := range src {
		switch b {
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			depth = max(0, depth-1)
		}
		if depth > most {
			return fmt.Errorf("line %d: brackets nest more than %d deep", 1+bytes.Count(src[:i], []byte("\n")), most)
		}
	}
	return nil
}

// get gives the first member with that key, or nil. It may be called on nil, as all below may.
func (n *node) get(keys ...string) *node {
	for _, key := range keys {
		if n == nil {
			return nil
		}
		i := slices.IndexFunc(n.items, func(m *node) bool { return m.key == key })
		if i < 0 || n.kind != kindTable {
			return nil
		}
		n = n.items[i]
	}
	return n
}

// all gives every member with that key, and the elements of those that are lists of tables: `[[services]]`.
func (n *node) all(key string) []*node {
	if n == nil || n.kind != kindTable {
		return nil
	}
	var found []*node
	for _, m := range n.items {
		if m.key != key {
			continue
		}
		if m.kind == kindList {
			found = append(found, m.items...)
		} else {
			found = append(found, m)
		}
	}
	return found
}

func (n *node) members() []*node {
	if n == nil {
		return nil
	}
	return n.items
}

// take marks a value, and all below it, as carried over.
func (n *node) take() {
	if n == nil {
		return
	}
	n.done = true
	for _, m := range n.items {
		m.take()
	}
}

// drop marks a value as not carried over.
func (n *node) drop(format string, args ...any) {
	if n == nil {
		return
	}
	n.take()
	n.notes = append(n.notes, Note{Kind: Dropped, Reason: fmt.Sprintf(format, args...)})
}

// alter notes that a value is carried over as something else.
func (n *node) alter(format string, args ...any) {
	if n == nil {
		return
	}
	if note := (Note{Kind: Altered, Reason: fmt.Sprintf(format, args...)}); !slices.Contains(n.notes, note) {
		n.notes = append(n.notes, note)
	}
}

// scalar gives the text of a value that is one and is known. What is not is dropped.
func (n *node) scalar() (string, bool) {
	switch {
	case n == nil:
		return "", false
	case n.kind == kindExpression:
		n.drop("%s", n.why)
		return "", false
	case n.kind == kindTable || n.kind == kindList || n.kind == kindNull:
		return "", false
	}
	return n.text, true
}

// strings gives a list of scalars. What is anything else is dropped.
func (n *node) strings() ([]string, bool) {
	if n == nil || n.kind != kindList {
		return nil, false
	}
	list := []string{}
	for _, item := range n.items {
		s, ok := item.scalar()
		if !ok {
			why := "an element of it is no plain value"
			if item.kind == kindExpression {
				why = item.why
			}
			item.notes = nil
			n.drop("%s", why)
			return nil, false
		}
		list = append(list, s)
	}
	return list, true
}

func (n *node) integer() (int64, bool) {
	s, ok := n.scalar()
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseInt(s, 10, 64)
	return v, err == nil
}

func (n *node) isTrue() bool {
	s, ok := n.scalar()
	return ok && s == "true"
}

// path is where a value is, as a person would write it.
func (n *node) path() string {
	if n.up == nil {
		return ""
	}
	here := show(n.key)
	if strings.Trim(n.key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./") == "" && n.key != "" {
		here = n.key
	}
	if n.name != "" {
		here += "." + n.name
	}
	above := n.up.path()
	if n.index >= 0 {
		return above + "[" + strconv.Itoa(n.index) + "]"
	}
	if above == "" {
		return here
	}
	return above + "." + here
}

// show quotes text from a file, and bounds it.
func show(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "…"
	}
	return strconv.Quote(s)
}

// reason says why what is at a path is not carried over. A * in the pattern stands for one step.
type reason struct{ pattern, why string }

// leftovers drops everything that was not taken.
func (c *conversion) leftovers(n *node) {
	if n.done {
		return
	}
	touched := n.used || slices.ContainsFunc(n.items, (*node).touched)
	if n.up != nil && (len(n.items) == 0 || !touched) && !c.between(n) {
		n.drop("%s", c.reasonFor(n))
		return
	}
	for _, m := range n.items {
		c.leftovers(m)
	}
}

// touched tells whether anything of a value was carried over or noted.
func (n *node) touched() bool {
	return n.done || n.used || len(n.notes) > 0 || slices.ContainsFunc(n.items, (*node).touched)
}

// between tells whether there are reasons for what is below a value, which are better than one for all.
func (c *conversion) between(n *node) bool {
	if len(n.items) == 0 {
		return false
	}
	steps := n.steps()
	return c.reasonAt(n) == "" && slices.ContainsFunc(c.reasons, func(r reason) bool { return matches(r.pattern, steps, true) })
}

func (c *conversion) reasonFor(n *node) string {
	if n.kind == kindExpression {
		return n.why
	}
	for at := n; at.up != nil; at = at.up {
		if why := c.reasonAt(at); why != "" {
			return why
		}
	}
	return "Pinnace has nothing like it"
}

// reasonAt gives the reason for exactly this place, with or without the name of a block.
func (c *conversion) reasonAt(n *node) string {
	steps := n.steps()
	unnamed := steps
	if n.name != "" {
		unnamed = steps[:len(steps)-1]
	}
	for _, r := range c.reasons {
		if matches(r.pattern, steps, false) || matches(r.pattern, unnamed, false) {
			return r.why
		}
	}
	return ""
}

// steps is the path of a value without positions in lists.
func (n *node) steps() []string {
	if n.up == nil {
		return nil
	}
	steps := n.up.steps()
	if n.index >= 0 {
		return steps
	}
	steps = append(steps, n.key)
	if n.name != "" {
		steps = append(steps, n.name)
	}
	return steps
}

// matches compares a path with a pattern; with below, the pattern may go on.
func matches(pattern string, steps []string, below bool) bool {
	want := strings.Split(pattern, ".")
	if len(want) < len(steps) || !below && len(want) != len(steps) || below && len(want) == len(steps) {
		return false
	}
	for i, s := range steps {
		if want[i] != "*" && want[i] != s {
			return false
		}
	}
	return true
}

// collect gives the notes of a tree, with their places. What was dropped has no other notes, nor has what is
// below it.
func (c *conversion) collect(n *node, notes []Note) []Note {
	dropped := slices.ContainsFunc(n.notes, func(note Note) bool { return note.Kind == Dropped })
	for _, note := range n.notes {
		if dropped && note.Kind != Dropped {
			continue
		}
		note.Key, note.Line = n.path(), n.line
		notes = append(notes, note)
	}
	if dropped {
		return notes
	}
	for _, m := range n.items {
		notes = c.collect(m, notes)
	}
	return notes
}
