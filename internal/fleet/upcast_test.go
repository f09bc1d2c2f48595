package fleet

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestUpcast: an old payload is read by way of every version since, and one that nobody can read is refused.
func TestUpcast(t *testing.T) {
	real := upcasters
	t.Cleanup(func() { upcasters = real })
	upcasters = maps.Clone(real)
	upcasters[upcast{"environment.created", 0}] = func(b []byte) ([]byte, error) {
		if !bytes.Contains(b, []byte(`"title"`)) {
			return nil, errors.New("no title")
		}
		return bytes.Replace(b, []byte(`"title"`), []byte(`"name"`), 1), nil
	}
	stored := []byte(`{"title":"dev"}`)
	p, err := Decode("environment.created", 0, stored)
	if err != nil || !reflect.DeepEqual(p, &EnvironmentCreated{Name: "dev"}) || string(stored) != `{"title":"dev"}` {
		t.Errorf("got %+v, %v; the stored bytes are %s", p, err, stored)
	}
	if _, err := Decode("environment.created", 0, []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "as version 1: no title") {
		t.Errorf("a payload that can't be read: got %v", err)
	}
	if _, err := Decode("host.joined", 0, stored); err == nil || !strings.Contains(err.Error(), "upcaster is missing") {
		t.Errorf("without an upcaster: got %v", err)
	}
}

// TestEveryHistoricVersion: each version of each type that was ever stored has a golden file, which is still read.
func TestEveryHistoricVersion(t *testing.T) {
	files, err := filepath.Glob("testdata/events/*.json")
	if err != nil {
		t.Fatal(err)
	}
	shape := regexp.MustCompile(`^(.+)\.v(\d+)\.json$`)
	have := map[upcast]bool{}
	for _, path := range files {
		m := shape.FindStringSubmatch(filepath.Base(path))
		if m == nil {
			t.Errorf("%s is not named TYPE.vN.json", path)
			continue
		}
		version, err := strconv.ParseUint(m[2], 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(m[1], uint16(version), bytes.TrimSuffix(b, []byte("\n"))); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		have[upcast{m[1], uint16(version)}] = true
	}
	for key := range have {
		for v := uint16(1); v < blank(key.typ).EventVersion(); v++ {
			if !have[upcast{key.typ, v}] {
				t.Errorf("version %d of %s has no golden file", v, key.typ)
			}
		}
	}
	for key := range upcasters {
		if !have[key] {
			t.Errorf("the upcaster of version %d of %s has no golden file", key.from, key.typ)
		}
	}
}
