package importer

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const (
	mib = 1 << 20
	gib = 1 << 30

	leastMemory = 96 * mib // below it no manifest can go
)

// duration writes a time as a manifest has it: one unit, no fraction. Below a millisecond it is none.
func duration(d time.Duration) string {
	ms := d.Milliseconds()
	for _, u := range []struct {
		name string
		ms   int64
	}{{"h", 3600_000}, {"m", 60_000}, {"s", 1000}} {
		if ms != 0 && ms%u.ms == 0 {
			return text(strconv.FormatInt(ms/u.ms, 10) + u.name)
		}
	}
	if ms == 0 {
		return `"0s"`
	}
	return text(strconv.FormatInt(ms, 10) + "ms")
}

// size writes bytes as a manifest has them, in whole KiB.
func size(bytes int64) string {
	for _, u := range []struct {
		name  string
		bytes int64
	}{{"TiB", 1 << 40}, {"GiB", gib}, {"MiB", mib}} {
		if bytes%u.bytes == 0 {
			return text(strconv.FormatInt(bytes/u.bytes, 10) + u.name)
		}
	}
	return text(strconv.FormatInt((bytes+1023)/1024, 10) + "KiB")
}

// parseSize reads "512m", "1.5gb", "256MiB", or a number in unit. All three programs mean powers of 1024.
func parseSize(s string, unit int64) (int64, error) {
	s = strings.ToLower(strings.TrimSpace(s))
	number := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz")
	name := s[len(number):]
	factor := unit
	switch strings.TrimSuffix(strings.TrimSuffix(name, "ib"), "b") {
	case "":
		if name != "" {
			factor = 1
		}
	case "k":
		factor = 1 << 10
	case "m":
		factor = mib
	case "g":
		factor = gib
	case "t":
		factor = 1 << 40
	default:
		return 0, fmt.Errorf("%s is not a size", show(s))
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || math.IsNaN(v) || v < 0 || v*float64(factor) > 1<<50 {
		return 0, fmt.Errorf("%s is not a size", show(s))
	}
	return int64(math.Round(v * float64(factor))), nil
}

// parseCPU reads a number of processors, and writes it as a manifest has it: at most three decimals.
func parseCPU(s string) (string, error) {
	v, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || math.IsNaN(v) || v <= 0 || v > 1e6 {
		return "", fmt.Errorf("%s is not a number of processors", show(s))
	}
	return strconv.FormatFloat(math.Round(v*1000)/1000, 'f', -1, 64), nil
}

// parseDuration reads "1m30s". Days are allowed, as compose and Nomad have them.
func parseDuration(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%s is not a time", show(s))
	}
	return d, nil
}

// words splits a command line as a shell does, without expanding anything.
func words(s string) ([]string, error) {
	var list []string
	var word strings.Builder
	inWord := false
	var quote rune
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			if quote == '"' && !strings.ContainsRune("\"\\$`\n", r) {
				word.WriteByte('\\')
			}
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, inWord = true, true
		case quote != 0:
			if r == quote {
				quote = 0
			} else {
				word.WriteRune(r)
			}
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case strings.ContainsRune(" \t\r\n", r):
			if inWord {
				list = append(list, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("its quotes do not match")
	}
	if inWord {
		list = append(list, word.String())
	}
	return list, nil
}
