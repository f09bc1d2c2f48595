package keyring

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// What makes the test binary a process that is to be killed: what it does, where, and before which of its steps on the
// disk it dies.
const (
	doomedDo   = "PINNACE_TEST_KEYRING_DO"
	doomedDir  = "PINNACE_TEST_KEYRING_DIR"
	doomedStep = "PINNACE_TEST_KEYRING_STEP"
)

func TestMain(m *testing.M) {
	if do := os.Getenv(doomedDo); do != "" {
		if err := doomed(do, os.Getenv(doomedDir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func doomed(do, root string) error {
	last, err := strconv.ParseInt(os.Getenv(doomedStep), 10, 64)
	if err != nil {
		return err
	}
	var steps atomic.Int64
	failpoint.Set(func(string, string) error {
		if steps.Add(1) == last {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	path := filepath.Join(root, "master.key")
	master, err := ReadMaster(path, false)
	if do == "load" && err != nil {
		master, err = MakeMaster(path)
	}
	if err != nil {
		return err
	}
	switch dir := filepath.Join(root, "keys"); do {
	case "load":
		_, err = Load(dir, master, makers("ca", "log", "secrets"))
	case "rotate":
		_, err = Rotate(dir, master)
	case "replace":
		err = Replace(dir, master, "log", "new canary\n")
	default:
		err = errors.New("nothing to do")
	}
	return err
}

// killed runs something to be killed before its step, and tells whether it was.
func killed(t *testing.T, do, root string, step int) bool {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), doomedDo+"="+do, doomedDir+"="+root, doomedStep+"="+strconv.Itoa(step))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%s, step %d: %v\n%s", do, step, err, out)
	}
	return true
}

// everyStep has something killed before each of its steps on the disk, from the same beginning each time, and looks at what
// that left.
func everyStep(t *testing.T, do string, begin, look func(root string)) {
	t.Helper()
	steps := 0
	for {
		root := t.TempDir()
		begin(root)
		dies := killed(t, do, root, steps+1)
		look(root)
		if !dies {
			break
		}
		steps++
	}
	if steps < 3 {
		t.Errorf("%s was killed before %d steps only", do, steps)
	}
	t.Logf("%s: killed before each of %d steps", do, steps)
}

// TestKilledRotation: whenever a rotation is killed, the file of the master key opens the keys, and the next one ends it.
func TestKilledRotation(t *testing.T) {
	var want Keys
	everyStep(t, "rotate", func(root string) {
		var err error
		if want, err = Load(filepath.Join(root, "keys"), mustMaster(t, filepath.Join(root, "master.key")), makers("ca", "log")); err != nil {
			t.Fatal(err)
		}
	}, func(root string) {
		dir, path := filepath.Join(root, "keys"), filepath.Join(root, "master.key")
		holds(t, dir, path, want)
		before := mustMaster(t, path)
		if _, err := Rotate(dir, before); err != nil {
			t.Fatal(err)
		}
		holds(t, dir, path, want)
		if n := mustMaster(t, path).Count(); n != 1 {
			t.Errorf("the file has %d keys", n)
		}
		if _, err := Read(dir, before); err == nil {
			t.Error("a master key from before opens the keys")
		}
		// What the killed one left half written has a master key in it.
		for _, d := range []string{root, dir} {
			entries, err := os.ReadDir(d)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if strings.Contains(e.Name(), "tmp") {
					t.Errorf("%s was left in %s", e.Name(), d)
				}
			}
		}
	})
}

// TestKilledUpgrade: whenever the first start of a server that seals its keys is killed, the next one has the same keys; and
// at no moment would a server from before find a key missing, and make another.
func TestKilledUpgrade(t *testing.T) {
	was := Keys{"ca": "ca canary\n", "log": "log canary\n", "secrets": "secrets canary\n"}
	everyStep(t, "load", func(root string) {
		dir := filepath.Join(root, "keys")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, text := range was {
			write600(t, plainPath(dir, name), text)
		}
	}, func(root string) {
		dir, path := filepath.Join(root, "keys"), filepath.Join(root, "master.key")
		for name, text := range was {
			if b, err := os.ReadFile(plainPath(dir, name)); err != nil || string(b) != text && string(b) != moved {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		keys, err := Load(dir, mustMaster(t, path), none(t, "ca", "log", "secrets"))
		if err != nil || !maps.Equal(keys, was) {
			t.Errorf("got %v, %v", keys, err)
		}
		wantNoCanary(t, dir)
	})
}

func TestKilledReplacement(t *testing.T) {
	var old Keys
	everyStep(t, "replace", func(root string) {
		var err error
		if old, err = Load(filepath.Join(root, "keys"), mustMaster(t, filepath.Join(root, "master.key")), makers("ca", "log")); err != nil {
			t.Fatal(err)
		}
	}, func(root string) {
		got, err := Read(filepath.Join(root, "keys"), mustMaster(t, filepath.Join(root, "master.key")))
		if err != nil || got["ca"] != old["ca"] || got["log"] != old["log"] && got["log"] != "new canary\n" {
			t.Errorf("got %v, %v", got, err)
		}
	})
}
