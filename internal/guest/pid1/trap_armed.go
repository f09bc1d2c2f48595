//go:build linux && pinnacetrap

package pid1

import (
	"os"
	"strings"
)

// armedTrap is the place that the kernel's command line names: "pinnace.trap=PLACE", blanks written as "_". Before
// /proc is there it is none.
func armedTrap() string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for word := range strings.FieldsSeq(string(line)) {
		if place, ok := strings.CutPrefix(word, "pinnace.trap="); ok {
			return strings.ReplaceAll(place, "_", " ")
		}
	}
	return ""
}

// trap panics at the place that is armed.
func trap(place string) {
	if armedTrap() == place {
		panic("trap " + place)
	}
}
