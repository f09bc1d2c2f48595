//go:build linux

package pid1_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/guest"
	"github.com/pinnacehq/pinnace/internal/vm/vmtest"
)

// TestCrash boots an init that panics, each time in another goroutine: the host gets a report that says so, the disks
// are clean, and the VM ends by a reset and not by a kernel panic. Panics of steps are TestStepReportsPanics' business.
func TestCrash(t *testing.T) {
	l := newLab(t)
	t.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -tags=pinnacetrap"))
	l.kernel = vmtest.Prepare(t, vmtest.NeedGuests(t), vmtest.Build(t, initPackage))
	for _, tc := range []struct {
		place string
		stage string // that fails; empty when the workload has started
	}{
		{"heartbeat", "?"}, // whichever is under way
		{"spawner", "exec"},
		{"supervise", ""},
		{"reap", ""},
		{"line", ""},
	} {
		t.Run(tc.place, func(t *testing.T) {
			armed := *l
			armed.append = " pinnace.trap=" + tc.place
			m := armed.boot(t)
			want := "bug in pinnace-init: trap " + tc.place
			_, err := m.tryStart(l.config("lines", "3"))
			if tc.stage != "" {
				var failed *guest.StartError
				if !errors.As(err, &failed) || !strings.Contains(failed.Message, want) || (tc.stage != "?" && failed.Stage != tc.stage) {
					t.Errorf("start: %+v", err)
				}
			} else if err != nil {
				t.Error(err)
			} else if e := m.exit(); e.Code != 137 || !strings.Contains(e.Error, want) || e.OOM {
				t.Errorf("exit %+v", e)
			}
			m.end()
			if strings.Contains(m.console.String(), "Kernel panic") {
				t.Error("the kernel panicked")
			}
			if tc.stage == "" && !strings.Contains(m.console.String(), `pinnace-exit`) {
				t.Error("no report on the console")
			}
		})
	}
}
