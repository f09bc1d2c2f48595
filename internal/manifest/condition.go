package manifest

import (
	"slices"
	"strconv"
	"strings"
)

// Condition says when a row of the table applies: when all of its clauses hold. An empty one always holds.
//
// Conditions are data and not code, so that the parser, the JSON Schema and the texts for people are made from
// the same thing.
type Condition []Clause

// Clause is about another key of the same table, with its default filled in: it has one of Values or, without
// Values, it is set. Not turns it around.
type Clause struct {
	Key    string
	Values []string
	Not    bool
}

// Case is a default that depends on other keys: of several, the first one whose condition holds.
type Case struct {
	When  Condition
	Value string // as written in TOML
}

// String gives the condition in words: "with `type = "http"`".
func (c Condition) String() string {
	if len(c) == 1 && c[0].Not {
		return "unless `" + c[0].Key + "` is set"
	}
	var b strings.Builder
	for i, clause := range c {
		b.WriteString([]string{"with ", " and "}[min(i, 1)])
		if len(clause.Values) == 0 {
			b.WriteString("`" + clause.Key + "`")
		}
		for j, v := range clause.Values {
			if j == 0 {
				b.WriteString("`" + clause.Key + " = " + strconv.Quote(v) + "`")
				continue
			}
			b.WriteString(" or `" + strconv.Quote(v) + "`")
		}
	}
	return b.String()
}

// DefaultText says what an absent key means: its default as written in TOML, or in words, or "".
func (k *Key) DefaultText() string {
	switch {
	case k.Default != "":
		return "`" + k.Default + "`"
	case k.ImageDefault != "":
		return k.ImageDefault
	}
	parts := make([]string, len(k.DefaultWhen))
	for i, c := range k.DefaultWhen {
		parts[i] = "`" + c.Value + "`"
		if len(c.When) > 0 {
			parts[i] += " " + c.When.String()
		} else if i > 0 {
			parts[i] = "else " + parts[i]
		}
	}
	return strings.Join(parts, ", ")
}

// holds tells whether the condition is true in the table t that s is in.
func (c Condition) holds(t *spec, s *scope) bool {
	for _, clause := range c {
		if clause.holds(t, s) == clause.Not {
			return false
		}
	}
	return true
}

func (c Clause) holds(t *spec, s *scope) bool {
	switch v := t.byName[c.Key].ref(s).(type) {
	case *string:
		return len(c.Values) == 0 && *v != "" || slices.Contains(c.Values, *v)
	case *[]string:
		return len(*v) > 0
	default:
		return false // the table test makes sure that there is no clause about another type
	}
}
