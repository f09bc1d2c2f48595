package manifest

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// units is a family of units: the ones that a manifest may use, from small to big, and what people write
// instead of them.
type units struct {
	what    string // "a duration"
	example string
	names   []string
	factors []int64
	aliases map[string]string // lower case; "" for units that are too fine
}

var durationUnits = &units{
	what: "a duration", example: `"5s"`,
	names:   []string{"ms", "s", "m", "h"},
	factors: []int64{1, second, minute, hour},
	aliases: map[string]string{
		"msec": "ms", "millis": "ms", "millisecond": "ms", "milliseconds": "ms",
		"sec": "s", "secs": "s", "second": "s", "seconds": "s",
		"min": "m", "mins": "m", "minute": "m", "minutes": "m",
		"hr": "h", "hrs": "h", "hour": "h", "hours": "h",
	},
}

var sizeUnits = &units{
	what: "a size", example: `"512MiB"`,
	names:   []string{"KiB", "MiB", "GiB", "TiB"},
	factors: []int64{kib, mib, gib, tib},
	aliases: map[string]string{
		"k": "KiB", "kb": "KiB", "ki": "KiB", "m": "MiB", "mb": "MiB", "mi": "MiB",
		"g": "GiB", "gb": "GiB", "gi": "GiB", "t": "TiB", "tb": "TiB", "ti": "TiB",
	},
}

// withUnit reads digits and one unit, the only spelling of durations and sizes.
func withUnit(n *node, u *units) (int64, fault) {
	if n.kind != kindString {
		f := fault{
			code: CodeWrongType, message: fmt.Sprintf("expected %s in quotes such as %s, found %s", u.what, u.example, n.show()),
			why: "a bare number does not say its unit",
		}
		return 0, f
	}
	end := 0
	for end < len(n.text) && n.text[end] >= '0' && n.text[end] <= '9' {
		end++
	}
	digits, unit := n.text[:end], n.text[end:]
	factor := u.factor(unit)
	if factor == 0 || digits == "" {
		return 0, u.bad(n)
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v > math.MaxInt64/factor {
		return 0, fault{code: CodeOutOfRange, message: n.literal() + " is too big"}
	}
	return v * factor, fault{}
}

func (u *units) factor(name string) int64 {
	for i, n := range u.names {
		if n == name {
			return u.factors[i]
		}
	}
	return 0
}

// bad says what is wrong with a text that is no quantity, and what it was probably meant to be.
func (u *units) bad(n *node) fault {
	f := fault{
		code:    CodeBadUnit,
		message: fmt.Sprintf("%s is not %s: digits and one of %s, such as %s", n.literal(), u.what, strings.Join(u.names, ", "), u.example),
	}
	switch {
	case strings.Trim(n.text, "0123456789.") == "":
		f.why = "a bare number does not say its unit"
	case u == sizeUnits:
		f.why = "sizes are in powers of 1024 and say so; MB and M are read both ways"
	}
	if v, ok := u.guess(n.text); ok {
		f.suggestion = strconv.Quote(u.format(v))
	}
	return f
}

// guess reads what people write elsewhere: "512MB", "1.5GiB", "1m30s", "10 sec". A number without a unit has
// no reading that is safe to guess.
func (u *units) guess(text string) (int64, bool) {
	text = strings.ToLower(strings.TrimSpace(text))
	if text == "" || len(text) > 40 {
		return 0, false
	}
	var total int64
	for text != "" {
		rest := strings.TrimLeft(text, "0123456789.")
		number := text[:len(text)-len(rest)]
		rest = strings.TrimLeft(rest, " ")
		text = strings.TrimLeft(rest, "abcdefghijklmnopqrstuvwxyz")
		unit := rest[:len(rest)-len(text)]
		text = strings.TrimLeft(text, " ")
		v, err := strconv.ParseFloat(number, 64)
		factor := u.loose(unit)
		if err != nil || factor == 0 || v*float64(factor) > math.MaxInt64/4 {
			return 0, false
		}
		total += int64(math.Round(v * float64(factor)))
		if total > math.MaxInt64/4 || u == sizeUnits && text != "" {
			return 0, false
		}
	}
	return total, total > 0 && (u != sizeUnits || total%kib == 0)
}

// loose finds a unit by any name that it goes by.
func (u *units) loose(name string) int64 {
	if alias, ok := u.aliases[name]; ok {
		name = alias
	}
	for i, n := range u.names {
		if strings.EqualFold(n, name) {
			return u.factors[i]
		}
	}
	if u == durationUnits && (name == "d" || name == "day" || name == "days") {
		return 24 * hour
	}
	return 0
}

// format gives the shortest spelling of a quantity in canonical units.
func (u *units) format(v int64) string {
	for i := len(u.names) - 1; i > 0; i-- {
		if v != 0 && v%u.factors[i] == 0 {
			return strconv.FormatInt(v/u.factors[i], 10) + u.names[i]
		}
	}
	return strconv.FormatInt(v/u.factors[0], 10) + u.names[0]
}

func formatDuration(v int64) string {
	if v == 0 {
		return "0s"
	}
	return durationUnits.format(v)
}

func formatSize(v int64) string { return sizeUnits.format(v) }

func formatMilli(v int64) string {
	s := fmt.Sprintf("%d.%03d", v/1000, v%1000)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}
