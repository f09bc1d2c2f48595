package manifest

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	seen := make(map[string]bool)
	for _, k := range Keys() {
		if seen[k.Path] {
			t.Errorf("%s is there twice", k.Path)
		}
		seen[k.Path] = true
		if k.Path != strings.ToLower(k.Path) || strings.Count(k.Path, ".") >= maxNesting {
			t.Errorf("%s: not lower case, or too deep", k.Path)
		}
		if !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s: Doc is no sentence: %q", k.Path, k.Doc)
		}
		if k.Effect == "" {
			t.Errorf("%s: no effect class", k.Path)
		}
		conditions := slices.Concat(k.When, k.RequiredWhen)
		for _, c := range k.DefaultWhen {
			conditions = slices.Concat(conditions, c.When)
		}
		for _, c := range conditions {
			other := rowAt(strings.TrimSuffix(k.Path, k.last()) + c.Key)
			if other == nil || !other.decides || other.Type != String && other.Type != StringSet {
				t.Errorf("%s: depends on %s, which is not there or does not decide", k.Path, c.Key)
				continue
			}
			for _, v := range c.Values {
				if !slices.Contains(other.Values, v) {
					t.Errorf("%s: depends on %s = %q, which does not exist", k.Path, c.Key, v)
				}
			}
		}
		if k.Type.holdsValue() != (k.ref != nil) || (k.Type == Tables) != (k.elements != nil) {
			t.Errorf("%s: no way to its field", k.Path)
		}
		if k.Required && (k.Default != "" || k.ImageDefault != "") || k.Default != "" && k.ImageDefault != "" {
			t.Errorf("%s: contradicting defaults", k.Path)
		}
		if up := k.table(); up != "" && !seen[up] {
			t.Errorf("%s comes before its table", k.Path)
		}
		for _, v := range k.Pending {
			if v != "*" && !slices.Contains(k.Values, v) {
				t.Errorf("%s: pending value %q does not exist", k.Path, v)
			}
		}
		if (k.Required || len(k.RequiredWhen) > 0) && k.Example == "" && len(k.Values) == 0 {
			t.Errorf("%s: no example for those who have to add it", k.Path)
		}
		if (k.Pattern != "") != (k.check != nil && len(k.Values) == 0) {
			t.Errorf("%s: a check without a pattern, or a pattern without a check", k.Path)
		}
		if k.Type == String && (&spec{Key: &k}).judgeString("").code == "" {
			t.Errorf("%s: accepts the empty string, which the canonical form takes for absent", k.Path)
		}
		if k.Default != "" {
			list := &problemList{}
			m := &Manifest{Rollout: Rollout{Before: new(Before)}}
			d := &decoder{m: m, list: list}
			s := &scope{m: m, port: new(Port), probe: new(Probe), secret: new(Secret), volume: new(Volume)}
			if !d.value(&spec{Key: &k}, constant(k.Default), s) {
				t.Errorf("%s: bad default: %v", k.Path, list.problems)
			}
		}
	}
	values := 0
	for _, k := range Keys() {
		if k.Type.holdsValue() && !strings.HasPrefix(k.Path, "health.live.") {
			values++
		}
	}
	if values > 60 {
		t.Errorf("%d keys; v1 has at most 60", values)
	}
}

// rowAt finds a row by its path.
func rowAt(path string) *Key {
	for _, k := range Keys() {
		if k.Path == path {
			return &k
		}
	}
	return nil
}

// TestGrowth adds a key to v1 as a later release would: what is there keeps its bytes, and the new key is in
// the canonical form only when it is set, also when it is set to its default.
func TestGrowth(t *testing.T) {
	var linger time.Duration
	grown := compile(append(table(), Key{
		Path: "stop.linger", Type: Duration, Default: `"1s"`, Max: hour, Effect: EffectInPlace, Since: "1.1",
		Doc: "A key of the future.", ref: func(*scope) any { return &linger },
	}))
	for name, src := range corpus(t, "valid") {
		old, _ := Parse(src)
		m, problems := parse(grown, string(src))
		if m == nil {
			t.Fatalf("%s: %v", name, problems.Err())
		}
		if !bytes.Equal(m.canonical(grown), old.Canonical()) {
			t.Errorf("%s: another canonical form", name)
		}
		if again, err := parseCanonical(grown, old.Canonical()); err != nil || !bytes.Equal(again.canonical(grown), old.Canonical()) {
			t.Errorf("%s: read back: %v", name, err)
		}
	}
	src := string(Template("api")) + "\n[stop]\nlinger = \"1s\"\n"
	if m, _ := Parse([]byte(src)); m != nil {
		t.Error("a version that does not know the key accepts it")
	}
	m, problems := parse(grown, src)
	if m == nil {
		t.Fatal(problems.Err())
	}
	canonical := m.canonical(grown)
	if !bytes.Contains(canonical, []byte(`"stop":{"drain":5000,"linger":1000,"timeout":10000}`)) {
		t.Errorf("got %s", canonical)
	}
	if again, err := parseCanonical(grown, canonical); err != nil || !bytes.Equal(again.canonical(grown), canonical) {
		t.Errorf("read back: %v", err)
	}
	if _, err := ParseCanonical(canonical); err == nil {
		t.Error("a version that does not know the key accepts the canonical form")
	}
}
