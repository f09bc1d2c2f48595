// Package importer converts one service of somebody else's configuration, a fly.toml, a Nomad job file or a
// compose.yaml, into a manifest, and lists everything that it could not carry over, with the reason.
//
// Nothing gets lost without being listed: a file is read into a tree, what is converted is taken out of it,
// and whatever is left is reported. The manifest that comes out is one that manifest.Parse accepts.
//
// The package takes bytes and gives bytes. It opens no files, not even those that a file refers to, asks
// nobody, knows no variables of a shell, and trusts nothing of what it reads. It guesses nothing, either:
// what has to be put in because a manifest needs it, or means something else in Pinnace, is told, too.
package importer

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// MaxSize bounds the files that are read, in bytes.
const MaxSize = 256 << 10

// Format is a kind of file.
type Format string

// The formats.
const (
	Fly     Format = "fly"     // fly.toml
	Nomad   Format = "nomad"   // a job in HCL
	Compose Format = "compose" // compose.yaml
)

// FormatOf tells the format by the name of a file, or "" when the name does not say it.
func FormatOf(file string) Format {
	switch base := strings.ToLower(path.Base(file)); {
	case strings.HasSuffix(base, ".toml"):
		return Fly
	case strings.HasSuffix(base, ".hcl"), strings.HasSuffix(base, ".nomad"), strings.HasSuffix(base, ".job"):
		return Nomad
	case strings.HasSuffix(base, ".yaml"), strings.HasSuffix(base, ".yml"):
		return Compose
	}
	return ""
}

// Result is a converted service.
type Result struct {
	Service  string   // that was converted
	Services []string // all that the file has
	Image    string   // what the file says of the image; a manifest has no image. "" when it says nothing
	Manifest []byte   // TOML
	Parsed   *manifest.Manifest
	Notes    []Note // in the order of the file
}

// Note is about something in the file that is not in the manifest, or not as it was.
type Note struct {
	Kind   NoteKind `json:"kind"`
	Key    string   `json:"key"`  // path in the file
	Line   int      `json:"line"` // from 1; 0 when it is about something that the file doesn't say
	Reason string   `json:"reason"`
}

// NoteKind tells what was left out from what was changed.
type NoteKind string

// The kinds of notes.
const (
	Dropped NoteKind = "not carried over"
	Altered NoteKind = "changed"
)

// ErrService means that the file has several services and none was named, or not the one that was.
var ErrService = errors.New("which service?")

// Convert converts a service of a file; service may be "" when there is only one. The error says what is
// wrong with the file, with the line where it can.
func Convert(src []byte, format Format, service string) (*Result, error) {
	if len(src) > MaxSize {
		return nil, fmt.Errorf("the file has %d bytes; at most %d are read", len(src), MaxSize)
	}
	if err := checkNesting(src); err != nil {
		return nil, err
	}
	d, ok := dialects()[format]
	if !ok {
		return nil, fmt.Errorf("%q is not a format: fly, nomad or compose", string(format))
	}
	root, err := d.read(src)
	if err != nil {
		return nil, err
	}
	return d.convert(root, format, service)
}

// dialect is what is particular to a format.
type dialect struct {
	read    func([]byte) (*node, error)
	carry   func(*conversion) error
	reasons []reason
}

func dialects() map[Format]dialect {
	return map[Format]dialect{
		Fly:     {readTOML, (*conversion).fly, flyReasons()},
		Nomad:   {readHCL, (*conversion).nomad, nomadReasons()},
		Compose: {readYAML, (*conversion).compose, composeReasons()},
	}
}

func (d dialect) convert(root *node, format Format, service string) (*Result, error) {
	c := &conversion{root: root, format: format, wanted: service, reasons: d.reasons}
	if err := d.carry(c); err != nil {
		return nil, err
	}
	return c.finish()
}

// conversion is the work on one file.
type conversion struct {
	root    *node
	format  Format
	wanted  string
	reasons []reason
	draft   draft
	result  Result
	extra   []Note // notes about what the file doesn't say
}

// choose decides which of the services is converted.
func (c *conversion) choose(names []string) (string, error) {
	c.result.Services = names
	switch {
	case len(names) == 0:
		return "", errors.New("the file has no service that could be converted")
	case c.wanted == "" && len(names) == 1:
		c.result.Service = names[0]
	case slices.Contains(names, c.wanted):
		c.result.Service = c.wanted
	case c.wanted == "":
		return "", fmt.Errorf("the file has %s: %w", strings.Join(names, ", "), ErrService)
	default:
		return "", fmt.Errorf("the file has no %s, but %s: %w", show(c.wanted), strings.Join(names, ", "), ErrService)
	}
	return c.result.Service, nil
}

// finish makes the manifest of the draft and lists what is left of the file.
func (c *conversion) finish() (*Result, error) {
	for {
		text, lines := c.draft.render(c.format)
		m, problems := manifest.Parse(text)
		if m != nil {
			c.result.Manifest, c.result.Parsed = text, m
			break
		}
		if err := c.repair(problems.Errors(), lines); err != nil {
			return nil, err
		}
	}
	c.leftovers(c.root)
	c.result.Notes = append(c.extra, c.collect(c.root, nil)...)
	slices.SortStableFunc(c.result.Notes, func(a, b Note) int { return cmp.Compare(a.Line, b.Line) })
	return &c.result, nil
}

// repair takes out of the draft what a manifest cannot have. Every round takes at least one setting.
func (c *conversion) repair(errs manifest.Problems, lines map[int]int) error {
	var out []int
	for _, p := range errs {
		i, ok := lines[p.Line]
		if !ok {
			// A table that misses something, since that could not be carried over: the table goes with it.
			i = slices.IndexFunc(c.draft.settings, func(s setting) bool { return strings.HasPrefix(p.Key+".", s.table+".") && s.table != "" })
			if i < 0 {
				return fmt.Errorf("cannot make a manifest of it: %s", p)
			}
			for j, s := range c.draft.settings {
				if s.table == c.draft.settings[i].table && !slices.Contains(out, j) {
					c.reject(s, "without "+p.Key+" it means nothing")
					out = append(out, j)
				}
			}
			continue
		}
		if slices.Contains(out, i) {
			continue
		}
		s := c.draft.settings[i]
		if s.required {
			return fmt.Errorf("cannot make a manifest of it: %s", p)
		}
		c.reject(s, "a manifest cannot have it: "+p.Message)
		for j, other := range c.draft.settings {
			// What makes a port public goes together: without it the port is internal.
			if j == i || other.table == s.table && slices.Contains(outside, s.key) && slices.Contains(outside, other.key) {
				out = append(out, j)
			}
		}
	}
	if len(out) == 0 {
		return errors.New("cannot make a manifest of it")
	}
	slices.Sort(out)
	for _, i := range slices.Backward(slices.Compact(out)) {
		c.draft.settings = slices.Delete(c.draft.settings, i, i+1)
	}
	return nil
}

// outside are the keys that make a port public.
var outside = []string{"expose", "edge", "public_port", "proxy_protocol"}

// reject notes that a setting is not in the manifest after all.
func (c *conversion) reject(s setting, why string) {
	if s.from == nil {
		return // it was an addition of ours
	}
	note := Note{Kind: Dropped, Reason: why}
	if !slices.Contains(s.from.notes, note) {
		s.from.notes = append(s.from.notes, note)
	}
}
