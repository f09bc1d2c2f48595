package network

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestProbe: a host that can have networks is found to, and is as it was afterwards.
func TestProbe(t *testing.T) {
	needRoot(t)
	names := func() []string {
		links, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, l := range links {
			if len(l.Name) > 6 && l.Name[:6] == "pinchk" {
				names = append(names, l.Name)
			}
		}
		return names
	}
	before := names()
	dir := t.TempDir()
	for range 2 {
		if err := Probe(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if after := names(); !slices.Equal(before, after) {
		t.Errorf("links %v, %v before", after, before)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range left {
		if isNamespace(path) {
			t.Errorf("a namespace is left at %s", path)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "host")); err == nil {
		t.Error("the host's is left")
	}
}

func TestProbeSaysWhatFails(t *testing.T) {
	if err := Probe(t.Context(), filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("no error")
	}
}
