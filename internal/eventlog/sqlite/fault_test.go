package sqlite_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// fileLimit, when set beside writerDir, is the size in bytes beyond which the kernel refuses to write.
const fileLimit = "PINNACE_EVENTLOG_TEST_FILE_LIMIT"

// limitFiles makes every write beyond the limit fail with EFBIG, which stands for an I/O error.
func limitFiles() error {
	limit, err := strconv.ParseUint(os.Getenv(fileLimit), 10, 64)
	if err != nil {
		return err
	}
	signal.Ignore(syscall.SIGXFSZ)
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: limit})
}

// TestWriteError: after an I/O error the writer stops for good, and what it acknowledged is there.
func TestWriteError(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), writerDir+"="+dir, fileLimit+"="+strconv.Itoa(2<<20))
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var acks []ack
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if a, ok := parseAck(lines.Text()); ok {
			acks = append(acks, a)
		}
	}
	err = cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); !ok || !strings.Contains(stderr.String(), eventlog.ErrBroken.Error()) {
		t.Errorf("writer: got %v and %q, want it to end with ErrBroken", err, &stderr)
	}
	if len(acks) == 0 {
		t.Error("nothing was acknowledged before the error")
	}
	l := openLog(t, dir)
	checkAcks(t, l, acks)
	appendOne(t, l)
}

// TestDiskFull: a full disk refuses appends, loses none, and the log goes on as soon as there is room.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("needs root, to mount a small file system; run with make test")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, filepath.Join(dir, "log"))
	a := eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, 100_000)}
	var refused error
	for range 100 {
		if _, refused = l.Append(t.Context(), a); refused != nil {
			break
		}
	}
	full := l.Head()
	if !errors.Is(refused, eventlog.ErrNotCommitted) || full.Seq == 0 || l.Err() != nil {
		t.Fatalf("full at event %d: got %v (log: %v), want ErrNotCommitted and a log that lives", full.Seq, refused, l.Err())
	}
	if _, err := l.Append(t.Context(), a); !errors.Is(err, eventlog.ErrNotCommitted) {
		t.Errorf("still full: got %v, want ErrNotCommitted", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if r := appendOne(t, l); r.First != full.Seq+1 {
		t.Errorf("with room again: got event %d, want %d", r.First, full.Seq+1)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, filepath.Join(dir, "log"))
	if got := l.Head().Seq; got != full.Seq+1 {
		t.Errorf("opened again: got event %d, want %d", got, full.Seq+1)
	}
	if err := l.Close(); err != nil { // before the unmount
		t.Fatal(err)
	}
}
