package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// TestSyncError makes the kernel refuse a sync, once and from then on: the process stops at the first one that a
// commit or a checkpoint needed, and what it had acknowledged is there.
func TestSyncError(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("needs strace, to make syncs fail: ", err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	times := []string{"1", "3", "7", "20+", "60"}
	if testing.Short() {
		times = times[2:3]
	}
	for _, when := range times {
		t.Run(when, func(t *testing.T) {
			dir, store := t.TempDir(), filepath.Join(t.TempDir(), "log")
			// A log is there already: that it can be made is not the question.
			l := openLog(t, store)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when="+when, exe)
			cmd.Env = append(os.Environ(), victimStore+"="+store, "PINNACE_VICTIM_DIR="+dir, "PINNACE_VICTIM_REQUESTS=4000")
			out, err := cmd.CombinedOutput()
			if _, ok := errors.AsType[*exec.ExitError](err); !ok {
				if strings.Contains(string(out), "ptrace") {
					t.Skipf("strace may not trace here: %s", out)
				}
				t.Fatalf("the process goes on after a failed sync: %v\n%s", err, out)
			}
			if s := string(out); !strings.Contains(s, "input/output error") && !strings.Contains(s, "disk I/O error") {
				t.Fatalf("it ended with %v: %s", err, out)
			}
			again, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: store}), eventlogtest.Options(dir))
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			c, err := eventlogtest.NewClient(dir, "last")
			if err == nil {
				_, err = c.Append(t.Context(), again, eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", IdempotencyKey: fmt.Sprint("last-", when)})
			}
			if err != nil {
				t.Fatal(err)
			}
			eventlogtest.CheckHistories(t, again, dir)
		})
	}
}
