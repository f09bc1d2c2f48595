package manifest

import (
	"bytes"
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/xeipuuv/gojsonschema"
)

// validators are two implementations of JSON Schema that know nothing of each other and of us.
type validators struct {
	one *jsonschema.Schema
	two *gojsonschema.Schema
}

func newValidators(t *testing.T) validators {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(JSONSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(schemaID, doc); err != nil {
		t.Fatal(err)
	}
	one, err := c.Compile(schemaID)
	if err != nil {
		t.Fatal(err)
	}
	two, err := gojsonschema.NewSchema(gojsonschema.NewBytesLoader(JSONSchema()))
	if err != nil {
		t.Fatal(err)
	}
	return validators{one, two}
}

// judge gives the verdict of both on the tree of a TOML text. They must agree.
func (v validators) judge(t *testing.T, root *node) (ok bool, why string) {
	t.Helper()
	b, err := json.Marshal(plain(root))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	err = v.one.Validate(doc)
	if err != nil {
		why = err.Error()
	}
	result, errTwo := v.two.Validate(gojsonschema.NewBytesLoader(b))
	if errTwo != nil {
		t.Fatal(errTwo)
	}
	if result.Valid() != (err == nil) {
		t.Errorf("one says %v, the other %v\n%s", err, result.Errors(), b)
	}
	return err == nil, why
}

// plain makes of a tree what a TOML library would give.
func plain(n *node) any {
	switch n.kind {
	case kindTable:
		m := make(map[string]any, len(n.items))
		for _, c := range n.items {
			m[c.key] = plain(c)
		}
		return m
	case kindArray:
		items := make([]any, len(n.items))
		for i, c := range n.items {
			items[i] = plain(c)
		}
		return items
	case kindInteger:
		if v, err := strconv.ParseInt(n.text, 0, 64); err == nil {
			return v
		}
	case kindFloat:
		if _, err := strconv.ParseFloat(n.text, 64); err == nil && n.text[0] != '+' && !strings.ContainsAny(n.text, "n_") {
			return json.Number(n.text)
		}
		return 1e300 // for what JSON has no number
	case kindBool:
		return n.text == "true"
	default:
	}
	return n.text
}

// TestSchemaOnTheCorpus gives the whole corpus to both validators: what Parse accepts, the schema accepts.
func TestSchemaOnTheCorpus(t *testing.T) {
	v := newValidators(t)
	for name, src := range corpus(t, "valid") {
		root, _ := read(string(src), &problemList{src: string(src)})
		if ok, why := v.judge(t, root); !ok {
			t.Errorf("valid/%s: %s", name, why)
		}
	}
	// These break a rule that a schema cannot say. Everything else that Parse refuses, the schema refuses.
	beyond := []string{"duplicates", "paths", "rollout"}
	for name, src := range corpus(t, "invalid") {
		root, whole := read(string(src), &problemList{src: string(src)})
		if !whole {
			continue
		}
		if ok, _ := v.judge(t, root); ok != slices.Contains(beyond, name) {
			t.Errorf("invalid/%s: accepted: %t", name, ok)
		}
	}
}

// TestSchemaIsNoWider changes one value after the other in every valid manifest: where Parse refuses the change
// because of the value itself, the schema refuses it too; where Parse accepts it, so does the schema.
func TestSchemaIsNoWider(t *testing.T) {
	v := newValidators(t)
	byValue := []string{CodeUnknownKey, CodeWrongCase, CodeWrongType, CodeMissing, CodeOutOfRange, CodeBadUnit, CodeReservedName, CodeNotApplicable}
	refused, accepted := 0, 0
	seen := make(map[string]int)
	onLine := regexp.MustCompile(` on line \d+`)
	for name, src := range corpus(t, "valid") {
		for _, m := range mutants(t, src) {
			// The same change in three files says enough; all of them take long.
			what := onLine.ReplaceAllString(m.what, "")
			if seen[what]++; seen[what] > 3 {
				continue
			}
			list := &problemList{src: string(m.src)}
			root, whole := read(string(m.src), list)
			if !whole {
				continue
			}
			got, problems := fill(schemaV1(), root, whole, list)
			ok, why := v.judge(t, root)
			switch {
			case got != nil && !ok:
				t.Errorf("%s: %s: Parse accepts it, but the schema says %s", name, m.what, why)
			case got == nil && ok && slices.ContainsFunc(problems, func(p Problem) bool { return slices.Contains(byValue, p.Code) }) && !beyondSchema(problems):
				t.Errorf("%s: %s: the schema accepts it, but Parse says %v", name, m.what, problems.Err())
			case ok:
				accepted++
			default:
				refused++
			}
		}
	}
	t.Logf("%d changes refused by both, %d not", refused, accepted)
	if refused < 5000 || accepted < 200 {
		t.Errorf("%d refused, %d accepted", refused, accepted)
	}
}

// beyondSchema knows the faults of single values that JSON Schema has no words for, as it sees numbers and not
// how they are spelled, and no two tables at a time.
func beyondSchema(problems Problems) bool {
	for _, p := range problems.Errors() {
		if !slices.ContainsFunc([]string{
			"is not written as a plain decimal number", "has more than three decimals", "expected an integer, found the number",
			"program's name is empty", `"sni" does not apply to udp`, "needs a tcp port", "bytes in all",
		}, func(s string) bool { return strings.Contains(p.Message, s) }) {
			return false
		}
	}
	return true
}

func TestSchemaNamesEveryKey(t *testing.T) {
	var doc map[string]any
	if err := json.Unmarshal(JSONSchema(), &doc); err != nil {
		t.Fatal(err)
	}
	var found []string
	collect(doc, "", &found)
	var want []string
	for _, k := range Keys() {
		want = append(want, k.Path)
	}
	slices.Sort(found)
	slices.Sort(want)
	if !slices.Equal(found, want) {
		t.Errorf("got  %v\nwant %v", found, want)
	}
}

// collect gathers the paths of what a schema describes, and makes sure that no table is open.
func collect(schema map[string]any, path string, found *[]string) {
	properties, _ := schema["properties"].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		sub, ok := properties[name].(map[string]any)
		if !ok || sub["description"] == "" {
			*found = append(*found, "no description: "+path+name)
			continue
		}
		*found = append(*found, path+name)
		collect(sub, path+name+".", found)
	}
	switch rest := schema["additionalProperties"].(type) {
	case map[string]any:
		if rest["type"] == "object" {
			collect(rest, path+"*.", found)
		}
	case nil:
		if schema["type"] == "object" {
			*found = append(*found, "open: "+path)
		}
	}
}
