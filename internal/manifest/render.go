package manifest

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"unicode"

	eaw "golang.org/x/text/width"
)

// RenderOptions chooses how problems look.
type RenderOptions struct {
	Color bool // with ANSI colours
	Caret bool // with the line of the source and a mark under the place, where there is one
}

const (
	ansiReset  = "\x1b[0m"
	ansiBold   = "\x1b[1m"
	ansiDim    = "\x1b[2m"
	ansiRed    = "\x1b[31m"
	ansiYellow = "\x1b[33m"
)

// Render writes the problems for a person: file:line:column, code, key and message on the first line, and the
// reason and the fix below. src is the source that was parsed; it is needed for Caret only. Errors of w are
// left to w.
func (p Problems) Render(w io.Writer, file string, src []byte, opts RenderOptions) {
	out := bufio.NewWriter(w)
	var lines []string
	if opts.Caret {
		lines = strings.Split(string(src), "\n")
	}
	paint := func(code, s string) string {
		if !opts.Color {
			return s
		}
		return code + s + ansiReset
	}
	for _, q := range p {
		place := file
		if q.Line > 0 {
			place = fmt.Sprintf("%s:%d:%d", file, q.Line, q.Column)
		}
		hue := ansiRed
		if q.Severity == SeverityWarning {
			hue = ansiYellow
		}
		rest := strings.TrimPrefix(q.headline(), q.Code+" ")
		fmt.Fprintf(out, "%s: %s %s\n", paint(ansiBold, place), paint(hue, q.Code), rest)
		if opts.Caret && q.width > 0 && q.Line <= len(lines) {
			text, mark := q.caret(lines[q.Line-1])
			number := fmt.Sprintf("%5d | ", q.Line)
			blank := strings.Repeat(" ", len(number)-2) + "| "
			fmt.Fprintf(out, "%s%s\n%s%s\n", paint(ansiDim, number), text, paint(ansiDim, blank), paint(hue, mark))
		}
		if q.Why != "" {
			fmt.Fprintf(out, "    why: %s\n", q.Why)
		}
		if q.Fix != "" {
			fmt.Fprintf(out, "    fix: %s\n", q.Fix)
		}
	}
	out.Flush() //nolint:errcheck // talk to a person; there is nowhere else to say that it was not heard
}

// Of a long line only a part is shown: maxCaretLine characters, and beforeCaret of them before the place.
const (
	maxCaretLine = 160
	beforeCaret  = 60
)

// caret gives the line as it can be shown on a terminal, and the mark below it. What a terminal would act on is
// replaced, so that a file cannot write escape sequences or turn the text around; tabs stay, in both lines, and what
// is two cells wide or none gets as much room below, so that the mark fits.
func (p Problem) caret(line string) (text, mark string) {
	var t, m strings.Builder
	first := 1
	if p.Column+p.width > maxCaretLine {
		first = max(p.Column-beforeCaret, 1)
	}
	column := 0
	for _, r := range strings.TrimRight(line, "\r") {
		if column++; column < first {
			continue
		}
		if column == first && first > 1 || column == first+maxCaretLine {
			t.WriteString("…")
			m.WriteString(below(p, column, 1))
			if column > first {
				break
			}
		}
		if r == '\t' {
			t.WriteByte('\t')
			m.WriteString(strings.ReplaceAll(below(p, column, 1), " ", "\t"))
			continue
		}
		if unprintable(r) {
			r = '\uFFFD'
		}
		t.WriteRune(r)
		m.WriteString(below(p, column, cells(r)))
	}
	if p.Column > column { // it is about the end of the line
		m.WriteByte('^')
	}
	return t.String(), strings.TrimRight(m.String(), " \t")
}

// below gives what stands in the second line below a character of so many cells.
func below(p Problem, column, room int) string {
	switch {
	case column < p.Column || column >= p.Column+max(p.width, 1):
		return strings.Repeat(" ", room)
	case column == p.Column:
		return "^" + strings.Repeat("~", max(room-1, 0))
	default:
		return strings.Repeat("~", room)
	}
}

// unprintable finds control characters, and those that format text, such as marks that turn its direction around.
// Joiners are fine.
func unprintable(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) || unicode.Is(unicode.Cf, r) && r != '\u200c' && r != '\u200d'
}

// cells tells how many cells of a terminal a character takes.
func cells(r rune) int {
	if unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	if k := eaw.LookupRune(r).Kind(); k == eaw.EastAsianWide || k == eaw.EastAsianFullwidth {
		return 2
	}
	return 1
}
