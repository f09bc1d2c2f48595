package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxCanonicalSize bounds the canonical form. A source of MaxSourceSize bytes cannot grow beyond it: an
// escape of two bytes becomes six at most, and the defaults take a few kilobytes.
const MaxCanonicalSize = 1 << 20

// ParseCanonical reads canonical bytes through the same table as Parse. It refuses everything that Canonical
// would not have written: what it accepts encodes to the identical bytes. The error names what is wrong.
//
// The Manifest has no positions, as there is no source.
func ParseCanonical(b []byte) (*Manifest, error) {
	return parseCanonical(schemaV1(), b)
}

func parseCanonical(schema *spec, b []byte) (*Manifest, error) {
	if len(b) > MaxCanonicalSize {
		return nil, fmt.Errorf("read canonical manifest: %d bytes; at most %d are allowed", len(b), MaxCanonicalSize)
	}
	root, err := readJSON(b)
	if err != nil {
		return nil, fmt.Errorf("read canonical manifest: %w", err)
	}
	list := &problemList{noText: true}
	m := &Manifest{origins: make([]origin, 0, 64)}
	d := &decoder{m: m, root: root, list: list, canonical: true, whole: true}
	d.table(schema, root, &scope{m: m})
	d.rules()
	list.problems.sort()
	if err := list.problems.Err(); err != nil {
		return nil, fmt.Errorf("read canonical manifest: %w", err)
	}
	if again := m.canonical(schema); !bytes.Equal(again, b) {
		return nil, fmt.Errorf("read canonical manifest: not in canonical form, from byte %d on", firstDifference(again, b))
	}
	return m, nil
}

func firstDifference(a, b []byte) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// readJSON makes the same tree of JSON as read makes of TOML. It is lenient about what the comparison with
// the canonical bytes finds anyway.
func readJSON(b []byte) (*node, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	root, err := jsonValue(dec, 0)
	if err != nil {
		return nil, fmt.Errorf("parse JSON: %w", err)
	}
	if root.kind != kindTable {
		return nil, errors.New("not a JSON object")
	}
	return root, nil
}

func jsonValue(dec *json.Decoder, depth int) (*node, error) {
	if depth > maxNesting {
		return nil, errors.New("nested too deep")
	}
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch v := token.(type) {
	case json.Delim:
		if v == '{' {
			return jsonObject(dec, depth)
		}
		return jsonArray(dec, depth)
	case string:
		return &node{kind: kindString, text: v}, nil
	case json.Number:
		return &node{kind: kindInteger, text: v.String()}, nil
	case bool:
		return &node{kind: kindBool, text: fmt.Sprint(v)}, nil
	default:
		return &node{kind: kindOther}, nil
	}
}

func jsonObject(dec *json.Decoder, depth int) (*node, error) {
	n := &node{kind: kindTable, how: byValue}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := token.(string)
		if !ok {
			return nil, errors.New("a member without a name")
		}
		if n.child(key) != nil {
			return nil, fmt.Errorf("%s is there twice", quote(key))
		}
		member, err := jsonValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		member.key = key
		n.add(member)
	}
	_, err := dec.Token()
	return n, err
}

func jsonArray(dec *json.Decoder, depth int) (*node, error) {
	n := &node{kind: kindArray, how: byValue}
	for dec.More() {
		item, err := jsonValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item)
	}
	_, err := dec.Token()
	return n, err
}
