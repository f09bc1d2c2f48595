package release

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/pinnacehq/pinnace/internal/manifest"
)

// unit is a unit of a manifest and how many canonical ones it is.
type unit struct {
	name string
	size int64
}

// The units that a manifest has, the biggest first.
var (
	durations = []unit{{"h", 3600_000}, {"m", 60_000}, {"s", 1000}, {"ms", 1}}
	sizes     = []unit{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}
)

// valueText writes a canonical value the way a manifest spells it.
func valueText(t manifest.Type, v any) string {
	switch v := v.(type) {
	case json.Number:
		n, err := v.Int64()
		if err != nil {
			return v.String()
		}
		return numberText(t, n)
	case string:
		return strconv.Quote(v)
	case []any:
		parts := make([]string, len(v))
		for i, item := range v {
			parts[i] = valueText(t, item)
		}
		return "[" + strings.Join(parts, ", ") + "]"
	default:
		return fmt.Sprint(v)
	}
}

func numberText(t manifest.Type, n int64) string {
	switch t {
	case manifest.Duration:
		if n == 0 {
			return `"0s"`
		}
		return quantity(n, durations)
	case manifest.Size:
		return quantity(n, sizes)
	case manifest.CPU:
		whole := fmt.Sprintf("%d.%03d", n/1000, n%1000)
		return strings.TrimSuffix(strings.TrimRight(whole, "0"), ".")
	default:
		return strconv.FormatInt(n, 10)
	}
}

func quantity(n int64, units []unit) string {
	for _, u := range units {
		if n%u.size == 0 {
			return strconv.Quote(strconv.FormatInt(n/u.size, 10) + u.name)
		}
	}
	return strconv.FormatInt(n, 10) // cannot be: what a manifest says is in these units
}
