package sqlite_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

func TestEngine(t *testing.T) {
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		dir := t.TempDir()
		return eventlogtest.Store{
			Engine: func() eventlog.Engine { return sqlite.New(sqlite.Options{Dir: dir}) },
			// The lock keeps another pinnace away. This is somebody who does not ask for it, as on a
			// network file system that has none.
			Steal: func(t *testing.T) { execute(t, dir, `UPDATE lease SET epoch = epoch + 1`) },
		}
	})
}

// execute runs a statement on the log in dir as another program would.
func execute(t *testing.T, dir, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func openLog(t *testing.T, dir string) *eventlog.Log {
	t.Helper()
	l, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func appendOne(t *testing.T, l *eventlog.Log) eventlog.Receipt {
	t.Helper()
	r, err := l.Append(t.Context(), eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: []byte("{}")})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there")
	l := openLog(t, dir)
	appendOne(t, l)

	other := sqlite.New(sqlite.Options{Dir: dir})
	if _, err := other.Open(t.Context()); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("second owner: got %v, want ErrLocked", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	info, err := os.Stat(filepath.Join(dir, sqlite.FileName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: got %v, %v, want 0600", info.Mode(), err)
	}
	if got := query(t, dir, `PRAGMA page_size`); got != "8192" {
		t.Errorf("page size: got %s, want 8192", got)
	}
	if got := query(t, dir, `PRAGMA journal_mode`); got != "wal" {
		t.Errorf("journal mode: got %s, want wal", got)
	}
	if got := query(t, dir, `SELECT count(*) FROM event`); got != "1" {
		t.Errorf("events: got %s, want 1", got)
	}
}

func TestGivenID(t *testing.T) {
	dir := t.TempDir()
	id := eventlog.LogID{1, 2, 3}
	for _, give := range []eventlog.LogID{id, {}, {9}} {
		l, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: dir, ID: give}), eventlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if l.ID() != id {
			t.Errorf("opened with %s: got %s, want the first one", give, l.ID())
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRefuses: a file that this program can't write is refused with the reason, and left as it is.
func TestRefuses(t *testing.T) {
	for _, tc := range []struct{ name, statement, want string }{
		{"newer format", `UPDATE meta SET v = CAST('2' AS BLOB) WHERE k = 'format'`, "run the newer version"},
		{"unreadable format", `UPDATE meta SET v = CAST('x' AS BLOB) WHERE k = 'format'`, "not a number"},
		{"zero format", `UPDATE meta SET v = CAST('0' AS BLOB) WHERE k = 'format'`, "never was"},
		{"another program", `PRAGMA application_id = 7`, "another program"},
		{"other id", `UPDATE meta SET v = zeroblob(16) WHERE k = 'log_id'`, "genesis"},
		{"short id", `UPDATE meta SET v = zeroblob(15) WHERE k = 'log_id'`, "15 bytes"},
		{"no id", `DELETE FROM meta WHERE k = 'log_id'`, "log_id"},
		{"no lease", `DELETE FROM lease`, "lease"},
		{"changed payload", `UPDATE event SET data = CAST('{ }' AS BLOB) WHERE seq = 2`, "event 2: hash is"},
		{"changed version", `UPDATE event SET ver = 3 WHERE seq = 2`, "event 2: hash is"},
		{"version below zero", `UPDATE event SET ver = -1 WHERE seq = 2`, "out of range"},
		{"big type version", `UPDATE event SET tv = 65536 WHERE seq = 2`, "out of range"},
		{"short hash", `UPDATE event SET hash = zeroblob(31) WHERE seq = 2`, "31 bytes"},
		{"short last hash", `UPDATE event SET hash = zeroblob(31) WHERE seq = 3`, "31 bytes"},
		{"big payload", `UPDATE event SET data = zeroblob(1048577) WHERE seq = 2`, "the most is"},
		{"gap", `DELETE FROM event WHERE seq = 2`, "event 2: missing"},
		{"no beginning", `DELETE FROM event WHERE seq = 1`, "event 1: missing"},
		{"event 0", `UPDATE event SET seq = 0 WHERE seq = 1`, "missing"},
		{"no page size", `PRAGMA journal_mode = DELETE; PRAGMA page_size = 4096; VACUUM`, "page_size is 4096"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLog(t, dir)
			for range 3 {
				appendOne(t, l)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			execute(t, dir, tc.statement)
			for range 2 { // the first try must let go of everything
				_, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{})
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want an error with %q", err, tc.want)
				}
			}
		})
	}
}

func TestRefusesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, sqlite.FileName)
	for _, content := range []string{"this is no database, but it is longer than its header is", strings.Repeat("x", 10_000)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := sqlite.New(sqlite.Options{Dir: dir}).Open(t.Context()); err == nil {
			t.Error("opened a file that is no database")
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("the file was changed: %v", err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	execute(t, dir, `CREATE TABLE mine (x)`)
	if _, err := sqlite.New(sqlite.Options{Dir: dir}).Open(t.Context()); err == nil {
		t.Error("opened another program's database")
	}
}

// TestCheckpoints: the write-ahead log does not grow with what is appended.
func TestCheckpoints(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	a := eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, eventlog.MaxPayload)}
	for range 40 {
		if _, err := l.Append(t.Context(), a, a, a, a); err != nil {
			t.Fatal(err)
		}
	}
	wal, err := os.Stat(filepath.Join(dir, sqlite.FileName+"-wal"))
	if err != nil || wal.Size() > 100<<20 {
		t.Errorf("after 160 MiB of events the write-ahead log has %d bytes, %v; want at most 100 MiB", wal.Size(), err)
	}
}

func query(t *testing.T, dir, q string) (value string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.QueryRowContext(t.Context(), q).Scan(&value); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return value
}
