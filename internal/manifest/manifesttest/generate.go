// Package manifesttest makes manifests for tests: as many different ones as wanted, from the same table that the
// parser is made from, so that a new key is in them without anybody's doing.
//
// About half of them are valid. The others have a few faults of the kind that people make, and of the kind that
// only a program makes. It does not know what is right about a manifest, and judges nothing.
package manifesttest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// Generator makes manifests. The same seed gives the same ones. It is not for use by several goroutines.
type Generator struct {
	rng  *rand.Rand
	keys []manifest.Key
}

// New gives the generator of a seed.
func New(seed uint64) *Generator {
	return &Generator{rng: rand.New(rand.NewPCG(seed, 0x70696e6e616365)), keys: manifest.Keys()} //nolint:gosec // a seed must give the same manifests again
}

// entry is one key with its value, as TOML has it. The path has names in place of "*".
type entry struct {
	path  []string
	value string
}

// draft is a manifest in the making.
type draft struct {
	*Generator
	entries []entry
	chosen  map[string]string // the values so far, by path; without quotes
	tcp     []string          // names of the ports that a probe may name
	volumes bool              // there will be some
	places  int               // mounts so far
}

// Manifest gives the next manifest.
func (g *Generator) Manifest() []byte {
	d := &draft{Generator: g, chosen: make(map[string]string)}
	d.fill()
	faults := 0
	if g.oneIn(2) {
		for faults = 1; g.oneIn(4); {
			faults++
		}
	}
	for range faults {
		d.spoil()
	}
	text := d.write()
	if faults > 0 && g.oneIn(5) {
		text = g.garble(text)
	}
	if g.oneIn(20) {
		text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
	}
	return text
}

func (g *Generator) oneIn(n int) bool { return g.rng.IntN(n) == 0 }

func pick[T any](g *Generator, from []T) T { return from[g.rng.IntN(len(from))] }

// fill chooses keys and values row by row.
func (d *draft) fill() {
	names := make(map[string][]string)
	for _, k := range d.keys {
		if k.Type == manifest.Tables && d.oneIn(2) {
			names[k.Path] = d.names(k)
			d.volumes = d.volumes || k.Path == "volumes"
		}
	}
	present := map[string]bool{"health.ready": d.oneIn(2), "health.live": d.oneIn(3), "rollout.before": d.oneIn(4)}
	for _, k := range d.keys {
		table, last := split(k.Path)
		if k.Type == manifest.Table || k.Type == manifest.Tables {
			continue
		}
		if there, optional := present[table]; optional && !there {
			continue
		}
		if base, named := strings.CutSuffix(table, ".*"); named {
			for _, name := range names[base] {
				d.consider(k, base+"."+name, last)
			}
			continue
		}
		d.consider(k, table, last)
	}
}

