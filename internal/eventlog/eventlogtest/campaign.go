package eventlogtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// A Victim is a store whose writers are killed.
type Victim struct {
	// Engine makes an engine on the store.
	Engine func() eventlog.Engine
	// Env makes the test's own binary call RunVictim on the store.
	Env []string
}

// What tells a test's binary that it is a victim.
const (
	victimDir      = "PINNACE_VICTIM_DIR"
	victimPoint    = "PINNACE_VICTIM_POINT"
	victimRequests = "PINNACE_VICTIM_REQUESTS"
)

// RunVictim is called by TestMain, and does something when the binary was started to be killed: then it does not
// return.
func RunVictim(engine func() eventlog.Engine) {
	dir := os.Getenv(victimDir)
	if dir == "" {
		return
	}
	requests, err := strconv.Atoi(os.Getenv(victimRequests))
	if spec := os.Getenv(victimPoint); spec != "" && err == nil {
		err = failpoint.Arm(spec)
	}
	if err == nil {
		err = Write(context.Background(), engine(), dir, requests)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// long tells whether there is time for all of a campaign.
func long() bool { return os.Getenv("PINNACE_TORTURE") != "" }

// KillAtPoints kills writers at every failpoint that is linked in but those whose names begin with one of except,
// each on a store of its own: when it is new, and when it holds something. Without PINNACE_TORTURE it takes a few.
func KillAtPoints(t *testing.T, newVictim func(t *testing.T) Victim, except ...string) {
	names := slices.DeleteFunc(failpoint.Names(), func(name string) bool {
		return slices.ContainsFunc(except, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
	})
	t.Logf("%d failpoints", len(names))
	if !long() {
		//nolint:gosec // Where a kill hits is no secret.
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		names = names[:6]
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			v := run{Victim: newVictim(t), dir: t.TempDir(), requests: 320}
			killed := v.start(t, name)
			if !killed { // some places are reached with some history only
				killed = v.start(t, name)
			}
			if !killed {
				t.Fatal("no writer ever came to this point")
			}
			v.start(t, fmt.Sprintf("%s=%d", name, 2+rand.IntN(10))) //nolint:gosec // As above.
			if v.start(t, "") {
				t.Error("was killed without a failpoint")
			}
			v.check(t)
		})
	}
}

// KillAtRandom kills writers of one store at any moment, rounds times.
func KillAtRandom(t *testing.T, newVictim func(t *testing.T) Victim, rounds int) {
	v := run{Victim: newVictim(t), dir: t.TempDir(), requests: 100_000}
	kills := 0
	for range rounds {
		v.after = time.Duration(1+rand.IntN(400)) * time.Millisecond //nolint:gosec // Where a kill hits is no secret.
		if v.start(t, "") {
			kills++
		}
	}
	if kills < rounds {
		t.Errorf("%d of %d writers were killed", kills, rounds)
	}
	v.after, v.requests = 0, 80
	v.start(t, "")
	v.check(t)
}

type run struct {
	Victim
	dir      string
	requests int
	after    time.Duration // until the kill, when no failpoint does it
}

// start runs a writer to its end and tells whether it was killed.
func (v *run) start(t *testing.T, point string) (killed bool) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(append(os.Environ(), v.Env...), victimDir+"="+v.dir, victimPoint+"="+point, victimRequests+"="+strconv.Itoa(v.requests))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if v.after > 0 {
		timer := time.AfterFunc(v.after, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err = cmd.Wait()
	exit, failed := errors.AsType[*exec.ExitError](err)
	if failed && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("writer with %q: %v\n%s", point, err, &stderr)
	}
	return false
}

// check has the independent checker look at the histories and an export of the log.
func (v *run) check(t *testing.T) {
	t.Helper()
	opts := Options(v.dir)
	opts.Follow = true
	l, err := eventlog.Open(t.Context(), v.Engine(), opts)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-l.Leads():
	case <-time.After(deadline):
		t.Fatal("nobody leads")
	}
	CheckHistories(t, l, v.dir)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// CheckHistories exports the log and runs test/logcheck, with flags, on that and on the histories in dir.
func CheckHistories(t *testing.T, l *eventlog.Log, dir string, flags ...string) {
	t.Helper()
	c, err := l.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "export")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(eventlog.Export(f, l.ID(), c, l.Read(t.Context(), 0)), f.Close()); err != nil {
		t.Fatal(err)
	}
	histories, err := filepath.Glob(filepath.Join(dir, "*.history"))
	if err != nil || len(histories) == 0 {
		t.Fatalf("no histories: %v", err)
	}
	out, err := exec.CommandContext(t.Context(), checker(t), slices.Concat(flags, []string{path}, histories)...).CombinedOutput()
	if err != nil {
		keep, _ := os.MkdirTemp("", "pinnace-logcheck-") //nolint:usetesting // It has to outlive the test, for whoever looks into it.
		_ = os.CopyFS(keep, os.DirFS(filepath.Dir(path)))
		_ = os.CopyFS(keep, os.DirFS(dir))
		t.Fatalf("%v; what it read is in %s\n%s", err, keep, out)
	}
	t.Logf("%s", bytes.TrimSpace(out))
}

var built struct {
	once sync.Once
	path string
	err  error
}

// checker builds test/logcheck, once.
func checker(t *testing.T) string {
	t.Helper()
	built.once.Do(func() {
		if _, err := exec.LookPath("go"); err != nil {
			built.err = err
			return
		}
		// Where the module is, is where this file is: tests run in their packages' directories.
		_, file, _, _ := runtime.Caller(0)
		root := filepath.Join(filepath.Dir(file), "..", "..", "..")
		dir, err := os.MkdirTemp("", "pinnace-logcheck-bin-") //nolint:usetesting // Other tests use it too; CleanUp removes it.
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "logcheck")
		cmd := exec.Command("go", "build", "-o", built.path, "./test/logcheck")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build test/logcheck: %w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Skipf("needs test/logcheck: %v", built.err)
	}
	return built.path
}

// CleanUp removes what the campaigns have built, which is built anew when it is needed again. TestMain calls it last, or
// each test that runs a campaign does.
func CleanUp() {
	if built.path != "" {
		_ = os.RemoveAll(filepath.Dir(built.path))
	}
	built.once, built.path = sync.Once{}, ""
}
