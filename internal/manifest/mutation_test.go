package manifest

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// mutant is a manifest with one thing changed.
type mutant struct {
	what string
	src  []byte
	// harmful is set for changes that can only be errors, as the new value is of no use to the key.
	harmful bool
	// stated is set for the deletion of a key that says what its absence says too.
	stated bool
	// empty is set for the deletion of a table without members.
	empty bool
}

// TestMutations makes sure that nothing in a manifest is without meaning: whatever one key is changed to, there
// is an error or another canonical form. What takes a key away that states a default leaves the canonical form
// as it was, as it must; then the value is counted as a default.
func TestMutations(t *testing.T) {
	counts := make(map[string]int)
	for name, src := range corpus(t, "valid") {
		want, _ := Parse(src)
		values, defaults := want.Counts()
		for _, m := range mutants(t, src) {
			got, problems := Parse(m.src)
			switch {
			case got == nil && len(problems.Errors()) > 0:
				counts["refused"]++
			case got != nil && !bytes.Equal(got.Canonical(), want.Canonical()):
				counts["another form"]++
				if m.harmful {
					t.Errorf("%s: %s is accepted", name, m.what)
				}
			case got != nil && m.stated:
				counts["a default stated"]++
				if v, d := got.Counts(); d == defaults && v-d == values-defaults && len(m.src) > 0 && !m.empty {
					t.Errorf("%s: %s: %d values and %d defaults, as before", name, m.what, v, d)
				}
			default:
				t.Errorf("%s: %s changes nothing", name, m.what)
			}
		}
	}
	t.Log(counts)
	if counts["refused"] < 15000 || counts["another form"] < 300 {
		t.Errorf("only %v", counts)
	}
}

// mutants makes every mutant of a valid manifest: for each key that is written down its deletion, other names,
// other cases, values of every other type, and values out of its range.
func mutants(t *testing.T, src []byte) []mutant {
	t.Helper()
	list := &problemList{src: string(src)}
	root, whole := read(string(src), list)
	if !whole {
		t.Fatal(list.problems.Err())
	}
	var out []mutant
	visit(root, schemaV1(), "", func(n *node, row *spec, path string) {
		what := fmt.Sprintf("%s on line %d", path, lineOf(src, n.keyAt.off))
		key := string(src[n.keyAt.off : n.keyAt.off+n.keyAt.length])
		bare := strings.Trim(key, `"'`)
		for _, other := range []string{bare + "x", swapCase(bare), strings.ToUpper(bare)} {
			if other != bare {
				out = append(out, mutant{what: what + " renamed to " + other, src: splice(src, n.keyAt, other)})
			}
		}
		if row == nil || !row.Type.holdsValue() || n.how != byValue {
			return
		}
		at := valueSpan(src, n)
		for _, value := range retyped(row, n) {
			out = append(out, mutant{what: what + " = " + value, src: splice(src, at, value), harmful: true})
		}
		for _, value := range outOfRange(row) {
			out = append(out, mutant{what: what + " = " + shorten(value), src: splice(src, at, value), harmful: true})
		}
	})
	return append(out, deletions(src, root)...)
}

// visit calls f for every member of every table, with the row that it is read by: nil for the names that the
// author chose.
func visit(n *node, row *spec, path string, f func(n *node, row *spec, path string)) {
	for _, c := range n.items {
		at := strings.TrimPrefix(path+"."+c.key, ".")
		switch {
		case row == nil || row.Type == StringMap:
			f(c, nil, at)
		case row.Type == Tables && strings.Count(at, ".") == strings.Count(row.Path, ".")+1:
			f(c, nil, at)
			visit(c, row, at, f)
		default:
			f(c, row.byName[c.key], at)
			if c.kind == kindTable {
				visit(c, row.byName[c.key], at, f)
			}
		}
	}
}

