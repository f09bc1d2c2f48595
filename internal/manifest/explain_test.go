package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestValues checks of every manifest of the corpus that its effective values are those of the canonical form,
// and that writing them all down, in a file of their own, gives the same manifest.
func TestValues(t *testing.T) {
	for name, src := range corpus(t, "valid") {
		m := mustParse(t, string(src))
		values, defaults := m.Counts()
		var said, saidDefaults int
		var b strings.Builder
		for _, v := range m.Values() {
			if v.Source == SourceFile && (v.Line == 0 || v.Column == 0) || v.Source != SourceFile && v.Line != 0 {
				t.Errorf("%s: %s from %s is at %d:%d", name, v.Key, v.Source, v.Line, v.Column)
			}
			if (v.TOML == "") == (v.Text == "") || (v.TOML == "") != (v.JSON == nil) {
				t.Errorf("%s: %+v", name, v)
			}
			if v.TOML == "" {
				continue
			}
			fmt.Fprintf(&b, "%s = %s\n", v.Key, v.TOML)
			if !json.Valid(v.JSON) || !bytes.Contains(m.Canonical(), v.JSON) {
				t.Errorf("%s: %s = %s is not in the canonical form", name, v.Key, v.JSON)
			}
			if !strings.HasPrefix(v.Key, "env.") {
				said++
			}
			if v.Source == SourceDefault {
				saidDefaults++
			}
		}
		if _, written := m.origin(schemaV1().byName["env"].Key, ""); written {
			said++ // to Counts it is one value
		}
		if said != values || saidDefaults != defaults {
			t.Errorf("%s: %d values and %d defaults, but Counts says %d and %d", name, said, saidDefaults, values, defaults)
		}
		again, problems := Parse([]byte(b.String()))
		if again == nil || again.Hash() != m.Hash() {
			t.Errorf("%s: its values written down are another manifest: %v\n%s", name, problems.Err(), b.String())
		}
		read, err := ParseCanonical(m.Canonical())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range read.Values() {
			if v.Line != 0 {
				t.Errorf("%s: read from the canonical form, %s stands on line %d", name, v.Key, v.Line)
			}
		}
	}
}

func TestFind(t *testing.T) {
	for _, k := range Keys() {
		for _, path := range []string{k.Path, strings.Replace(k.Path, "*", "NAME", 1), strings.Replace(k.Path, "*", "port", 1)} {
			if got, _, problem := Find(path); problem != nil || got.Path != k.Path {
				t.Errorf("%s: found %q, %v", path, got.Path, problem)
			}
		}
	}
	tests := []struct{ path, key, name, said string }{
		{"ports.web.port", "ports.*.port", "web", ""},
		{"ports.web", "ports", "web", ""},
		{"env.PATH", "env", "PATH", ""},
		{"ports", "ports", "", ""},
		{"", "", "", "unknown key"},
		{"restrat", "", "", "did you mean restart"},
		{"ports.web.prot", "", "", "did you mean ports.web.port"},
		{"Restart", "", "", "did you mean restart"},
		{"image", "", "", "the image is not part of a manifest"},
		{"kill_timeout", "", "", "did you mean stop.timeout"},
		{"stop.timeout.x", "", "", "unknown key"},
		{"env.A.B", "", "", "unknown key"},
		{"health..", "", "", "unknown key"},
	}
	for _, tt := range tests {
		k, name, problem := Find(tt.path)
		switch {
		case tt.said == "" && (problem != nil || k.Path != tt.key || name != tt.name):
			t.Errorf("%s: found %q %q, %v", tt.path, k.Path, name, problem)
		case tt.said != "" && (problem == nil || !strings.Contains(problem.String(), tt.said)):
			t.Errorf("%s: found %q, %v", tt.path, k.Path, problem)
		}
	}
}

func TestMembers(t *testing.T) {
	for path, want := range map[string]string{"health": "health.ready health.live", "resources": "resources.cpu resources.memory resources.disk", "name": ""} {
		k, _, _ := Find(path)
		var got []string
		for _, m := range k.Members() {
			got = append(got, m.Path)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has %v", path, got)
		}
	}
}
