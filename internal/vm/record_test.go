package vm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/vm"
)

// A sleeping child stands in for a monitor.
func startSleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestSweep(t *testing.T) {
	root := t.TempDir()
	record := func(name string, change func(*vm.Record)) *exec.Cmd {
		cmd := startSleeper(t)
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		r, err := vm.NewRecord("qemu", vm.Spec{ID: name, Dir: dir}, cmd.Process.Pid, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		change(&r)
		if err := r.Write(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	mine := record("mine", func(*vm.Record) {})
	others := []*exec.Cmd{
		record("started-later", func(r *vm.Record) { r.StartTicks-- }),
		record("other-boot", func(r *vm.Record) { r.BootID = "00000000-0000-0000-0000-000000000000" }),
		record("no-process", func(r *vm.Record) { r.PID = 1 << 22 }),
		record("init", func(r *vm.Record) { r.PID = 1 }),
	}
	if err := os.Mkdir(filepath.Join(root, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}

	killed, err := vm.Sweep(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	if len(killed) != 1 || killed[0].ID != "mine" {
		t.Errorf("killed %+v, want mine only", killed)
	}
	if err := mine.Wait(); err == nil {
		t.Error("mine was not killed")
	}
	for _, cmd := range others {
		if err := cmd.Process.Kill(); err != nil {
			t.Errorf("another process was ended: %v", err)
		}
		cmd.Wait()
	}
	if left, _ := filepath.Glob(filepath.Join(root, "*", vm.RecordName)); len(left) != 0 {
		t.Errorf("records left: %v", left)
	}
}

func TestSweepReportsWhatItCannotRead(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "bad")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, vm.RecordName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Sweep(t.Context(), root); err == nil {
		t.Error("no error")
	}
}