// retyped gives a value of every type that the row does not read.
func retyped(row *spec, n *node) []string {
	all := map[string]string{
		"string": `"x"`, "empty": `""`, "integer": `1`, "float": `1.5`, "bool": `true`, "list": `[]`, "strings": `["x"]`,
		"integers": `[200]`, "table": `{}`, "full table": `{ x = 1 }`, "date": `1979-05-27`, "time": `07:32:00`,
		"infinity": `inf`, "nan": `nan`, "same digits": `"1"`,
	}
	if n.kind == kindInteger || n.kind == kindFloat || n.kind == kindBool {
		all["same as string"] = strconv.Quote(n.text)
	}
	if n.kind == kindInteger {
		all["same as float"] = n.text + ".0"
		if v, err := strconv.ParseInt(n.text, 10, 64); err == nil {
			all["same as hex"] = fmt.Sprintf("%#x", v)
			all["same with sign"] = fmt.Sprintf("%+d", v)
		}
	}
	if n.kind == kindString {
		all["same as list"] = "[" + quote(n.text) + "]"
		if n.text != "" && strings.Trim(n.text, numeric) == "" {
			all["same as integer"] = n.text
		}
	}
	if n.kind == kindArray && len(n.items) > 0 && n.items[0].kind == kindString {
		all["first as string"] = quote(n.items[0].text)
		all["mixed"] = `["x", 1]`
	}
	var harmless []string
	switch row.Type {
	case String, Mode:
		harmless = []string{"string", "same digits", "same as string"}
	case Duration, Size:
		harmless = nil
	case Integer:
		harmless = []string{"integer"}
	case CPU:
		harmless = []string{"integer", "float", "same as float"}
	case Bool:
		harmless = []string{"bool"}
	case Argv:
		harmless = []string{"list", "strings"}
	case StringSet:
		harmless = []string{"list", "strings"}
	case IntegerSet:
		harmless = []string{"integers"}
	case StringMap:
		harmless = []string{"table"}
	default:
	}
	var values []string
	for name, value := range all {
		if !slices.Contains(harmless, name) {
			values = append(values, value)
		}
	}
	slices.Sort(values)
	return values
}

// outOfRange gives values of the row's type that are beyond its bounds or not among its values.
func outOfRange(row *spec) []string {
	many := func(n int64, item func(i int) string) string {
		var b strings.Builder
		b.WriteByte('[')
		for i := range int(n) {
			b.WriteString(item(i) + ",")
		}
		return b.String() + "]"
	}
	switch row.Type {
	case String:
		values := []string{`""`, `"\u0000"`, `"no\u0000thing"`, `"` + strings.Repeat("x", 5000) + `"`, `" "`, `"é\n"`}
		return values
	case Mode:
		return []string{`"1000"`, `"4755"`, `"0800"`, `"400"`, `"00400"`, `"-400"`, `"0o40"`}
	case Integer:
		return []string{strconv.FormatInt(row.Min-1, 10), strconv.FormatInt(row.Max+1, 10), "-1", "9223372036854775807", "9223372036854775808", "1_0"}
	case Duration:
		values := []string{fmt.Sprintf(`"%dms"`, row.Max+1), `"-1s"`, `"1.5s"`, `"1d"`, `"5"`, `"5S"`, `" 5s"`, `"5 s"`, `"1m30s"`, `"99999999999999999999s"`, `"9223372036854775807h"`}
		if row.Min > 0 {
			values = append(values, fmt.Sprintf(`"%dms"`, row.Min-1), `"0s"`)
		}
		return values
	case Size:
		return []string{fmt.Sprintf(`"%dKiB"`, row.Min/kib-1), fmt.Sprintf(`"%dKiB"`, row.Max/kib+1), `"512MB"`, `"512M"`, `"512"`, `"512mib"`, `"1.5GiB"`, `"0GiB"`, `"-1GiB"`, `"9223372036854775807TiB"`}
	case CPU:
		return []string{formatMilli(row.Min - 1), formatMilli(row.Max + 1), "0", "-1", "0.0505", "5e-1", "1_0", "9223372036854775807"}
	case Argv:
		values := []string{many(row.Max+1, func(int) string { return `"x"` }), `["x", "\u0000"]`}
		if row.Min > 0 {
			values = append(values, "[]", `[""]`)
		}
		return values
	case StringSet:
		// Sets with given values cannot be too long without saying one twice.
		return []string{many(row.Max+1, func(i int) string { return fmt.Sprintf(`"A%d"`, i) }), `["A", "A"]`, `[""]`, `["a b"]`}
	case IntegerSet:
		return []string{many(row.Max+1, func(i int) string { return strconv.Itoa(400 + i) }), "[200, 200]", "[]", "[199]", "[302]", "[600]", "[-200]"}
	case StringMap:
		return []string{`{ "" = "x" }`, `{ "a b" = "x" }`, `{ 1A = "x" }`, `{ PINNACE_X = "x" }`, `{ A = "` + strings.Repeat("x", maxEnvironment) + `" }`}
	default:
		return nil
	}
}

