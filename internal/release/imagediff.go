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

// ConfigChange is one difference between the configs of two images.
type ConfigChange struct {
	Field string     `json:"field"` // as in the image config, "Env.NAME" and "Labels.NAME" one by one
	Kind  ChangeKind `json:"kind"`
	// Effect is EffectNone when the field is ignored, or the manifest has its own value.
	Effect     manifest.Effect `json:"effect"`
	Ignored    bool            `json:"ignored,omitempty"`    // the field never has an effect
	Overridden bool            `json:"overridden,omitempty"` // the second manifest sets it
	Old        json.RawMessage `json:"old,omitempty"`
	New        json.RawMessage `json:"new,omitempty"`
}

// Layers compares the layers of two images by diffID.
type Layers struct {
	Shared  int      `json:"shared"`
	Added   []string `json:"added,omitempty"`
	Removed []string `json:"removed,omitempty"`
}

// ConfigDiff is what differs between the configs of two images for one architecture.
type ConfigDiff struct {
	Changes []ConfigChange `json:"changes"`
	Layers  Layers         `json:"layers"`
}

// used are the fields of an image config that say something about the process.
var used = []string{"Entrypoint", "Cmd", "Env", "WorkingDir", "User", "StopSignal"}

// DiffConfigs compares two image configs. m is the manifest of the second Release: what it sets itself, the
// image has no say in. The history of builds is left out: it says nothing that layers don't.
func DiffConfigs(a, b []byte, m *manifest.Manifest) (ConfigDiff, error) {
	var sides [2]imageConfig
	for i, config := range [][]byte{a, b} {
		if err := sides[i].parse(config); err != nil {
			return ConfigDiff{}, fmt.Errorf("compare image configs: %w", err)
		}
	}
	x, y := sides[0], sides[1]
	d := ConfigDiff{Changes: []ConfigChange{}}
	fields := maps.Clone(x.fields)
	maps.Copy(fields, y.fields)
	for _, name := range slices.SortedFunc(maps.Keys(fields), compareFields) {
		before, now := x.fields[name], y.fields[name]
		if bytes.Equal(before, now) {
			continue
		}
		c := ConfigChange{Field: name, Kind: Changed, Effect: manifest.EffectReplace, Old: before, New: now}
		switch {
		case before == nil:
			c.Kind = Added
		case now == nil:
			c.Kind = Removed
		}
		c.Ignored = !slices.Contains(used, group(name))
		c.Overridden = overrides(m, name)
		if c.Ignored || c.Overridden {
			c.Effect = manifest.EffectNone
		}
		d.Changes = append(d.Changes, c)
	}
	d.Layers = compareLayers(x.diffIDs, y.diffIDs)
	return d, nil
}

func compareLayers(a, b []string) Layers {
	var l Layers
	for _, id := range b {
		if slices.Contains(a, id) {
			l.Shared++
		} else {
			l.Added = append(l.Added, id)
		}
	}
	for _, id := range a {
		if !slices.Contains(b, id) {
			l.Removed = append(l.Removed, id)
		}
	}
	return l
}

// compareFields puts what has an effect first, in the order of a process's life.
func compareFields(a, b string) int {
	rank := func(name string) int {
		if i := slices.Index(used, group(name)); i >= 0 {
			return i
		}
		return len(used)
	}
	if d := rank(a) - rank(b); d != 0 {
		return d
	}
	return strings.Compare(a, b)
}

// group is the field that an entry of a map belongs to.
func group(name string) string {
	g, _, _ := strings.Cut(name, ".")
	return g
}

// overrides tells whether a manifest has its own value for a field of the image.
func overrides(m *manifest.Manifest, name string) bool {
	switch group(name) {
	case "Entrypoint":
		return m.Entrypoint != nil
	case "Cmd":
		return m.Entrypoint != nil || m.Command != nil
	case "WorkingDir":
		return m.Workdir != ""
	case "User":
		return m.User != ""
	case "StopSignal":
		return m.Stop.Signal != ""
	case "Env":
		_, set := m.Env[strings.TrimPrefix(name, "Env.")]
		return set || slices.Contains(m.Vars, strings.TrimPrefix(name, "Env."))
	}
	return false
}

// imageConfig is a config as a flat set of fields.
type imageConfig struct {
	fields  map[string]json.RawMessage
	diffIDs []string
}

// parse reads the known fields as whoever runs the image does, so that no other spelling of a name hides one,
// and the rest by name.
func (c *imageConfig) parse(config []byte) error {
	var known struct {
		Config struct {
			Entrypoint, Cmd, Env          []string
			WorkingDir, User, StopSignal  string
			ExposedPorts, Volumes, Labels map[string]json.RawMessage
		} `json:"config"`
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	var other struct {
		Config map[string]json.RawMessage `json:"config"`
	}
	top := map[string]json.RawMessage{}
	for _, into := range []any{&known, &other, &top} {
		if err := json.Unmarshal(config, into); err != nil {
			return err
		}
	}
	c.fields, c.diffIDs = map[string]json.RawMessage{}, known.RootFS.DiffIDs
	for name, raw := range top {
		if !slices.ContainsFunc([]string{"config", "rootfs", "history"}, func(n string) bool { return strings.EqualFold(n, name) }) {
			c.add(name, raw)
		}
	}
	for name, raw := range other.Config {
		if !slices.ContainsFunc(mapped, func(n string) bool { return strings.EqualFold(n, name) }) {
			c.add(name, raw)
		}
	}
	process := known.Config
	for name, value := range map[string]any{
		"Entrypoint": process.Entrypoint, "Cmd": process.Cmd, "WorkingDir": process.WorkingDir, "User": process.User, "StopSignal": process.StopSignal,
	} {
		c.add(name, encode(value))
	}
	for _, e := range process.Env {
		key, value, _ := strings.Cut(e, "=")
		c.fields["Env."+key] = encode(value)
	}
	for name, entries := range map[string]map[string]json.RawMessage{
		"Labels": process.Labels, "ExposedPorts": process.ExposedPorts, "Volumes": process.Volumes,
	} {
		for key, value := range entries {
			c.fields[name+"."+key] = compact(value)
		}
	}
	return nil
}

// mapped are the fields of a process that parse reads by itself.
var mapped = slices.Concat(used, []string{"Labels", "ExposedPorts", "Volumes"})

// add takes a field. What is empty counts as absent, as tools disagree on which to write.
func (c *imageConfig) add(name string, raw json.RawMessage) {
	switch value := compact(raw); string(value) {
	case "null", `""`, "[]", "{}", "false":
	default:
		c.fields[name] = value
	}
}

func encode(v any) json.RawMessage {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // strings and lists of them always encode
	return bytes.TrimSpace(b.Bytes())
}

func compact(raw json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw // cannot be: it was decoded
	}
	return b.Bytes()
}
