package release

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// ChangeKind says what became of something from one Release to another.
type ChangeKind string

// The kinds of changes.
const (
	Added   ChangeKind = "added"
	Removed ChangeKind = "removed"
	Changed ChangeKind = "changed"
)

// Change is one difference between two manifests.
type Change struct {
	Key    string          `json:"key"` // path, with names filled in
	Kind   ChangeKind      `json:"kind"`
	Effect manifest.Effect `json:"effect"` // of the change, on instances that run
	// Old and New are canonical values: JSON, in milliseconds, bytes, thousandths of a vCPU.
	Old json.RawMessage `json:"old,omitempty"`
	New json.RawMessage `json:"new,omitempty"`
	// OldText and NewText are the values as a manifest has them.
	OldText string `json:"-"`
	NewText string `json:"-"`
}

// Diff lists what differs between two manifests given by their canonical bytes, in the order of the manifest's
// reference. A default that was written down is no difference. An entry of a named table, or a probe, that only
// one of the two has is one change.
func Diff(a, b []byte) ([]Change, error) {
	var sides [2]map[string]any
	for i, canonical := range [][]byte{a, b} {
		if _, err := manifest.ParseCanonical(canonical); err != nil {
			return nil, fmt.Errorf("compare manifests: %w", err)
		}
		dec := json.NewDecoder(bytes.NewReader(canonical))
		dec.UseNumber()
		if err := dec.Decode(&sides[i]); err != nil {
			return nil, fmt.Errorf("compare manifests: %w", err)
		}
	}
	d := differ{below: map[string][]manifest.Key{}}
	for _, k := range manifest.Keys() {
		d.below[tableOf(k.Path)] = append(d.below[tableOf(k.Path)], k)
	}
	d.table("", "", sides[0], sides[1])
	return d.changes, nil
}

// Strongest gives the greatest of several effects, EffectNone for none.
func Strongest(effects ...manifest.Effect) manifest.Effect {
	order := []manifest.Effect{
		manifest.EffectNone, manifest.EffectRouting, manifest.EffectInPlace, manifest.EffectRestart, manifest.EffectReplace, manifest.EffectData,
	}
	strongest := 0
	for _, e := range effects {
		strongest = max(strongest, slices.Index(order, e))
	}
	return order[strongest]
}

// differ walks two canonical manifests along the table of keys.
type differ struct {
	below   map[string][]manifest.Key // rows by the path of the table that they are in
	changes []Change
}

// table compares the members of a table, whose rows are those below path; at is the path with names filled in.
func (d *differ) table(path, at string, a, b map[string]any) {
	for _, k := range d.below[path] {
		name := k.Path[strings.LastIndexByte(k.Path, '.')+1:]
		d.member(k, join(at, name), a[name], b[name])
	}
}

func (d *differ) member(k manifest.Key, at string, a, b any) {
	if a == nil && b == nil {
		return
	}
	x, _ := a.(map[string]any)
	y, _ := b.(map[string]any)
	switch k.Type {
	case manifest.Table:
		if a != nil && b != nil || d.onlyTables(k.Path) {
			d.table(k.Path, at, x, y)
			return
		}
	case manifest.Tables:
		for _, name := range names(x, y) {
			if x[name] != nil && y[name] != nil {
				inA, _ := x[name].(map[string]any)
				inB, _ := y[name].(map[string]any)
				d.table(k.Path+".*", join(at, name), inA, inB)
				continue
			}
			d.add(k, k.Path+".*", join(at, name), x[name], y[name])
		}
		return
	case manifest.StringMap:
		for _, name := range names(x, y) {
			d.add(k, "", join(at, name), x[name], y[name])
		}
		return
	default:
	}
	d.add(k, k.Path, at, a, b)
}

// onlyTables tells whether a table is but a step on the way to others, such as health.
func (d *differ) onlyTables(path string) bool {
	return !slices.ContainsFunc(d.below[path], func(k manifest.Key) bool { return k.Type != manifest.Table })
}

// add notes a change, unless the values are the same. members is the path of the rows of a value that is a
// table.
func (d *differ) add(k manifest.Key, members, at string, a, b any) {
	c := Change{Key: at, Kind: Changed, Effect: k.Effect}
	c.Old, c.OldText = d.value(k, members, a)
	c.New, c.NewText = d.value(k, members, b)
	switch {
	case bytes.Equal(c.Old, c.New):
		return
	case a == nil:
		c.Kind = Added
	case b == nil:
		c.Kind = Removed
	}
	d.changes = append(d.changes, c)
}

// value gives a canonical value as JSON, and as text.
func (d *differ) value(k manifest.Key, members string, v any) (json.RawMessage, string) {
	if v == nil {
		return nil, ""
	}
	return encode(v), d.text(k, members, v)
}

// text writes a canonical value as a manifest has it.
func (d *differ) text(k manifest.Key, members string, v any) string {
	table, ok := v.(map[string]any)
	if !ok {
		return valueText(k.Type, v)
	}
	var parts []string
	for _, row := range d.below[members] {
		name := row.Path[strings.LastIndexByte(row.Path, '.')+1:]
		if table[name] != nil {
			parts = append(parts, name+" = "+d.text(row, row.Path, table[name]))
		}
	}
	return "{ " + strings.Join(parts, ", ") + " }"
}

// tableOf is the path of the table that a row is in.
func tableOf(path string) string {
	i := strings.LastIndexByte(path, '.')
	if i < 0 {
		return ""
	}
	return path[:i]
}

func names(a, b map[string]any) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]any{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}

func join(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}
