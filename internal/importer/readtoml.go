package importer

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// readTOML reads a document into a tree. That it is valid, with no key defined twice, is checked by the
// library first, so that the tree can be made without looking.
func readTOML(src []byte) (*node, error) {
	var valid map[string]any
	if err := toml.Unmarshal(src, &valid); err != nil {
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := e.Position()
			return nil, fmt.Errorf("line %d:%d: %s", line, column, e.Error())
		}
		return nil, err
	}
	r := &tomlReader{src: src}
	root := &node{index: -1}
	current := root
	r.parser.Reset(src)
	for r.parser.NextExpression() {
		e := r.parser.Expression()
		var err error
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			current, err = r.header(root, e)
		case unstable.KeyValue:
			err = r.keyValue(current, e, 1)
		default: // comments
		}
		if err != nil {
			return nil, err
		}
	}
	return root, r.parser.Error()
}

type tomlReader struct {
	src    []byte
	parser unstable.Parser
	budget budget
	line   int // of the key that was read last
}

func (r *tomlReader) lineOf(n *unstable.Node) int {
	if n.Raw.Length > 0 {
		r.line = 1 + bytes.Count(r.src[:n.Raw.Offset], []byte("\n"))
	}
	return r.line
}

// header finds or makes the table that [a.b] or [[a.b]] opens.
func (r *tomlReader) header(root *node, e *unstable.Node) (*node, error) {
	at := root
	depth := 0
	for it := e.Key(); it.Next(); {
		depth++
		key, line := string(it.Node().Data), r.lineOf(it.Node())
		next := at.get(key)
		if next == nil {
			var err error
			if next, err = r.budget.node(at, key, line, depth); err != nil {
				return nil, err
			}
			at.items = append(at.items, next)
		}
		if it.IsLast() && e.Kind == unstable.ArrayTable {
			next.kind = kindList
			element, err := r.budget.node(next, key, line, depth)
			if err != nil {
				return nil, err
			}
			element.index = len(next.items)
			next.items = append(next.items, element)
		}
		if next.kind == kindList && len(next.items) > 0 {
			next = next.items[len(next.items)-1]
		}
		at = next
	}
	return at, nil
}

func (r *tomlReader) keyValue(at *node, e *unstable.Node, depth int) error {
	for it := e.Key(); it.Next(); {
		key, line := string(it.Node().Data), r.lineOf(it.Node())
		next := at.get(key)
		if next == nil {
			var err error
			if next, err = r.budget.node(at, key, line, depth); err != nil {
				return err
			}
			at.items = append(at.items, next)
		}
		at = next
		depth++
	}
	return r.value(at, e.Value(), depth)
}

func (r *tomlReader) value(n *node, v *unstable.Node, depth int) error {
	n.text = string(v.Data)
	switch v.Kind {
	case unstable.String:
		n.kind = kindString
	case unstable.Integer:
		n.kind = kindInteger
	case unstable.Float:
		n.kind = kindFloat
	case unstable.Bool:
		n.kind = kindBool
	case unstable.Array:
		n.kind, n.text = kindList, ""
		for it := v.Children(); it.Next(); {
			item, err := r.budget.node(n, n.key, n.line, depth)
			if err != nil {
				return err
			}
			item.index = len(n.items)
			n.items = append(n.items, item)
			if err := r.value(item, it.Node(), depth+1); err != nil {
				return err
			}
		}
	case unstable.InlineTable:
		n.kind, n.text = kindTable, ""
		for it := v.Children(); it.Next(); {
			if err := r.keyValue(n, it.Node(), depth+1); err != nil {
				return err
			}
		}
	default: // dates and times
		n.kind = kindString
	}
	return nil
}
