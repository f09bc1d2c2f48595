package fleet

import (
	"errors"
	"testing"
)

// TestEventsOfANewerVersion: what this version does not know is told apart from what is damaged.
func TestEventsOfANewerVersion(t *testing.T) {
	for name, test := range map[string]struct {
		typ     string
		version uint16
		payload string
		newer   bool
	}{
		"a type":           {"moon.landed", 1, `{}`, true},
		"a version":        {"environment.created", 99, `{"name":"dev"}`, true},
		"a field":          {"environment.created", 1, `{"name":"dev","colour":"red"}`, true},
		"a field of parts": {"instances.planned", 1, `{"deployment":"d","start":[{"instance":"i","colour":"red"}]}`, true},
		"another kind":     {"environment.created", 1, `{"name":7}`, false},
		"cut short":        {"environment.created", 1, `{"name":"dev"`, false},
		"two documents":    {"environment.created", 1, `{"name":"dev"}{}`, false},
	} {
		_, err := Decode(test.typ, test.version, []byte(test.payload))
		if err == nil || errors.Is(err, ErrNewer) != test.newer {
			t.Errorf("%s: got %v, want that it is newer: %v", name, err, test.newer)
		}
	}
}
