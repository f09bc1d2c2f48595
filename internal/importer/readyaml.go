package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readYAML reads the one document of a compose file into a tree. Aliases and merge keys are expanded, within
// the budget; variables of the shell are not known, so what has one without a default is an expression.
func readYAML(src []byte) (*node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the file is empty")
		}
		return nil, err
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file has several YAML documents; give one")
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("it is no compose file: it has no keys such as services")
	}
	root := &node{index: -1}
	r := yamlReader{}
	return root, r.value(root, doc.Content[0], 0)
}

type yamlReader struct{ budget budget }

func (r *yamlReader) value(n *node, y *yaml.Node, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("line %d: nested more than %d deep", y.Line, maxDepth)
	}
	switch y.Kind {
	case yaml.AliasNode:
		return r.value(n, y.Alias, depth+1)
	case yaml.MappingNode:
		n.kind = kindTable
		return r.mapping(n, y, depth, false)
	case yaml.SequenceNode:
		n.kind = kindList
		for _, item := range y.Content {
			m, err := r.budget.node(n, n.key, item.Line, depth)
			if err != nil {
				return err
			}
			m.index = len(n.items)
			n.items = append(n.items, m)
			if err := r.value(m, item, depth+1); err != nil {
				return err
			}
		}
	case yaml.ScalarNode:
		r.scalar(n, y)
	default:
		return fmt.Errorf("line %d: something that is no value", y.Line)
	}
	return nil
}

// mapping adds the members of a mapping. Those that are merged in give way to those that are there.
func (r *yamlReader) mapping(n *node, y *yaml.Node, depth int, merged bool) error {
	var merges []*yaml.Node
	own := map[string]bool{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, value := y.Content[i], y.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: a key that is no plain word", key.Line)
		}
		if key.ShortTag() == "!!merge" {
			merges = append(merges, value)
			continue
		}
		if own[key.Value] {
			return fmt.Errorf("line %d: %s is there twice", key.Line, show(key.Value))
		}
		own[key.Value] = true
		if merged && n.get(key.Value) != nil {
			continue
		}
		m, err := r.budget.node(n, key.Value, key.Line, depth)
		if err != nil {
			return err
		}
		n.items = append(n.items, m)
		if err := r.value(m, value, depth+1); err != nil {
			return err
		}
	}
	for _, value := range merges {
		if err := r.merge(n, value, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (r *yamlReader) merge(n *node, y *yaml.Node, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("line %d: nested more than %d deep", y.Line, maxDepth)
	}
	switch y.Kind {
	case yaml.AliasNode:
		return r.merge(n, y.Alias, depth+1)
	case yaml.MappingNode:
		return r.mapping(n, y, depth, true)
	case yaml.SequenceNode:
		for _, item := range y.Content {
			if err := r.merge(n, item, depth+1); err != nil {
				return err
			}
		}
		return nil
	default:
		return fmt.Errorf("line %d: << of something that has no keys", y.Line)
	}
}

func (r *yamlReader) scalar(n *node, y *yaml.Node) {
	n.text = y.Value
	switch y.ShortTag() {
	case "!!str":
		n.kind = kindString
		n.interpolate()
	case "!!int":
		n.kind = kindInteger
	case "!!float":
		n.kind = kindFloat
	case "!!bool":
		n.kind = kindBool
	case "!!null":
		n.kind = kindNull
	case "!!timestamp", "!!binary":
		n.kind = kindString
	default:
		n.kind, n.why = kindExpression, "the tag "+show(y.Tag)+" means something to compose only"
	}
}

// interpolate puts in the defaults of compose's variables. A variable without one is not known here.
func (n *node) interpolate() {
	var b strings.Builder
	rest := n.text
	for {
		before, after, ok := strings.Cut(rest, "$")
		b.WriteString(before)
		if !ok {
			n.text = b.String()
			return
		}
		if strings.HasPrefix(after, "$") {
			b.WriteByte('$')
			rest = after[1:]
			continue
		}
		var name string
		braced := strings.HasPrefix(after, "{")
		if braced {
			inside, tail, closed := strings.Cut(after[1:], "}")
			if !closed || strings.Contains(inside, "$") {
				n.unknown(after)
				return
			}
			name, rest = inside, tail
		} else {
			rest = strings.TrimLeft(after, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
			name = after[:len(after)-len(rest)]
		}
		variable, fallback, has := strings.Cut(name, "-")
		variable = strings.TrimSuffix(variable, ":")
		if !has || !braced || strings.Trim(variable, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
			n.unknown(name)
			return
		}
		b.WriteString(fallback)
		n.alter("the variable %s of the shell is not known here; its default %s was taken", variable, show(fallback))
	}
}

func (n *node) unknown(variable string) {
	n.kind, n.notes = kindExpression, nil
	n.why = "its value comes from the shell that runs compose: " + show("$"+variable)
}
