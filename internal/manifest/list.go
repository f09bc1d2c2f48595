package manifest

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// problemList collects problems and knows where they are.
type problemList struct {
	src      string
	noText   bool // there is no TOML text to point at
	lines    []int
	problems Problems
}

// maxProblems bounds how many problems are told. Nobody reads more, and each takes memory.
const maxProblems = 1000

// add takes a problem in. The first letter of its code says how severe it is.
func (l *problemList) add(at span, p Problem) {
	switch {
	case len(l.problems) == maxProblems:
		p = Problem{Code: CodeSyntax, Message: fmt.Sprintf("there are more than %d problems; the others are not listed", maxProblems)}
		at = span{off: len(l.src)}
	case len(l.problems) > maxProblems:
		return
	}
	p.Severity = SeverityError
	if strings.HasPrefix(p.Code, "W") {
		p.Severity = SeverityWarning
	}
	if !l.noText {
		l.place(&p, at)
	}
	l.problems = append(l.problems, p)
}

// place points a problem at a part of the text, of which the first line is underlined.
func (l *problemList) place(p *Problem, at span) {
	p.Line, p.Column = l.position(at.off)
	end := min(at.off+at.length, lineEnd(l.src, min(at.off, len(l.src))))
	p.width = min(at.length, 1) // at the end of a line there is nothing to underline, but there is a place
	if at.off < end {
		p.width = utf8.RuneCountInString(l.src[at.off:end])
	}
}

// position turns an offset into line and column, both from 1.
func (l *problemList) position(off int) (line, column int) {
	if l.lines == nil {
		l.lines = []int{0}
		for i, c := range []byte(l.src) {
			if c == '\n' {
				l.lines = append(l.lines, i+1)
			}
		}
	}
	line = sort.SearchInts(l.lines, off+1)
	return line, 1 + utf8.RuneCountInString(l.src[l.lines[line-1]:min(off, len(l.src))])
}

// quote shows a text from the manifest in a message: short, and with nothing in it that a terminal acts on.
func quote(s string) string {
	return strconv.Quote(shorten(s))
}

// displayName shows a key: bare when TOML would take it bare, quoted otherwise.
func displayName(key string) string {
	key = shorten(key)
	if key != "" && consistsOf(key, bareKey) && !strings.Contains(key, "..") {
		return key
	}
	return strconv.Quote(key)
}

// maxShown is how many bytes of a text from the manifest a message shows.
const maxShown = 60

func shorten(s string) string {
	limit := maxShown
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit] + "…"
}