// split gives the table of a path and its last part.
func split(path string) (table, last string) {
	if i := strings.LastIndexByte(path, '.'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}

func (d *draft) names(k manifest.Key) []string {
	var names []string
	for range 1 + d.rng.IntN(3) {
		if name := pick(d.Generator, []string{"web", "api", "admin", "data", "x", "a-b", "p9", "metrics"}); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names[:min(len(names), int(k.Max))]
}

// consider adds a row to the table at, or leaves it out.
func (d *draft) consider(k manifest.Key, at, last string) {
	required := k.Required || len(k.RequiredWhen) > 0 && d.holds(k.RequiredWhen, at)
	if last == "deadline" && (d.chosen[at+".boot_timeout"] != "" || d.chosen[at+".hold"] != "") {
		required = true // the default may be too short for those
	}
	if !d.holds(k.When, at) || !required && !d.oneIn(3) {
		return
	}
	path := strings.TrimPrefix(at+"."+last, ".")
	value := d.value(k, at, path)
	d.chosen[path] = value
	if k.Type == manifest.String {
		value = d.quoted(value)
	}
	d.entries = append(d.entries, entry{path: strings.Split(path, "."), value: value})
	if table, name, _ := strings.Cut(at, "."); table == "ports" && last == "protocol" && d.chosen[path] == "udp" {
		d.tcp = slices.DeleteFunc(d.tcp, func(p string) bool { return p == name })
	} else if table == "ports" && last == "port" {
		d.tcp = append(d.tcp, name)
	}
}

// holds judges a condition by what was chosen so far. Keys that others depend on come before those.
func (d *draft) holds(c manifest.Condition, at string) bool {
	for _, clause := range c {
		path := strings.TrimPrefix(at+"."+clause.Key, ".")
		value, set := d.chosen[path]
		if !set {
			value = d.fallback(clause.Key, at)
		}
		right := slices.Contains(clause.Values, value) || len(clause.Values) == 0 && set && value != "[]"
		if right == clause.Not {
			return false
		}
	}
	return true
}

// fallback gives the default of a key in a table.
func (d *draft) fallback(key, at string) string {
	for _, k := range d.keys {
		table, last := split(k.Path)
		if base, named := strings.CutSuffix(table, ".*"); last != key || named && !strings.HasPrefix(at, base+".") || !named && table != at {
			continue
		}
		for _, c := range k.DefaultWhen {
			if d.holds(k.When, at) && d.holds(c.When, at) {
				return strings.Trim(c.Value, `"`)
			}
		}
		return strings.Trim(k.Default, `"`)
	}
	return ""
}

// spoil makes one fault.
func (d *draft) spoil() {
	if len(d.entries) == 0 {
		return
	}
	i := d.rng.IntN(len(d.entries))
	e := &d.entries[i]
	last := &e.path[len(e.path)-1]
	switch d.rng.IntN(10) {
	case 0:
		d.entries = slices.Delete(d.entries, i, i+1)
	case 1:
		e.path = slices.Clone(e.path)
		e.path[len(e.path)-1] = pick(d.Generator, []string{*last + "s", strings.ToUpper(*last), strings.Replace(*last, "_", "-", 1), "image", "kill_timeout", ""})
	case 2:
		d.entries = append(d.entries, *e)
	case 3:
		e.value = pick(d.Generator, d.entries).value
	case 4:
		k := pick(d.Generator, d.keys)
		d.entries = append(d.entries, entry{path: strings.Split(strings.Replace(k.Path, "*", "web", 1), "."), value: d.odd()})
	case 5:
		name := pick(d.Generator, []string{"PINNACE_X", "LOG_0"})
		d.entries = append(d.entries, entry{path: []string{"vars"}, value: `["` + name + `"]`}, entry{path: []string{"env"}, value: "{ " + name + ` = "x" }`})
	default:
		e.value = d.odd()
	}
}

// odd gives a value that is right for few keys or none.
func (d *draft) odd() string {
	return pick(d.Generator, []string{
		`"x"`, `""`, `0`, `1`, `-1`, `65536`, `70000`, `0.5`, `5e-1`, `1_000`, `0x10`, `0o400`, `9223372036854775808`, `true`, `[]`, `{}`, `["x"]`, `["x", 1]`, `[1, 1]`,
		`"5"`, `"5 s"`, `"1m30s"`, `"5S"`, `"512MB"`, `"1.5GiB"`, `"0s"`, `"25h"`, `"17TiB"`, `"1KiB"`, `1979-05-27`, `inf`, `nan`, `"a\u0000b"`, `"\u202e"`, `"tls"`, `"/"`, `"/proc/x"`, `"/a/../b"`,
		`"relative"`, `"PINNACE_X"`, `["PINNACE_X"]`, `"root"`, `"0"`, `{ x = 1 }`, `{ PINNACE_A = "x" }`, `[200, 302]`, fmt.Sprintf(`"%s"`, strings.Repeat("x", 2000)),
	})
}

// garble changes the text itself.
func (g *Generator) garble(text []byte) []byte {
	i, n := g.rng.IntN(len(text)+1), g.rng.IntN(4)
	end := min(i+n, len(text))
	switch g.rng.IntN(3) {
	case 0:
		return slices.Concat(text[:i], text[end:])
	case 1:
		return slices.Concat(text[:i], []byte(pick(g, []string{"\x00", "\xff", "\ufeff", "\"", "'", "]", "[", "}", "=", "\n", "#", "\t", ",", "\\", "é", "\u0430", "."})), text[i:])
	default:
		return slices.Concat(text[:i], text[i:end], text[i:])
	}
}