// deletions takes one node after the other away, and writes what is left as TOML again.
func deletions(src []byte, root *node) []mutant {
	var out []mutant
	for i := range countNodes(root) {
		// The tree is made again for each deletion, as a node is gone for good.
		tree, _ := read(string(src), &problemList{src: string(src)})
		j := 0
		walk(tree, func(parent, n *node) {
			if j++; j-1 != i {
				return
			}
			parent.items = slices.DeleteFunc(slices.Clone(parent.items), func(m *node) bool { return m == n })
			out = append(out, mutant{
				what: fmt.Sprintf("%s on line %d deleted", n.path(), lineOf(src, n.keyAt.off)), src: rewritten(tree), stated: saysNothing(n), empty: n.kind == kindTable && len(n.items) == 0,
			})
		})
	}
	return out
}

// saysNothing reports whether a node states what its absence means too: the default of its row, or a table of
// such, or a table without members.
func saysNothing(n *node) bool {
	if n.kind == kindTable {
		for _, c := range n.items {
			if !saysNothing(c) {
				return false
			}
		}
		return true
	}
	parts := strings.Split(n.path(), ".")
	row := schemaV1()
	for _, p := range parts {
		if next := row.byName[p]; next != nil {
			row = next
		}
	}
	for _, c := range slices.Concat([]*node{row.fallback}, row.cases) {
		if c != nil && valueOf(row, c) == valueOf(row, n) {
			return true
		}
	}
	return false
}

// valueOf gives a value of a row in canonical units, to compare.
func valueOf(row *spec, n *node) string {
	switch row.Type {
	case Duration, Size, CPU:
		v, _ := (&decoder{}).quantity(row, n)
		return strconv.FormatInt(v, 10)
	default:
		return fmt.Sprint(plain(n))
	}
}

// rewritten writes a tree as inline tables, which is the same to a reader.
func rewritten(root *node) []byte {
	var b bytes.Buffer
	for _, c := range root.items {
		b.WriteString(strconv.Quote(c.key) + " = ")
		write(&b, c)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

func write(b *bytes.Buffer, n *node) {
	switch n.kind {
	case kindTable:
		b.WriteString("{ ")
		for i, c := range n.items {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(strconv.Quote(c.key) + " = ")
			write(b, c)
		}
		b.WriteString(" }")
	case kindArray:
		b.WriteByte('[')
		for _, c := range n.items {
			write(b, c)
			b.WriteByte(',')
		}
		b.WriteByte(']')
	case kindString:
		b.WriteString((&encoder{}).quoted(n.text))
	default:
		b.WriteString(n.text)
	}
}

func splice(src []byte, at span, with string) []byte {
	return slices.Concat(src[:at.off], []byte(with), src[at.off+at.length:])
}

func lineOf(src []byte, off int) int { return bytes.Count(src[:off], []byte("\n")) + 1 }

// valueSpan gives the whole text of a value; the parser has no end of lists.
func valueSpan(src []byte, n *node) span {
	f := &formatter{src: string(src), off: n.at.off}
	f.value()
	return span{off: n.at.off, length: f.off - n.at.off}
}

// walk visits the members of all tables.
func walk(n *node, visit func(parent, n *node)) {
	for _, c := range slices.Clone(n.items) {
		if n.kind == kindTable {
			visit(n, c)
		}
		walk(c, visit)
	}
}

func countNodes(n *node) int {
	count := 0
	walk(n, func(_, _ *node) { count++ })
	return count
}

func swapCase(s string) string {
	if s[:1] != strings.ToUpper(s[:1]) {
		return strings.ToUpper(s[:1]) + s[1:]
	}
	return strings.ToLower(s[:1]) + s[1:]
}
