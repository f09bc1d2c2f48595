package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// schemaID names the JSON Schema by the place that it is kept at. Nothing is fetched from there.
const schemaID = "https://raw.githubusercontent.com/pinnacehq/pinnace/main/docs/specs/manifest/pinnace.schema.json"

// JSONSchema gives the manifest as a JSON Schema of draft 7, the newest one that the TOML language servers
// read, made from the table.
//
// It is for editors. What it refuses, Parse refuses too; what it accepts may still break a rule that a schema
// cannot say, such as two ports with one number or a timeout that is longer than its interval.
func JSONSchema() []byte {
	root := schemaV1()
	doc := object{
		{"$schema", "http://json-schema.org/draft-07/schema#"},
		{"$id", schemaID},
		{"title", "Pinnace manifest"},
		{"description", "What to run, and how: one workload. Schema " + SchemaV1 + "."},
	}
	doc = append(doc, tableSchema(root)...)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	// It fails on types that JSON has not, and the table has none of those.
	_ = enc.Encode(doc)
	return b.Bytes()
}

// object is a JSON object that keeps its order, so that the schema reads like the reference page.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		if err := enc.Encode(m.name); err != nil {
			return nil, err
		}
		b.WriteByte(':')
		if err := enc.Encode(m.value); err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// tableSchema describes a table and its members.
func tableSchema(t *spec) object {
	var properties object
	var required []string
	var rules []any
	for _, c := range t.children {
		properties = append(properties, member{c.name, keySchema(c)})
		if c.mustBeThere() {
			required = append(required, c.name)
		}
		if len(c.When) > 0 {
			rules = append(rules, object{{"if", t.whenSchema(c.When)}, {"else", object{{"properties", object{{c.name, false}}}}}})
		}
		if len(c.RequiredWhen) > 0 {
			rules = append(rules, object{{"if", t.whenSchema(c.RequiredWhen)}, {"then", object{{"required", []string{c.name}}}}})
		}
	}
	out := object{{"type", "object"}, {"properties", properties}}
	if len(required) > 0 {
		out = append(out, member{"required", required})
	}
	if len(rules) > 0 {
		out = append(out, member{"allOf", rules})
	}
	return append(out, member{"additionalProperties", false})
}

// mustBeThere tells whether a manifest without the key is incomplete, whatever else is in it.
func (c *spec) mustBeThere() bool {
	if c.Required {
		return true
	}
	if c.Type != Table || c.present != nil {
		return false
	}
	for _, m := range c.children {
		if m.mustBeThere() {
			return true
		}
	}
	return false
}

// keySchema describes one row.
func keySchema(c *spec) object {
	out := object{{"description", c.schemaText()}}
	if c.fallback != nil {
		out = append(out, member{"default", c.fallback.json()})
	}
	switch c.Type {
	case String:
		return append(out, textSchema(c)...)
	case Integer:
		return append(out, member{"type", "integer"}, member{"minimum", c.Min}, member{"maximum", c.Max})
	case Bool:
		return append(out, member{"type", "boolean"})
	case Duration:
		return append(out, quantitySchema(durationUnits, c)...)
	case Size:
		return append(out, quantitySchema(sizeUnits, c)...)
	case CPU:
		// Not "multipleOf": validators divide binary fractions, and say that 1.001 is no multiple of 0.001.
		return append(out, member{"type", "number"}, member{"minimum", json.Number(formatMilli(c.Min))}, member{"maximum", json.Number(formatMilli(c.Max))})
	case Mode:
		return append(out, member{"type", "string"}, member{"pattern", "^0[0-7]{3}$"})
	case Argv:
		return append(out, listSchema(c, freeText())...)
	case StringSet:
		return append(append(out, listSchema(c, textSchema(c))...), member{"uniqueItems", true})
	case IntegerSet:
		// The only one there is has the status codes of HTTP.
		codes := object{{"type", "integer"}, {"minimum", 200}, {"maximum", 599}, {"not", object{{"minimum", 300}, {"maximum", 399}}}}
		return append(append(out, listSchema(c, codes)...), member{"uniqueItems", true})
	case StringMap:
		return append(out, namedSchema(c, freeText())...)
	case Tables:
		return append(out, namedSchema(c, tableSchema(c))...)
	default:
		return append(out, tableSchema(c)...)
	}
}

