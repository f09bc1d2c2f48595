package manifest

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"strings"
	"unicode/utf8"
)

// Format lays the text of a manifest out in the one way that there is: keys bare where they can be, one space
// or more around an aligned =, trailing comments aligned, a list on one line if it fits and was not written
// on several, one blank line before each table, no indentation but within values. Comments stay where they
// are, keys keep their order and values their spelling, so the canonical form stays the same.
//
// Formatting what Format gave changes nothing. The problems are those of the syntax only; with one of them
// there is no result.
func Format(src []byte) ([]byte, Problems) {
	list := &problemList{src: string(src)}
	before := meaning(list)
	if list.problems.HasErrors() {
		list.problems.sort()
		return nil, list.problems
	}
	f := &formatter{src: list.src}
	f.lines()
	out := f.layout()
	// Whatever the layout does, it must not say anything else than the source.
	if after := meaning(&problemList{src: out}); after != before {
		list.add(span{}, Problem{Code: CodeSyntax, Message: "cannot be laid out without a change of its meaning", Fix: "make it shorter, or leave it as it is"})
		return nil, list.problems
	}
	return []byte(out), nil
}

// meaning reads a text and gives a digest of its tree, but for where the values stand. It keeps no tree, so that
// there are never two of them.
func meaning(list *problemList) [sha256.Size]byte {
	root, whole := read(list.src, list)
	if !whole || list.problems.HasErrors() {
		return [sha256.Size]byte{}
	}
	h := sha256.New()
	root.digest(h)
	return [sha256.Size]byte(h.Sum(nil))
}

func (n *node) digest(h hash.Hash) {
	fmt.Fprintf(h, "%d %d %d %d %d ", n.kind, n.how, len(n.key), len(n.text), len(n.items))
	io.WriteString(h, n.key)  //nolint:errcheck // a hash takes everything
	io.WriteString(h, n.text) //nolint:errcheck // a hash takes everything
	for _, c := range n.items {
		c.digest(h)
	}
}

// formatter takes a text apart that the parser has accepted, and keeps what the parser throws away.
type formatter struct {
	src string
	off int
	all []line
}

type lineKind uint8

const (
	lineBlank lineKind = iota
	lineComment
	lineHeader
	linePair
)

// line is a top-level expression.
type line struct {
	kind    lineKind
	text    string // the comment, the header, or the key
	value   *cell
	comment string // at its end
}

// cell is a value, or a member of one.
type cell struct {
	before  []string // comments on lines of their own above it; "" is a blank line
	key     string   // of a member of an inline table
	text    string   // of a scalar
	open    byte     // '[' or '{' for what has members
	members []*cell
	after   []string // comments before the closing bracket
	broken  bool     // was written on several lines, and stays so
	comment string   // at its end
}

// lines reads the whole text.
func (f *formatter) lines() {
	for f.off < len(f.src) {
		f.space()
		l := line{}
		switch c := f.peek(); {
		case c == '\n':
		case c == '#':
			l = line{kind: lineComment, text: f.commentText()}
		case strings.HasPrefix(f.src[f.off:], "[["):
			l = line{kind: lineHeader, text: "[[" + f.header(2) + "]]"}
		case c == '[':
			l = line{kind: lineHeader, text: "[" + f.header(1) + "]"}
		case c == 0:
			return
		default:
			l = line{kind: linePair, text: f.key()}
			f.off++ // the =
			f.space()
			l.value = f.value()
		}
		if f.space(); f.peek() == '#' {
			l.comment = f.commentText()
		}
		f.off++ // the line break
		if l.kind != lineBlank || len(f.all) > 0 && f.all[len(f.all)-1].kind != lineBlank {
			f.all = append(f.all, l)
		}
	}
}

// header reads the name between brackets.
func (f *formatter) header(brackets int) string {
	f.off += brackets
	name := f.key()
	f.off += brackets
	return name
}

// peek gives the next byte, or 0 at the end. A line break of Windows counts as one.
func (f *formatter) peek() byte {
	if f.off < len(f.src) && f.src[f.off] == '\r' {
		f.off++
	}
	if f.off >= len(f.src) {
		return 0
	}
	return f.src[f.off]
}

func (f *formatter) space() {
	for f.off < len(f.src) && (f.src[f.off] == ' ' || f.src[f.off] == '\t') {
		f.off++
	}
}

