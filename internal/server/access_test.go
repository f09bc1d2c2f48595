package server

import (
	"fmt"
	"testing"

	"github.com/pinnacehq/pinnace/internal/fleet"
)

// TestEveryCallHasARule: a call that is added without a rule is refused to everybody, and this says so. What changes
// something takes more than to look.
func TestEveryCallHasARule(t *testing.T) {
	methods := controlMethods(t)
	for i := range methods.Len() {
		m := methods.Get(i)
		r, ok := rules[fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())]
		switch {
		case !ok:
			t.Errorf("%s has no rule: say in access.go who may call it, and what it is about", m.Name())
		case !fleet.Admin.Covers(r.needs) || r.about == nil:
			t.Errorf("%s: its rule says nothing", m.Name())
		case r.needs == fleet.Viewer && !reads(m) && m.Name() != "Plan" && m.Name() != "SignCheckpoint":
			t.Errorf("%s may change something, and a viewer may call it", m.Name())
		}
	}
	if len(rules) != methods.Len() {
		t.Errorf("%d rules for %d calls", len(rules), methods.Len())
	}
}
