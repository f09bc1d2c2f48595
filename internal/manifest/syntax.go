package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"
)

// Bounds of a source text.
const (
	MaxSourceSize = 256 << 10
	maxNesting    = 4
	maxElements   = 4096
)

// maxSyntaxErrors bounds how often the parser picks itself up. What comes after that many is noise.
const maxSyntaxErrors = 10

// parsers keeps the parsers' memory for the next text.
var parsers = sync.Pool{New: func() any { return new(unstable.Parser) }}

// read makes the tree of a TOML text. The second result is false when the text is broken, so that what is
// missing from the tree may only be missing because of that.
func read(src string, list *problemList) (*node, bool) {
	return readWithin(src, list, maxNesting)
}

// readWithin is read with a bound of its own on how deep the text nests.
func readWithin(src string, list *problemList, deepest int) (*node, bool) {
	root := &node{kind: kindTable, how: byHeader}
	if p, at := unreadable(src); p.Code != "" {
		list.add(at, p)
		return root, false
	}
	parser := parsers.Get().(*unstable.Parser)
	defer func() {
		parser.Reset(nil)
		parsers.Put(parser)
	}()
	d := &document{parser: parser, src: src, root: root, current: root, list: list, deepest: deepest}
	data := []byte(src)
	for failures := 0; ; failures++ {
		d.parser.Reset(data[d.base:])
		d.end = d.base
		for d.parser.NextExpression() {
			d.expression(d.parser.Expression())
		}
		err := d.parser.Error()
		if err == nil {
			break
		}
		d.lost = true
		at := d.errorAt(err)
		start := lineStart(src, at.off)
		list.add(at, d.explain(err, at, src[start:lineEnd(src, at.off)]))
		if failures == maxSyntaxErrors || d.foreign(at) {
			break
		}
		if d.base = d.resume(at.off, start); d.base >= len(src) {
			break
		}
	}
	return root, !d.lost
}

// unreadable finds what makes a file no text at all.
func unreadable(src string) (Problem, span) {
	p := Problem{Code: CodeSyntax}
	switch {
	case len(src) > MaxSourceSize:
		p.Message = fmt.Sprintf("the file has %d bytes; a manifest has at most 256 KiB", len(src))
		p.Fix = "check that this is the right file"
	case strings.HasPrefix(src, "\ufeff"):
		p.Message = "the file begins with a byte order mark"
		p.Why = "TOML is always UTF-8, and a mark would become part of the first key"
		p.Fix = "save the file as UTF-8 without BOM"
	case strings.IndexByte(src, 0) >= 0:
		p.Message = "the file has a NUL byte: it is not text"
		p.Fix = "give a pinnace.toml, not an image, archive or program"
		return p, span{off: strings.IndexByte(src, 0), length: 1}
	case !utf8.ValidString(src):
		p.Message = "the file is not valid UTF-8"
		p.Fix = "save the file as UTF-8"
		return p, span{off: invalidUTF8(src), length: 1}
	default:
		return Problem{}, span{}
	}
	return p, span{}
}

func invalidUTF8(s string) int {
	for i, r := range s {
		if r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD") {
			return i
		}
	}
	return 0
}

// errorAt gives the place of a parser's error, whatever the parser says.
func (d *document) errorAt(err error) span {
	at := span{off: len(d.src)}
	if perr, ok := errors.AsType[*unstable.ParserError](err); ok {
		if off := d.base + cap(d.parser.Data()) - cap(perr.Highlight); off >= d.base && off <= len(d.src) {
			at = span{off: off, length: len(perr.Highlight)}
		}
	}
	if at.off == len(d.src) && at.off > 0 {
		at.off--
	}
	return at
}

