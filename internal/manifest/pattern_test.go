package manifest

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"
)

func TestNumbersBetween(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		lowest := rng.Int64N(1 << rng.IntN(14))
		highest := lowest + rng.Int64N(1<<rng.IntN(14))
		pattern := regexp.MustCompile("^(" + numbersBetween(lowest, highest) + ")$")
		for v := range max(highest, 1) * 2 {
			if want := v >= lowest && v <= highest; pattern.MatchString(strconv.FormatInt(v, 10)) != want {
				t.Fatalf("%d..%d as %s: %d matches: %t", lowest, highest, pattern, v, !want)
			}
		}
		if pattern.MatchString("0"+strconv.FormatInt(highest, 10)) || pattern.MatchString("") {
			t.Fatalf("%s matches what is no number", pattern)
		}
	}
}

func TestPatternBetween(t *testing.T) {
	for _, k := range Keys() {
		u := durationUnits
		switch k.Type {
		case Duration:
		case Size:
			u = sizeUnits
		default:
			continue
		}
		pattern := regexp.MustCompile(u.patternBetween(k.Min, k.Max))
		for i, unit := range u.names {
			for _, v := range []int64{0, 1, k.Min / u.factors[i], k.Max / u.factors[i]} {
				for _, near := range []int64{v - 1, v, v + 1} {
					text := fmt.Sprintf("%d%s", near, unit)
					_, f := (&decoder{}).quantity(&spec{Key: &k}, &node{kind: kindString, text: text})
					if pattern.MatchString(text) != (f.code == "") {
						t.Errorf("%s = %q: the parser says %q, the pattern %s %t", k.Path, text, f.message, pattern, pattern.MatchString(text))
					}
				}
			}
		}
	}
}

// TestPatterns compares what a pattern says of a text with what the parser says, for every row that has one and
// texts of every kind.
func TestPatterns(t *testing.T) {
	texts := []string{
		"", "a", "A", "_", "-", "0", "9", "api", "a-b", "a_b", "a.b", "Api", "a b", "ä", "a\n", "a\x00", "\x7f",
		"PINNACE_", "PINNACE_X", "PINNACEX", "pinnace_x", "x-PINNACE_", "X", "X1", "1X", "X-Y", "DATABASE_URL",
		"/", "//", "/a", "/a/", "/a//b", "/.", "/..", "/...", "/.a", "/..a", "/a/.", "/a/..", "/a/../b", "/a/./b", "/a/.b/..c",
		"/a\tb", "/a b", "/a#b", "/a?b=c", "/ä", "a/b", "http://x/", "https://x", "/~", "/%20", "/\x7f", "/\n",
		"0:0", "4294967294", "4294967295", "04", "1:", ":1", "1:2:3", "root", "root:root", "a:1", "1:a", "-1", "www-data", "a$", "user.name",
		"rollout", "none", "signal:", "signal:SIGHUP", "signal:SIGKILL", "signal:sighup", "roll", "Rollout",
	}
	for _, n := range []int{14, 15, 16, 32, 33, 39, 40, 41, 128, 129, 255, 256, 257} {
		b := make([]byte, n)
		for i := range b {
			b[i] = 'a'
		}
		texts = append(texts, string(b), "/"+string(b))
	}
	for _, k := range Keys() {
		if k.Pattern == "" {
			continue
		}
		pattern := regexp.MustCompile(k.Pattern)
		except := regexp.MustCompile(k.Except + `|^\b$`)
		for _, text := range texts {
			accepted := k.check(text).code == ""
			if k.Path == "health.ready.port" || k.Path == "health.live.port" {
				// The check is for what no port can be called; the name is looked up in ports, whose names are checked.
				accepted = portName(text).code == ""
			}
			if got := pattern.MatchString(text) && (k.Except == "" || !except.MatchString(text)); got != accepted {
				t.Errorf("%s = %q: the parser accepts it: %t; the patterns: %t", k.Path, text, accepted, got)
			}
		}
	}
}
