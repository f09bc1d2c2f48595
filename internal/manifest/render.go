package manifest

import (
	"bufio"
	"fmt"
	"io"
	"strings"
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

// maxCaretLine bounds how much of a line is shown.
const maxCaretLine = 160

// caret gives the line as it can be shown on a terminal, and the mark below it. Control characters are
// replaced, so that a file cannot write escape sequences; tabs stay, in both lines, so that the mark fits.
func (p Problem) caret(line string) (text, mark string) {
	var t, m strings.Builder
	column := 0
	for _, r := range strings.TrimRight(line, "\r") {
		column++
		if column > maxCaretLine {
			t.WriteString("…")
			break
		}
		if r != '\t' && (isControl(r) || r >= 0x80 && r < 0xa0) {
			r = '\uFFFD'
		}
		t.WriteRune(r)
		switch {
		case column >= p.Column:
		case r == '\t':
			m.WriteByte('\t')
		default:
			m.WriteByte(' ')
		}
	}
	if p.Column > maxCaretLine {
		return t.String(), ""
	}
	m.WriteByte('^')
	width := min(p.width, maxCaretLine-p.Column)
	if width > 1 {
		m.WriteString(strings.Repeat("~", width-1))
	}
	return t.String(), m.String()
}
