package failpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/failpoint"
)

var point, other = failpoint.New("test.point"), failpoint.New("test.other")

const spec = "PINNACE_FAILPOINT_TEST"

// TestHit kills this test's own binary at the third hit of a point, not at another one, and not before.
func TestHit(t *testing.T) {
	if s := os.Getenv(spec); s != "" {
		if err := failpoint.Arm(s); err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"one", "two", "three"} {
			other.Hit()
			point.Hit()
			os.Stdout.WriteString(line + "\n")
		}
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for s, want := range map[string]string{"test.point": "", "test.point=3": "one\ntwo\n", "test.point=4": "one\ntwo\nthree\n"} {
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=TestHit$")
		cmd.Env = append(os.Environ(), spec+"="+s)
		out, err := cmd.Output()
		exit, failed := errors.AsType[*exec.ExitError](err)
		killed := failed && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if killed != (s != "test.point=4") || !strings.HasPrefix(string(out), want) || strings.Count(string(out), "\n") < strings.Count(want, "\n") {
			t.Errorf("%s: printed %q and ended with %v", s, out, err)
		}
	}
}

func TestArm(t *testing.T) {
	if !slices.Contains(failpoint.Names(), "test.other") {
		t.Errorf("names: got %q", failpoint.Names())
	}
	for _, s := range []string{"", "nosuch", "test.point=0", "test.point=x", "test.point=-1"} {
		if err := failpoint.Arm(s); err == nil {
			t.Errorf("armed %q", s)
		}
	}
}
