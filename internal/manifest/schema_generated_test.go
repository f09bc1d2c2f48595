package manifest_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/pinnacehq/pinnace/internal/manifest"
	"github.com/pinnacehq/pinnace/internal/manifest/manifesttest"
)

// TestSchemaTakesWhatParseTakes reads generated manifests as an editor does, by another way than Parse: through a
// TOML library and its float64 numbers.
func TestSchemaTakesWhatParseTakes(t *testing.T) {
	if strings.Contains(string(manifest.JSONSchema()), "multipleOf") {
		t.Error("the schema has multipleOf, which is not decided in decimals")
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(manifest.JSONSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("pinnace.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("pinnace.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	g, valid := manifesttest.New(11), 0
	for range 3000 {
		src := g.Manifest()
		if m, _ := manifest.Parse(src); m == nil {
			continue
		}
		valid++
		var v map[string]any
		if err := toml.Unmarshal(src, &v); err != nil {
			t.Fatalf("%v\n%s", err, src)
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(instance); err != nil {
			t.Errorf("Parse takes it, and the schema says %v\n%s", err, src)
		}
	}
	if valid < 1000 {
		t.Errorf("only %d of 3000 are valid", valid)
	}
}
