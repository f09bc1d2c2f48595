package manifest

import "strings"

const (
	// maxLineWidth is where a list is broken into lines.
	maxLineWidth = 100
	// maxKeyWidth and maxLineWidth bound what takes part in an alignment, so that one long line does not push
	// the others away.
	maxKeyWidth = 40
)

// layout writes the lines out.
func (f *formatter) layout() string {
	var b strings.Builder
	lines := tidied(f.all)
	for i := 0; i < len(lines); {
		if lines[i].kind == linePair {
			n := i
			for n < len(lines) && lines[n].kind == linePair {
				n++
			}
			writePairs(&b, lines[i:n])
			i = n
			continue
		}
		b.WriteString(lines[i].text)
		writeComment(&b, lines[i].comment)
		b.WriteByte('\n')
		i++
	}
	return b.String()
}

// tidied puts the blank lines where they belong: one at most between other lines, none at the beginning, at the
// end and after a header, and one before each header and the comments that stand right above it.
func tidied(lines []line) []line {
	out := make([]line, 0, len(lines))
	above := leadingToHeaders(lines)
	blank := false
	for i, l := range lines {
		if l.kind == lineBlank {
			blank = true
			continue
		}
		afterHeader := len(out) > 0 && out[len(out)-1].kind == lineHeader
		if above[i] && (i == 0 || !lines[i-1].isRemark()) {
			blank, afterHeader = true, false
		}
		if blank && !afterHeader && len(out) > 0 {
			out = append(out, line{kind: lineBlank})
		}
		blank = false
		out = append(out, l)
	}
	return out
}

// leadingToHeaders marks the headers, and the remarks between which and a header nothing else stands.
func leadingToHeaders(lines []line) []bool {
	marks := make([]bool, len(lines))
	for i := len(lines) - 1; i >= 0; i-- {
		marks[i] = lines[i].kind == lineHeader || lines[i].isRemark() && i+1 < len(lines) && marks[i+1]
	}
	return marks
}

// isRemark tells remarks from keys that are commented out, which belong to the table above.
func (l line) isRemark() bool {
	return l.kind == lineComment && !beginsLikeKey(strings.TrimLeft(l.text, "# \t"))
}

// writePairs writes keys and values that stand together, with their = in one column.
func writePairs(b *strings.Builder, pairs []line) {
	column := 0
	for _, p := range pairs {
		if w := width(p.text); w <= maxKeyWidth {
			column = max(column, w)
		}
	}
	texts := make([]string, len(pairs))
	for i, p := range pairs {
		key := p.text + strings.Repeat(" ", max(0, column-width(p.text))) + " = "
		texts[i] = key + p.value.render(0, width(key))
	}
	columns := commentColumns(pairs, texts)
	for i, p := range pairs {
		b.WriteString(texts[i])
		if p.comment != "" {
			b.WriteString(strings.Repeat(" ", columns[i]-lastWidth(texts[i])))
			b.WriteString(p.comment)
		}
		b.WriteByte('\n')
	}
}

// commentColumns gives the column of the comment of each line: the same for neighbours that all have one.
func commentColumns(pairs []line, texts []string) []int {
	columns := make([]int, len(pairs))
	for i := 0; i < len(pairs); {
		n := i
		for n < len(pairs) && aligns(pairs, texts, n) {
			columns[i] = max(columns[i], width(texts[n])+1)
			n++
		}
		if n == i {
			columns[i] = lastWidth(texts[i]) + 1
			n++
		}
		for j := i + 1; j < n; j++ {
			columns[j] = columns[i]
		}
		i = n
	}
	return columns
}

// aligns reports whether the comment of a line is aligned with those of its neighbours.
func aligns(pairs []line, texts []string, i int) bool {
	return pairs[i].comment != "" && !strings.Contains(texts[i], "\n") && width(texts[i]) <= maxLineWidth
}

// lastWidth is the width of the last line of a text.
func lastWidth(s string) int { return width(s[strings.LastIndexByte(s, '\n')+1:]) }

func writeComment(b *strings.Builder, comment string) {
	if comment != "" {
		b.WriteByte(' ')
		b.WriteString(comment)
	}
}

// render gives the text of a value. depth is the number of broken lists and tables around it, column where it
// begins.
func (c *cell) render(depth, column int) string {
	if c.open == 0 {
		return c.text
	}
	if !c.broken {
		text := c.oneLine(depth, column)
		first, _, several := strings.Cut(text, "\n")
		if c.open == '{' || several || column+width(first) <= maxLineWidth || len(c.members) == 0 {
			return text
		}
	}
	return c.manyLines(depth)
}

func (c *cell) closing() string { return string(c.open + 2) } // in ASCII ] and } are two after their openings

func (c *cell) oneLine(depth, column int) string {
	var b strings.Builder
	b.WriteByte(c.open)
	pad := ""
	if c.open == '{' && len(c.members) > 0 {
		pad = " "
	}
	b.WriteString(pad)
	column += 1 + len(pad)
	for i, m := range c.members {
		if i > 0 {
			b.WriteString(", ")
			column += 2
		}
		text := m.keyed(depth, column)
		if strings.Contains(text, "\n") {
			column = 0
		}
		column += lastWidth(text)
		b.WriteString(text)
	}
	b.WriteString(pad + c.closing())
	return b.String()
}

func (c *cell) manyLines(depth int) string {
	var b strings.Builder
	indent := strings.Repeat("  ", depth+1)
	b.WriteByte(c.open)
	b.WriteByte('\n')
	lines := func(lines []string) {
		for _, l := range lines {
			if l != "" {
				b.WriteString(indent + l)
			}
			b.WriteByte('\n')
		}
	}
	for _, m := range c.members {
		lines(m.before)
		b.WriteString(indent + m.keyed(depth+1, len(indent)) + ",")
		writeComment(&b, m.comment)
		b.WriteByte('\n')
	}
	lines(c.after)
	b.WriteString(strings.Repeat("  ", depth) + c.closing())
	return b.String()
}

// keyed gives a member: in a table its key and its value.
func (c *cell) keyed(depth, column int) string {
	if c.key == "" {
		return c.render(depth, column)
	}
	key := c.key + " = "
	return key + c.render(depth, column+width(key))
}
