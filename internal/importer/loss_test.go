package importer

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Nothing is lost in silence: whatever value of a file is changed, the manifest, the image or the notes change,
// too, unless a note says that the value or what it is in is not carried over.
func TestNothingIsLostSilently(t *testing.T) {
	files, err := filepath.Glob("testdata/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		format := FormatOf(file)
		if format == "" {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			src, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			d := dialects()[format]
			for _, service := range servicesOf(t, d, src, format) {
				before, root := outcome(t, d, src, format, service, -1)
				for i, leaf := range leaves(root, nil) {
					if leaf.reported() {
						continue
					}
					if after, _ := outcome(t, d, src, format, service, i); after == before {
						t.Errorf("service %s: %s (line %d) is %q, and another value changes nothing", service, leaf.path(), leaf.line, leaf.text)
					}
				}
			}
		})
	}
}

func servicesOf(t *testing.T, d dialect, src []byte, format Format) []string {
	t.Helper()
	root, err := d.read(src)
	if err != nil {
		t.Fatal(err)
	}
	c := &conversion{root: root, format: format, wanted: "\x00", reasons: d.reasons}
	_ = d.carry(c) // it only has to have listed them
	return c.result.Services
}

// outcome converts the file with one leaf changed, and gives all that comes out.
func outcome(t *testing.T, d dialect, src []byte, format Format, service string, change int) (string, *node) {
	t.Helper()
	root, err := d.read(src)
	if err != nil {
		t.Fatal(err)
	}
	if change >= 0 {
		leaf := leaves(root, nil)[change]
		switch leaf.kind {
		case kindInteger, kindFloat:
			leaf.text += "1"
		case kindBool:
			leaf.text = map[string]string{"true": "false", "false": "true"}[leaf.text]
		case kindNull, kindExpression:
			leaf.kind, leaf.text = kindString, "changed"
		default:
			leaf.text += "x"
		}
	}
	r, err := d.convert(root, format, service)
	if err != nil {
		return err.Error(), root
	}
	return fmt.Sprint(r.Service, r.Image, string(r.Manifest), r.Notes), root
}

func leaves(n *node, list []*node) []*node {
	if len(n.items) == 0 && n.kind != kindTable && n.kind != kindList {
		list = append(list, n)
	}
	for _, m := range n.items {
		list = leaves(m, list)
	}
	return list
}

// reported tells whether a note says that the value, or what it is in, is not carried over.
func (n *node) reported() bool {
	for at := n; at != nil; at = at.up {
		if slices.ContainsFunc(at.notes, func(note Note) bool { return note.Kind == Dropped }) {
			return true
		}
	}
	return false
}
