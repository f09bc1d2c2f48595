package manifesttest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// value gives a value that a row probably takes; a string is not quoted yet.
func (d *draft) value(k manifest.Key, at, path string) string {
	switch k.Type {
	case manifest.String:
		return d.text(k, path)
	case manifest.Integer:
		return strconv.FormatInt(d.between(k.Min, k.Max), 10)
	case manifest.Bool:
		return pick(d.Generator, []string{"true", "false"})
	case manifest.Duration:
		return d.duration(k, at)
	case manifest.Size:
		return d.size(k)
	case manifest.CPU:
		v := d.between(k.Min, k.Max)
		text := fmt.Sprintf("%d.%03d", v/1000, v%1000)
		return strings.TrimSuffix(text, ".000")
	case manifest.Mode:
		return fmt.Sprintf(`"%04o"`, d.between(k.Min, k.Max))
	case manifest.Argv:
		return d.list(int(max(k.Min, 0)), 6, func(i int) string {
			return d.quoted(pick(d.Generator, []string{"/app/server", "--port", "8080", "-c", "true", "a b", "é☃", "tab\there", `back\slash`, `"quoted"`}) + strings.Repeat("x", i%2))
		})
	case manifest.StringSet:
		if len(k.Values) > 0 {
			return d.list(1, len(k.Values), func(i int) string { return strconv.Quote(k.Values[i]) })
		}
		return d.list(int(k.Min), 4, func(i int) string {
			return fmt.Sprintf(`"%s_%d"`, strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(path)), i)
		})
	case manifest.IntegerSet:
		return d.list(1, 4, func(i int) string { return strconv.Itoa([]int{200, 204, 404, 599}[i]) })
	case manifest.StringMap:
		items := make([]string, d.rng.IntN(6))
		for i := range items {
			items[i] = fmt.Sprintf("%s_%d = %s", pick(d.Generator, []string{"LOG", "a", "_X", "PATH"}), i, d.quoted(pick(d.Generator, []string{"", "info", "line\nbreak", "\u0007", "snow ☃", "$HOME"})))
		}
		return "{ " + strings.Join(items, ", ") + " }"
	default:
		return ""
	}
}

// text gives a string: one of the row's values, or one of the kind that its path asks for.
func (d *draft) text(k manifest.Key, path string) string {
	_, last := split(path)
	probe := strings.HasPrefix(path, "health.")
	var choice []string
	switch {
	case probe && last == "type" && len(d.tcp) == 0:
		choice = []string{manifest.ProbeExec}
	case last == "strategy" && d.volumes:
		choice = []string{manifest.StrategyRolling, manifest.StrategyRecreate}
	case len(k.Values) > 0:
		choice = k.Values
	case path == "name":
		choice = []string{"api", "web-1", "a", strings.Repeat("n", 40)}
	case probe && last == "port":
		choice = d.tcp
	case probe:
		choice = []string{"/", "/readyz", "/a?b=c&d", "/%20"}
	case last == "path", last == "workdir":
		d.places++
		return fmt.Sprintf("%s%d", pick(d.Generator, []string{"/srv/", "/data-", "/var/lib/a b/", "/mnt/é"}), d.places)
	case last == "on_change":
		choice = []string{"rollout", "none", "signal:SIGHUP"}
	default: // users
		choice = []string{"0", "10001:10001", "postgres", "www-data:www-data", "4294967294"}
	}
	return pick(d.Generator, choice)
}

// between gives a number in the bounds, and often one at them.
func (d *draft) between(lowest, highest int64) int64 {
	switch d.rng.IntN(8) {
	case 0:
		return lowest
	case 1:
		return highest
	default:
		return lowest + d.rng.Int64N(highest-lowest+1)
	}
}

// duration keeps to what the other times of its table allow.
func (d *draft) duration(k manifest.Key, at string) string {
	lowest, highest := k.Min, k.Max
	switch _, last := split(k.Path); last {
	case "interval":
		lowest = max(lowest, 2000)
	case "timeout":
		if strings.HasPrefix(at, "health.") {
			highest = min(highest, 2000)
		}
	case "deadline":
		lowest = (30 + 60) * 60 * 1000 // the longest boot_timeout and hold
	case "boot_timeout", "hold":
		if d.oneIn(2) {
			highest = min(highest, 60*1000)
		}
	default:
	}
	v := d.between(lowest, highest)
	for _, u := range []struct {
		name string
		ms   int64
	}{{"h", 3600000}, {"m", 60000}, {"s", 1000}} {
		if rounded := v - v%u.ms; rounded >= lowest && d.oneIn(2) {
			return fmt.Sprintf(`"%d%s"`, rounded/u.ms, u.name)
		}
	}
	return fmt.Sprintf(`"%dms"`, v)
}

func (d *draft) size(k manifest.Key) string {
	v := d.between(k.Min, k.Max)
	for i, name := range []string{"TiB", "GiB", "MiB"} {
		unit := int64(1) << (40 - 10*i)
		if rounded := v - v%unit; rounded >= k.Min && d.oneIn(2) {
			return fmt.Sprintf(`"%d%s"`, rounded/unit, name)
		}
	}
	return fmt.Sprintf(`"%dKiB"`, v/1024)
}

// list gives a list of least to most different items, in any order, on one line or on several.
func (d *draft) list(least, most int, item func(i int) string) string {
	n := least + d.rng.IntN(most-least+1)
	separator, end := ", ", ""
	if d.oneIn(4) {
		separator, end = ",\n  ", ",\n"
	}
	items := make([]string, n)
	for i, j := range d.rng.Perm(n) {
		items[i] = item(j)
	}
	if n == 0 {
		return "[]"
	}
	return "[" + strings.Join(items, separator) + end + "]"
}

// quoted writes a string in one of the ways of TOML.
func (d *draft) quoted(s string) string {
	plain := !strings.ContainsAny(s, "'\n\t\\") && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' })
	switch {
	case plain && d.oneIn(6):
		return "'" + s + "'"
	case plain && d.oneIn(12):
		return "'''" + s + "'''"
	case d.oneIn(12):
		return `"""` + "\n" + basic(s, d.oneIn(2)) + `"""`
	default:
		return `"` + basic(s, d.oneIn(12)) + `"`
	}
}

// basic escapes what has to be escaped, or everything.
func basic(s string, everything bool) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case everything || r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
