package manifest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"testing"

	tomltest "github.com/toml-lang/toml-test/v2"
)

// TestTOMLSuite gives the test suite of TOML 1.1 to the syntax layer: it refuses every invalid document with a
// place in it, and reads every valid one as the suite does. What a manifest excludes beyond that, such as dates
// and deep nesting, is not refused here but by those who know what a manifest is.
func TestTOMLSuite(t *testing.T) {
	suite := tomltest.TestCases()
	valid, invalid := 0, 0
	for _, name := range suiteFiles(t, suite) {
		src, err := fs.ReadFile(suite, name)
		if err != nil {
			t.Fatal(err)
		}
		list := &problemList{src: string(src)}
		root, whole := readWithin(list.src, list, 1000)
		switch {
		case strings.HasPrefix(name, "invalid/"):
			invalid++
			if !list.problems.HasErrors() {
				t.Errorf("%s is accepted", name)
				continue
			}
			for _, p := range list.problems {
				if p.Line < 1 || p.Column < 1 || p.Line > lineOf(src, len(src)) || p.Message == "" || p.Code != CodeSyntax {
					t.Errorf("%s: bad problem %+v", name, p)
				}
			}
			if m, problems := Parse(src); m != nil || !problems.HasErrors() {
				t.Errorf("%s is accepted as a manifest", name)
			}
		case strings.HasPrefix(name, "valid/"):
			valid++
			if isExcluded(list.problems) {
				t.Logf("%s is excluded: %v", name, list.problems)
				continue
			}
			if !whole || list.problems.HasErrors() {
				t.Errorf("%s is refused: %v", name, list.problems)
				continue
			}
			b, err := fs.ReadFile(suite, strings.TrimSuffix(name, ".toml")+".json")
			if err != nil {
				t.Fatal(err)
			}
			var want any
			if err := json.Unmarshal(b, &want); err != nil {
				t.Fatal(err)
			}
			if diff := difference(root, want); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			checkFormat(t, src)
		}
	}
	if valid < 200 || invalid < 400 {
		t.Errorf("only %d valid and %d invalid documents", valid, invalid)
	}
	t.Logf("%d valid and %d invalid documents", valid, invalid)
}

// isExcluded knows what no manifest may begin with although TOML 1.1 lets it.
func isExcluded(problems Problems) bool {
	return len(problems) == 1 && strings.Contains(problems[0].Message, "byte order mark")
}

// suiteFiles lists the documents of the suite for TOML 1.1.
func suiteFiles(t *testing.T, suite fs.FS) []string {
	t.Helper()
	f, err := suite.Open("files-toml-1.1.0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasSuffix(lines.Text(), ".toml") {
			names = append(names, lines.Text())
		}
	}
	return names
}

// difference compares a tree with the suite's JSON, where each value is { "type", "value" }.
func difference(n *node, want any) string {
	switch w := want.(type) {
	case []any:
		if n.kind != kindArray || len(n.items) != len(w) {
			return fmt.Sprintf("%s: a list of %d is %s of %d", n.path(), len(w), n.kind, len(n.items))
		}
		for i, item := range n.items {
			if diff := difference(item, w[i]); diff != "" {
				return diff
			}
		}
	case map[string]any:
		if kind, ok := w["type"].(string); ok && len(w) == 2 {
			if value, ok := w["value"].(string); ok {
				return valueDifference(n, kind, value)
			}
		}
		if n.kind != kindTable || len(n.items) != len(w) {
			return fmt.Sprintf("%s: a table of %d is %s of %d", n.path(), len(w), n.kind, len(n.items))
		}
		for _, c := range n.items {
			member, ok := w[c.key]
			if !ok {
				return c.path() + " is not there"
			}
			if diff := difference(c, member); diff != "" {
				return diff
			}
		}
	}
	return ""
}

func valueDifference(n *node, kind, want string) string {
	ok := false
	switch kind {
	case "string":
		ok = n.kind == kindString && n.text == want
	case "bool":
		ok = n.kind == kindBool && n.text == want
	case "integer":
		got, err := strconv.ParseInt(strings.ReplaceAll(n.text, "_", ""), 0, 64)
		ok = n.kind == kindInteger && err == nil && strconv.FormatInt(got, 10) == want
	case "float":
		text := strings.ReplaceAll(n.text, "_", "")
		if strings.HasSuffix(text, "nan") {
			text = "nan" // which has no sign in the suite
		}
		got, err := strconv.ParseFloat(text, 64)
		wanted, _ := strconv.ParseFloat(want, 64)
		ok = n.kind == kindFloat && err == nil && (got == wanted || math.IsNaN(got) && math.IsNaN(wanted))
	default:
		ok = n.kind == kindDate
	}
	if ok {
		return ""
	}
	return fmt.Sprintf("%s: %s %q is %s %q", n.path(), kind, want, n.kind, n.text)
}
