package imagetest

import (
	"archive/tar"
	"fmt"
	"path"
	"slices"
	"strings"
)

// A Case is an image whose layers are odd or hostile, and what becomes of it.
type Case struct {
	Rule   string // of docs/design/layers.md
	Name   string
	Layers [][]Entry

	// Of an image that is refused: a part of the message.
	Refused string

	// Of one that is not: the tree, or what is at a path, as ls would show it. A tree is the sorted list of its
	// names: "dir/", "file=content", "link->target", "device!", "pipe|", and then in brackets the names of each
	// inode that has several.
	Tree     string
	At, Stat string

	// Umoci is what umoci 0.4.7 makes otherwise of the image, as "path: field", and why.
	Umoci map[string]string
}

// Title names the case.
func (c Case) Title() string { return c.Rule + " " + c.Name }

// Build makes the image of the case.
func (c Case) Build() *Builder {
	b := New()
	for _, l := range c.Layers {
		b.Layer(l...)
	}
	return b
}

// Corpus is a list of images that are odd or hostile. Each rule of docs/design/layers.md about the content of
// layers has at least one.
func Corpus() []Case {
	all := slices.Concat(mergeCases(), propertyCases(), oddCases(), refusedCases())
	differences := umoci()
	for i := range all {
		all[i].Umoci = differences[all[i].Title()]
	}
	return all
}

// Together is one image of all cases that are not refused, each below a directory of its own that is named by
// its place in the corpus. Left out are those that would mean something else there.
func Together() *Builder {
	var layers [][]Entry
	for i, c := range Corpus() {
		moved, ok := c.below(caseDir(i))
		if !ok {
			continue
		}
		for n, entries := range moved {
			if n == len(layers) {
				layers = append(layers, nil)
			}
			layers[n] = append(layers[n], entries...)
		}
	}
	b := New()
	for _, l := range layers {
		b.Layer(l...)
	}
	return b
}

func caseDir(i int) string { return fmt.Sprintf("case-%03d", i) }

// below moves the layers of a case into a directory.
func (c Case) below(dir string) ([][]Entry, bool) {
	if c.Refused != "" {
		return nil, false
	}
	var moved [][]Entry
	for n, layer := range c.Layers {
		var list []Entry
		if n == 0 {
			list = append(list, Dir(dir))
		}
		for _, e := range layer {
			target := e.Header.Linkname
			switch {
			case e.Raw != nil, strings.Contains(target, ".."), strings.HasPrefix(e.Header.Name, ".wh..wh.") && !strings.HasSuffix(e.Header.Name, "opq"):
				return nil, false
			case len(dir)+1+len(e.Header.Name) > 4096 || strings.Count(e.Header.Name, "/") > 254:
				return nil, false
			case e.Header.Typeflag == tar.TypeLink:
				e.Header.Linkname = path.Join(dir, target)
			case strings.HasPrefix(target, "/"):
				e.Header.Linkname = "/" + dir + target
			}
			e.Header.Name = dir + "/" + e.Header.Name
			list = append(list, e)
		}
		moved = append(moved, list)
	}
	return moved, true
}
