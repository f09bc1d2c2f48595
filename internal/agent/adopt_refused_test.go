package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pinnacev1 "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/proxy"
	"github.com/pinnacehq/pinnace/internal/vm"
)

// TestNotTakenOver has what an agent must not trust: it is ended, nothing of it stays, and the instance starts anew.
func TestNotTakenOver(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string){
		"damaged record": func(t *testing.T, dir string) { mustWrite(t, filepath.Join(dir, keptName), "{") },
		"no record":      func(t *testing.T, dir string) { mustRemove(t, filepath.Join(dir, keptName)) },
		"an older init": func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, keptName))
			if err != nil {
				t.Fatal(err)
			}
			old := strings.Replace(string(b), `"protocol":2`, `"protocol":1`, 1)
			if old == string(b) {
				t.Fatal("no version in ", old)
			}
			mustWrite(t, filepath.Join(dir, keptName), old)
		},
		"another instance": func(t *testing.T, dir string) {
			if err := os.Rename(dir, filepath.Join(filepath.Dir(dir), "api-9.1")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.start()
			l.deploy("api-1", l.app("api"))
			dir := l.machine("api-1").Dir
			l.leave()
			spoil(t, dir)
			l.driver.KillAll() // it has no process to be killed by
			l.poll("the machine has ended", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.running) == 0 })
			l.forgetReports()
			l.start()
			if r := l.awaitState("api-1", stateReady); r.Attempt != 2 {
				t.Errorf("got attempt %d, want a new one", r.Attempt)
			}
			if left, err := os.ReadDir(filepath.Join(l.dir, "run", "vm")); err != nil || len(left) != 1 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestOthersAreNotDisturbed: one that cannot be taken over costs the others no connection, whatever order they come in.
func TestOthersAreNotDisturbed(t *testing.T) {
	l := newLab(t)
	l.runs("first", l.serves(&answer{}, 8080))
	l.runs("last", l.serves(&answer{}, 9090))
	l.start()
	l.assign("dev", "first-1", l.app("first", "ports.web.port = 8080"))
	l.assign("dev", "last-1", l.app("last", "ports.web.port = 9090"))
	l.awaitState("first-1", stateReady)
	l.awaitState("last-1", stateReady)
	dir := l.machine("first-1").Dir
	l.leave()
	rec, err := vm.ReadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec.StartedAt = rec.StartedAt.Add(time.Second) // of another machine
	if err := rec.Write(); err != nil {
		t.Fatal(err)
	}
	l.driver.Kill("first-1.1")
	l.poll("the machine has ended", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.running["first-1"] == 0 })
	l.forgetReports()
	l.start()
	l.await("first-1", "starts anew", func(r *pinnacev1.InstanceReport) bool { return r.Attempt == 2 && r.State == stateReady })
	if got := l.proxy.history("last-1"); !slices.Equal(got, []proxy.BackendState{proxy.Active}) {
		t.Errorf("the proxy was told %q of the other", got)
	}
}

func mustRemove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}
