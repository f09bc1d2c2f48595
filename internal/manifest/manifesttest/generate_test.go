package manifesttest

import (
	"bytes"
	"testing"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// TestManifests makes sure that the generator is worth its name: valid and invalid ones, every key set in some
// valid one, and nearly every code caused by some invalid one.
func TestManifests(t *testing.T) {
	g := New(1)
	valid, keys, codes := 0, make(map[string]bool), make(map[string]bool)
	const count = 6000
	for range count {
		src := g.Manifest()
		m, problems := manifest.Parse(src)
		for _, p := range problems {
			codes[p.Code] = true
		}
		if m == nil {
			continue
		}
		valid++
		for _, v := range m.Values() {
			if k, _, problem := manifest.Find(v.Key); problem == nil && v.Source == manifest.SourceFile {
				keys[k.Path] = true
			}
		}
	}
	if valid < count*2/5 || valid > count*4/5 {
		t.Errorf("%d of %d are valid", valid, count)
	}
	for _, k := range manifest.Keys() {
		if !keys[k.Path] && k.Type != manifest.Table && k.Type != manifest.Tables {
			t.Errorf("no valid manifest sets %s", k.Path)
		}
	}
	if len(codes) < 17 {
		t.Errorf("only %d codes: %v", len(codes), codes)
	}
	if a, b := New(7).Manifest(), New(7).Manifest(); !bytes.Equal(a, b) {
		t.Error("one seed gives two manifests")
	}
	t.Logf("%d of %d are valid; codes %v", valid, count, codes)
}
