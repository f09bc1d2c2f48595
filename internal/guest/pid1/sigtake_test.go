//go:build linux

package pid1

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCancelSignal: the signal that Go leaves alone ends nothing any more, on whatever thread it arrives, and what is
// started has it as it should be.
func TestCancelSignal(t *testing.T) {
	if os.Getenv("PINNACE_TEST_CANCEL") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCancelSignal$")
		cmd.Env = append(os.Environ(), "PINNACE_TEST_CANCEL=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := takeCancel(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if err := unix.Kill(os.Getpid(), unix.Signal(sigCancel)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("sed", "-n", "s/^SigIgn:[[:space:]]*//p", "/proc/self/status").Output()
	if err != nil {
		t.Fatal(err)
	}
	// Others may be ignored, as under nohup.
	ignored, err := strconv.ParseUint(strings.TrimSpace(string(out)), 16, 64)
	if err != nil || ignored>>(sigCancel-1)&1 != 0 {
		t.Errorf("a program that is started ignores %s, %v", out, err)
	}
}
