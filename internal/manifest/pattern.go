package manifest

import (
	"strconv"
	"strings"
)

// Patterns of the table's strings, in what ECMA 262 and RE2 have in common.
const (
	patternName      = `^[a-z][a-z0-9-]{0,39}$`
	patternPort      = `^[a-z][a-z0-9-]{0,14}$`
	patternVariable  = `^[A-Za-z_][A-Za-z0-9_]{0,255}$`
	patternReserved  = `^` + reservedPrefix
	patternBundleKey = `^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`
	patternRequest   = `^/[!-"$-~]*$`
	// No empty part, no "." and no "..".
	patternPath = `^(/|(/([^/.\x00-\x1f\x7f]|\.[^/.\x00-\x1f\x7f]|\.\.[^/\x00-\x1f\x7f])[^/\x00-\x1f\x7f]*)+)$`
)

func patternUser() string {
	id := `(` + numbersBetween(0, 1<<32-2) + `|[A-Za-z_][A-Za-z0-9_.-]{0,31})`
	return `^` + id + `(:` + id + `)?$`
}

func patternOnChange() string {
	return `^(` + OnChangeRollout + `|` + OnChangeNone + `|` + OnChangeSignal + `(` + strings.Join(signals, "|") + `))$`
}

// patternBetween matches the quantities from lowest to highest in canonical units, in any of the units.
func (u *units) patternBetween(lowest, highest int64) string {
	var parts []string
	for i, name := range u.names {
		from, to := (lowest+u.factors[i]-1)/u.factors[i], highest/u.factors[i]
		if from <= to {
			parts = append(parts, "("+numbersBetween(from, to)+")"+name)
		}
	}
	return "^0*(" + strings.Join(parts, "|") + ")$"
}

// numbersBetween matches the decimal numbers from lowest to highest, neither of them negative, without leading
// zeros.
func numbersBetween(lowest, highest int64) string {
	var parts []string
	for lowest <= highest {
		from := strconv.FormatInt(lowest, 10)
		nines := strings.Repeat("9", len(from))
		last, err := strconv.ParseInt(nines, 10, 64)
		if err != nil || last >= highest {
			return strings.Join(append(parts, digitsBetween(from, strconv.FormatInt(highest, 10))), "|")
		}
		if lowest*10 != last+1 {
			parts = append(parts, digitsBetween(from, nines))
			lowest = last + 1
			continue
		}
		// All numbers of this length, and perhaps of the next ones.
		shortest, longest := len(from)-1, len(from)-1
		for lowest = last + 1; lowest <= highest/10; lowest *= 10 {
			longest++
		}
		parts = append(parts, "[1-9]"+digits(shortest, longest))
	}
	return strings.Join(parts, "|")
}

// digitsBetween matches what lies between two texts of digits of one length.
func digitsBetween(from, to string) string {
	rest := len(from) - 1
	switch {
	case from == to:
		return from
	case strings.Trim(from, "0") == "" && strings.Trim(to, "9") == "":
		return digits(rest+1, rest+1)
	case from[0] == to[0]:
		return from[:1] + grouped(digitsBetween(from[1:], to[1:]))
	}
	var parts []string
	first, last := from[0], to[0]
	if strings.Trim(from[1:], "0") != "" {
		parts = append(parts, from[:1]+grouped(digitsBetween(from[1:], strings.Repeat("9", rest))))
		first++
	}
	ending := ""
	if strings.Trim(to[1:], "9") != "" {
		ending = to[:1] + grouped(digitsBetween(strings.Repeat("0", rest), to[1:]))
		last--
	}
	switch {
	case first == last:
		parts = append(parts, string(first)+digits(rest, rest))
	case first < last:
		parts = append(parts, "["+string(first)+"-"+string(last)+"]"+digits(rest, rest))
	}
	if ending != "" {
		parts = append(parts, ending)
	}
	return strings.Join(parts, "|")
}

// digits matches that many of them.
func digits(least, most int) string {
	switch {
	case most == 0:
		return ""
	case least == 1 && most == 1:
		return "[0-9]"
	case least == most:
		return "[0-9]{" + strconv.Itoa(most) + "}"
	default:
		return "[0-9]{" + strconv.Itoa(least) + "," + strconv.Itoa(most) + "}"
	}
}

func grouped(pattern string) string {
	if strings.Contains(pattern, "|") {
		return "(" + pattern + ")"
	}
	return pattern
}