func (f *formatter) commentText() string {
	start := f.off
	f.off = lineEnd(f.src, f.off)
	return strings.TrimRight(f.src[start:f.off], " \t\r")
}

// key reads a dotted key and stops at the first byte after it.
func (f *formatter) key() string {
	var parts []string
	for {
		f.space()
		part := f.scalar(".=] \t")
		parts = append(parts, simplest(part))
		if f.space(); f.peek() != '.' {
			return strings.Join(parts, ".")
		}
		f.off++
	}
}

// simplest gives the shortest spelling of one part of a key.
func simplest(part string) string {
	inner := part
	if len(part) >= 2 && (part[0] == '"' || part[0] == '\'') {
		inner = part[1 : len(part)-1]
	}
	switch {
	case inner == part || strings.ContainsAny(inner, `\"`) || strings.ContainsFunc(inner, isControl):
		return part
	case inner != "" && consistsOf(inner, bareKey) && !strings.Contains(inner, "."):
		return inner
	default:
		return `"` + inner + `"`
	}
}

// scalar reads a quoted or a bare value; a bare one ends at one of the bytes in end, or at the line's.
func (f *formatter) scalar(end string) string {
	start, rest := f.off, f.src[f.off:]
	switch {
	case strings.HasPrefix(rest, `"""`), strings.HasPrefix(rest, `'''`):
		f.off += 3 + endOfBlock(rest[3:], rest[:3])
	case strings.HasPrefix(rest, `"`):
		f.off += 1 + endOfString(rest[1:])
	case strings.HasPrefix(rest, `'`):
		f.off += 2 + max(strings.IndexByte(rest[1:], '\''), 0)
	default:
		n := strings.IndexAny(rest, end+"\r\n#")
		if n < 0 {
			n = len(rest)
		}
		f.off += n
		return strings.TrimRight(rest[:n], " \t")
	}
	f.off = min(f.off, len(f.src))
	return f.src[start:f.off]
}

// endOfString gives the length of a basic string with its closing quote.
func endOfString(s string) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(s)
}

// endOfBlock gives the length of a multi-line string with its closing quotes, before which one or two more may
// stand.
func endOfBlock(s, quotes string) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quotes[0] == '"':
			i++
		case strings.HasPrefix(s[i:], quotes):
			for i += 3; i < len(s) && s[i] == quotes[0]; {
				i++
			}
			return i
		}
	}
	return len(s)
}

// value reads any value.
func (f *formatter) value() *cell {
	c := &cell{}
	switch open := f.peek(); open {
	case '[', '{':
		f.off++
		c.open = open
		f.members(c)
	default:
		c.text = f.scalar(",]}")
		if inner := strings.Trim(c.text, "'"); len(inner) == len(c.text)-2 && !strings.ContainsAny(inner, `\"`) {
			c.text = `"` + inner + `"`
		}
	}
	return c
}

// members reads what stands between the brackets of a list or an inline table.
func (f *formatter) members(c *cell) {
	var pending []string
	fresh := false // a line has begun since the last member
	for f.off < len(f.src) {
		f.space()
		switch b := f.peek(); b {
		case ']', '}':
			f.off++
			c.after = trimBlank(pending)
			return
		case ',':
			f.off++
		case '\n':
			f.off++
			if fresh && len(pending) > 0 && pending[len(pending)-1] != "" || fresh && len(pending) == 0 && len(c.members) > 0 {
				pending = append(pending, "")
			}
			fresh = true
			c.broken = c.broken || len(c.members) == 0
		case '#':
			text := f.commentText()
			c.broken = true
			if !fresh && len(c.members) > 0 {
				c.members[len(c.members)-1].comment = text
				continue
			}
			pending = append(pending, text)
			if f.peek() == '\n' {
				f.off++
			}
			fresh = true
		default:
			m := f.member(c.open)
			m.before = pending
			pending, fresh = nil, false
			c.members = append(c.members, m)
		}
	}
}

func (f *formatter) member(open byte) *cell {
	if open == '[' {
		return f.value()
	}
	key := f.key()
	f.off++ // the =
	f.space()
	m := f.value()
	m.key = key
	return m
}

// trimBlank takes the blank lines at the end away.
func trimBlank(lines []string) []string {
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

func width(s string) int { return utf8.RuneCountInString(s) }
