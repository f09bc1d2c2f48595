package manifest

import (
	"bytes"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/gowebpki/jcs"
	"github.com/pelletier/go-toml/v2"
)

// FuzzParse looks for panics, hangs, and verdicts that contradict themselves or the TOML library.
func FuzzParse(f *testing.F) {
	for _, folder := range []string{"valid", "invalid"} {
		for _, src := range corpus(f, folder) {
			f.Add(src)
		}
	}
	f.Add([]byte("a = [" + strings.Repeat("[", 5000)))
	f.Add([]byte(strings.Repeat("[a.b]\n", 100)))
	f.Add([]byte("a.b.c=1\n[a.b]\n[[a]]\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		m, problems := Parse(src)
		if (m == nil) != problems.HasErrors() {
			t.Fatalf("manifest %v with %v", m, problems)
		}
		problems.Render(io.Discard, "f", src, RenderOptions{Caret: true, Color: true})
		if !slices.IsSortedFunc(problems, func(a, b Problem) int { return a.Line*1e6 + a.Column - b.Line*1e6 - b.Column }) {
			t.Error("problems are not in the order of the text")
		}
		lines := bytes.Count(src, []byte("\n")) + 1
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines || p.Column < 1 || p.Message == "" || p.Code == "" {
				t.Errorf("bad problem %+v", p)
			}
			if strings.ContainsFunc(p.String(), isControl) {
				t.Errorf("control character in %q", p.String())
			}
		}
		if m == nil {
			return
		}
		var independent struct {
			Name string
			Env  map[string]string
			Argv []string `toml:"command"`
		}
		if err := toml.Unmarshal(src, &independent); err != nil {
			t.Errorf("accepted, but the TOML library says: %v", err)
		}
		if independent.Name != m.Name || !maps.Equal(independent.Env, m.Env) || !slices.Equal(independent.Argv, m.Command) {
			t.Errorf("read as %q %q %q, but the TOML library reads %+v", m.Name, m.Env, m.Command, independent)
		}
		roundTrip(t, m)
	})
}

// roundTrip checks what holds for every manifest that was accepted.
func roundTrip(t *testing.T, m *Manifest) {
	t.Helper()
	canonical := m.Canonical()
	again, err := ParseCanonical(canonical)
	if err != nil {
		t.Fatalf("own canonical form is refused: %v\n%s", err, canonical)
	}
	if !bytes.Equal(again.Canonical(), canonical) {
		t.Errorf("canonical form is not stable:\n%s\n%s", canonical, again.Canonical())
	}
	if independent, err := jcs.Transform(canonical); err != nil || !bytes.Equal(independent, canonical) {
		t.Errorf("not RFC 8785: %v\n got %s\nwant %s", err, canonical, independent)
	}
	m.Unsupported()
	m.CheckCount(2)
}

// FuzzCanonical looks for bytes that are accepted as canonical and are not.
func FuzzCanonical(f *testing.F) {
	for _, src := range corpus(f, "valid") {
		m, _ := Parse(src)
		f.Add(m.Canonical())
	}
	f.Add([]byte(`{"schema":"v1"}`))
	f.Add([]byte(strings.Repeat(`{"a":`, 100)))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseCanonical(b)
		if (m == nil) != (err != nil) {
			t.Fatalf("manifest %v with %v", m, err)
		}
		if m == nil {
			return
		}
		if !bytes.Equal(m.Canonical(), b) {
			t.Errorf("accepted bytes that encode otherwise:\n%s\n%s", b, m.Canonical())
		}
		roundTrip(t, m)
	})
}
