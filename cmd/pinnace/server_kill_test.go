package main

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/secret"
)

// killedAt runs a command that is killed at a failpoint.
func killedAt(t *testing.T, point string, args ...string) {
	t.Helper()
	out, err := commandAt(t, point, args...)
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("%q never came to %s: %v\n%s", args, point, err, out)
	}
}

func commandAt(t *testing.T, point string, args ...string) (string, error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Env = append(os.Environ(), asCLI+"=1", "PINNACE_FAILPOINT="+point, "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// headOf verifies a log in a server's data directory.
func headOf(t *testing.T, data string) eventlog.Head {
	t.Helper()
	l, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: filepath.Join(data, "server", "log")}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	head := l.Head()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	return head
}

// TestKillRestore kills a backup and a restore at each of their points: there is never half a file or half a log, and the
// next try ends well or finds that all is done.
func TestKillRestore(t *testing.T) {
	dir := t.TempDir()
	data, backup := filepath.Join(dir, "data"), filepath.Join(dir, "backup")
	keys, err := usualKeys(filepath.Join(data, "server")).load(keyLog)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseLogKey([]byte(keys[keyLog]))
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: filepath.Join(data, "server", "log")}), eventlog.Options{Key: key})
	if err != nil {
		t.Fatal(err)
	}
	for range 30 {
		appends := make([]eventlog.Append, 100)
		for i := range appends {
			appends[i] = eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, 100)}
		}
		if _, err := l.Append(t.Context(), appends...); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := headOf(t, data)
	store, err := secret.OpenDir(filepath.Join(data, "server", "secrets"))
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.Put(t.Context(), []byte("sealed"))
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range []string{"backup.written", "backup.named"} {
		killedAt(t, point, "server", "backup", "--data-dir", data, backup)
		if _, err := os.Stat(backup); (err == nil) != (point == "backup.named") {
			t.Errorf("killed at %s: the backup is there: %v", point, err == nil)
		}
		if err := os.RemoveAll(backup); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := commandAt(t, "", "server", "backup", "--data-dir", data, backup); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	points := []string{
		"restore.verified", "sqlite.create.file", "sqlite.create.tables", "sqlite.create.committed", "eventlog.fill.before", "eventlog.fill.after",
		"eventlog.fill.after=2", "restore.filled", "sqlite.checkpoint.before", "restore.signed", "sqlite.close.writer", "restore.placed",
	}
	if os.Getenv("PINNACE_E2E") != "1" { // a process for each takes its time
		rand.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:3]
	}
	for _, point := range points {
		to := t.TempDir()
		restore := []string{"server", "restore", "--data-dir", to, backup}
		killedAt(t, point, restore...)
		_, err := os.Stat(filepath.Join(to, "server", "log"))
		if (err == nil) != (point == "restore.placed") {
			t.Errorf("killed at %s: a log is there: %v", point, err == nil)
		}
		if err != nil {
			if out, err := commandAt(t, "", restore...); err != nil {
				t.Errorf("after %s, again: %v\n%s", point, err, out)
			}
		}
		for _, file := range []string{filepath.Join("keys", "sealed.age"), filepath.Join("secrets", strings.TrimPrefix(digest, "sha256:")+".age")} {
			if _, err := os.Stat(filepath.Join(to, "server", file)); err != nil {
				t.Errorf("killed at %s: there is a log, and not all that belongs to it: %v", point, err)
			}
		}
		if got := headOf(t, to); got != want {
			t.Errorf("killed at %s: the log ends with %v, want %v", point, got, want)
		}
	}
}