// schemaText is what an editor shows beside a key.
func (c *spec) schemaText() string {
	parts := []string{c.Doc}
	if len(c.When) > 0 {
		parts[0] += " Only " + c.When.String() + "."
	}
	if len(c.RequiredWhen) > 0 {
		parts = append(parts, "Required "+c.RequiredWhen.String()+".")
	}
	if text := c.DefaultText(); text != "" {
		parts = append(parts, "Default: "+text+".")
	}
	if text := strings.Join(c.BoundsText(), "; "); text != "" {
		parts = append(parts, "Bounds: "+text+".")
	}
	return strings.Join(append(parts, "A change: "+c.Effect.Meaning()+"."), "\n\n")
}

// quantitySchema has two patterns, as editors show the one that failed: whoever has the unit wrong gets the short
// one. The long one knows the bounds.
func quantitySchema(u *units, c *spec) object {
	form := "^[0-9]+(" + strings.Join(u.names, "|") + ")$"
	return object{
		{"type", "string"},
		{"pattern", form},
		{"if", object{{"pattern", form}}},
		{"then", object{{"pattern", u.patternBetween(c.Min, c.Max)}}},
	}
}

// freeText is any text that an argument or a variable can carry.
func freeText() object { return object{{"type", "string"}, {"pattern", `^[^\x00]*$`}} }

func textSchema(c *spec) object {
	out := object{{"type", "string"}}
	if len(c.Values) > 0 {
		out = append(out, member{"enum", c.Values})
	}
	if c.Pattern == patternPath || c.Pattern == patternRequest {
		// The bound is in bytes, of which there are at least as many as characters.
		out = append(out, member{"maxLength", maxPath})
	}
	return append(out, patterns(c)...)
}

func patterns(c *spec) object {
	var out object
	if c.Pattern != "" {
		out = append(out, member{"pattern", c.Pattern})
	}
	if c.Except != "" {
		out = append(out, member{"not", object{{"pattern", c.Except}}})
	}
	return out
}

func listSchema(c *spec, items object) object {
	out := object{{"type", "array"}, {"items", items}}
	if c.Min > 0 {
		out = append(out, member{"minItems", c.Min})
	}
	return append(out, member{"maxItems", c.Max})
}

// namedSchema describes a table whose names the author chooses.
func namedSchema(c *spec, element object) object {
	return object{{"type", "object"}, {"propertyNames", patterns(c)}, {"additionalProperties", element}, {"maxProperties", c.Max}}
}

// whenSchema describes the tables that a condition about their members holds for.
func (t *spec) whenSchema(c Condition) any {
	all := make([]any, len(c))
	for i, clause := range c {
		all[i] = t.clauseSchema(clause)
		if clause.Not {
			all[i] = object{{"not", all[i]}}
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return object{{"allOf", all}}
}

// clauseSchema spells a clause out: the key is there and right, or it is absent and its default is right.
func (t *spec) clauseSchema(clause Clause) any {
	c := t.byName[clause.Key]
	there := []string{c.name}
	switch {
	case len(clause.Values) == 0 && c.Type == StringSet:
		return object{{"required", there}, {"properties", object{{c.name, object{{"minItems", 1}}}}}}
	case len(clause.Values) == 0:
		return object{{"required", there}}
	}
	right := object{{c.name, object{{"enum", clause.Values}}}}
	if c.fallback != nil && clause.has(c.fallback) {
		return object{{"properties", right}}
	}
	either := []any{object{{"required", there}, {"properties", right}}}
	for i, dependent := range c.DefaultWhen {
		if !clause.has(c.cases[i]) {
			continue
		}
		all := []any{object{{"not", object{{"required", there}}}}, t.whenSchema(c.When), t.whenSchema(dependent.When)}
		for _, earlier := range c.DefaultWhen[:i] {
			all = append(all, object{{"not", t.whenSchema(earlier.When)}})
		}
		either = append(either, object{{"allOf", all}})
	}
	if len(either) == 1 {
		return either[0]
	}
	return object{{"anyOf", either}}
}

func (c Clause) has(n *node) bool {
	return slices.Contains(c.Values, n.text)
}

// json gives a value of the table as JSON has it.
func (n *node) json() any {
	switch n.kind {
	case kindString:
		return n.text
	case kindArray:
		items := make([]any, len(n.items))
		for i, item := range n.items {
			items[i] = item.json()
		}
		return items
	default:
		return json.RawMessage(n.text)
	}
}
