package manifest

import (
	"strings"
	"time"
)

// validDate tells whether a text is a date, a time, or both as TOML has them. The parser takes anything for one
// that has about the right shape. No key of a manifest takes a date, but what is wrong with one should be said
// in its own words.
func validDate(s string) bool {
	if !shaped(s, "0000-") {
		return validClock(s) // an offset means nothing without a date
	}
	if len(s) < len(time.DateOnly) {
		return false
	}
	date, rest := s[:len(time.DateOnly)], s[len(time.DateOnly):]
	if _, err := time.Parse(time.DateOnly, date); err != nil || rest == "" {
		return err == nil
	}
	if strings.IndexByte("Tt ", rest[0]) < 0 {
		return false
	}
	clock := rest[1:]
	if offset := strings.IndexAny(clock, "Zz+-"); offset >= 0 {
		return validClock(clock[:offset]) && validOffset(clock[offset:])
	}
	return validClock(clock)
}

// validClock accepts hh:mm, and seconds with or without a fraction.
func validClock(s string) bool {
	if !shaped(s, "00:00") || s[:2] > "23" || s[3:5] > "59" {
		return false
	}
	s = s[len("00:00"):]
	if s == "" {
		return true
	}
	if !shaped(s, ":00") || s[1:3] > "59" {
		return false
	}
	fraction, has := strings.CutPrefix(s[len(":00"):], ".")
	if !has {
		return fraction == ""
	}
	return fraction != "" && consistsOf(fraction, numeric)
}

func validOffset(s string) bool {
	return s == "Z" || s == "z" || len(s) == len("+00:00") && shaped(s[1:], "00:00") && s[1:3] <= "23" && s[4:6] <= "59"
}

// shaped reports whether s begins like shape, in which 0 stands for any digit.
func shaped(s, shape string) bool {
	if len(s) < len(shape) {
		return false
	}
	for i := range len(shape) {
		if digit := s[i] >= '0' && s[i] <= '9'; shape[i] == '0' && !digit || shape[i] != '0' && s[i] != shape[i] {
			return false
		}
	}
	return true
}