// explain puts a parser's error into our words. line is the line that it is on.
func (d *document) explain(err error, at span, line string) Problem {
	p := Problem{Code: CodeSyntax, Message: err.Error()}
	key, value, isPair := strings.Cut(line, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	odd, _ := utf8.DecodeRuneInString(d.src[at.off:])
	switch {
	case strings.HasPrefix(strings.TrimSpace(d.src), "{"):
		p.Message = "this looks like JSON; a manifest is TOML"
		p.Fix = `write keys as name = "api", one per line`
	case p.Message == "expected '=' after key" && at.off < len(d.src) && d.src[at.off] == ':':
		p.Message = "this looks like YAML; a manifest is TOML"
		p.Fix = `write keys as name = "api", one per line; tables begin with [name]`
	case odd >= utf8.RuneSelf && !strings.Contains(d.src[lineStart(d.src, at.off):at.off], "="):
		p.Message = fmt.Sprintf("%s (U+%04X) cannot stand here", strconv.QuoteRune(odd), odd)
		p.Why = "outside of quotes and comments all is ASCII, and letters of other alphabets can look like those"
		p.Fix = "type the word anew"
	case p.Message == "expected '=' after key" && d.clean == 0:
		p.Message += "; this does not look like TOML"
		p.Fix = "give a pinnace.toml; `pinnace init` writes one"
	case isPair && value == "":
		p.Message = "the value is missing"
	case isPair && (strings.HasPrefix(value, ".") || strings.HasPrefix(value, "-.")) && decimal("0"+strings.TrimPrefix(value, "-")):
		p.Message = "a number begins with a digit"
		p.Suggestion = displayName(key) + " = " + strings.Replace(value, ".", "0.", 1)
	case p.Message == "strings must be quoted", isPair && strings.HasPrefix(p.Message, "unexpected character"), isPair && strings.HasPrefix(p.Message, "expected keyword"):
		value = strings.TrimSpace(strings.SplitN(value, "#", 2)[0])
		p.Message = "a string needs quotes"
		if straight := strings.Trim(value, "“”„‟‘’«»"); straight != value {
			p.Message, value = "a string needs straight quotes", straight
		}
		if isPair && !strings.ContainsAny(value, `"'[]{},`) {
			p.Suggestion = displayName(key) + " = " + quote(value)
		}
	case strings.HasPrefix(p.Message, "integers cannot have leading zero"):
		p.Message = "a number cannot begin with 0"
		p.Fix = `write a file mode as a string: mode = "0400"`
	case strings.HasPrefix(p.Message, "expected ',' or ']'"):
		p.Message = "the list goes on without a comma, or is not closed"
		p.Fix = "put a comma between its values, and ] after the last one"
	case strings.HasPrefix(p.Message, "multiline basic string not terminated"):
		line, _ := d.list.position(d.began())
		p.Message = "a string that began with three quotes is not closed; it began on " + lineName(line)
	case strings.HasSuffix(p.Message, "strings cannot have new lines"), strings.HasPrefix(p.Message, "unterminated "):
		p.Message = "the string is not closed on its line"
		p.Fix = `close it with the quote that it began with, or use """ for several lines`
	}
	return p
}

// foreign reports whether the error is in the first thing of the file and the file is of some other format,
// where going on would only bring more of the same.
func (d *document) foreign(at span) bool {
	if d.clean > 0 {
		return false
	}
	head := strings.TrimSpace(d.src)
	return strings.HasPrefix(head, "{") || strings.HasPrefix(head, "<") || at.off < len(d.src) && bytes.IndexByte([]byte(`:"{`), d.src[at.off]) >= 0
}

// resume finds where to go on after an error at offset off, on the line that begins at start. It would rather
// miss a second error than make one up: after a broken header, and within a value of several lines, it goes on at
// the next header, and otherwise at the next line that begins like a key or a header.
func (d *document) resume(off, start int) int {
	line := strings.TrimLeft(d.src[start:lineEnd(d.src, off)], " \t")
	first := d.began()
	_, value, _ := strings.Cut(d.src[first:lineEnd(d.src, first)], "=")
	value = strings.TrimLeft(value, " \t")
	inTable := strings.HasPrefix(value, "{") && (first < start || !strings.Contains(value, "}"))
	headerOnly := strings.HasPrefix(line, "[") || inTable || first < start && !beginsLikeKey(line)
	if headerOnly {
		d.current = nil
	}
	for i := lineEnd(d.src, off) + 1; i < len(d.src); i = lineEnd(d.src, i) + 1 {
		line := strings.TrimLeft(d.src[i:lineEnd(d.src, i)], " \t")
		if beginsLikeHeader(line) || !headerOnly && (beginsLikeKey(line) || strings.HasPrefix(line, "[")) {
			return i
		}
	}
	return len(d.src)
}

// began finds the line that the broken expression begins on: the first one after the last good expression that is
// neither blank nor a comment.
func (d *document) began() int {
	for i := d.end; i < len(d.src); i = lineEnd(d.src, i) + 1 {
		line := strings.TrimLeft(d.src[i:lineEnd(d.src, i)], " \t\r")
		if line != "" && line[0] != '#' {
			return i
		}
	}
	return min(d.end, len(d.src))
}

func beginsLikeHeader(line string) bool {
	rest := strings.TrimLeft(line, "[ \t")
	name := strings.TrimLeftFunc(rest, inKey)
	return len(rest) < len(line) && len(name) < len(rest) && strings.HasPrefix(name, "]")
}

func beginsLikeKey(line string) bool {
	rest := strings.TrimLeftFunc(line, inKey)
	if line != "" && strings.IndexByte(`"'`, line[0]) >= 0 {
		_, rest, _ = strings.Cut(line[1:], line[:1])
	}
	return len(rest) < len(line) && strings.HasPrefix(strings.TrimLeft(rest, " \t"), "=")
}

// inKey reports whether a character may be meant as one of a key without quotes: letters that look right count.
func inKey(r rune) bool { return r >= utf8.RuneSelf || strings.ContainsRune(bareKey, r) }

// bareKey are the characters of a dotted key without quotes.
const bareKey = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."

func lineStart(s string, off int) int { return strings.LastIndexByte(s[:off], '\n') + 1 }

// lineEnd gives the offset of the line break after off, or of the end of the text.
func lineEnd(s string, off int) int {
	if i := strings.IndexByte(s[off:], '\n'); i >= 0 {
		return off + i
	}
	return len(s)
}

func lineName(line int) string { return "line " + strconv.Itoa(line) }

// constant reads a TOML value of the table.
func constant(text string) *node {
	if text == "" {
		return nil
	}
	root, _ := read("x = "+text, &problemList{})
	return root.child("x")
}
