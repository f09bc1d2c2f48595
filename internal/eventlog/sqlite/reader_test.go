package sqlite_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// TestReader reads a log beside its writer, after it, and from a copy that nobody may write.
func TestReader(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	appends := make([]eventlog.Append, 500)
	for i := range appends {
		appends[i] = eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: []byte("{}")}
	}
	for range 5 {
		if _, err := l.Append(t.Context(), appends...); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, sqlite.FileName)
	check := func(when, path string) {
		t.Helper()
		r, err := sqlite.OpenReader(t.Context(), path)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			return
		}
		head, err := eventlog.Verify(t.Context(), r.Events(t.Context()), eventlog.Genesis(r.ID()))
		if err != nil || head != l.Head() || r.ID() != l.ID() {
			t.Errorf("%s: verified up to %v of log %s, %v; want %v of %s", when, head, r.ID(), err, l.Head(), l.ID())
		}
		for _, err := range r.Events(t.Context()) {
			if err != nil {
				t.Error(err)
			}
			break
		}
		if err := r.Close(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("beside its writer", path)
	appendOne(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check("after its writer", path)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "copy.sqlite")
	if err := os.WriteFile(copied, data, 0o400); err != nil {
		t.Fatal(err)
	}
	check("from a copy", copied)

	if _, err := sqlite.OpenReader(t.Context(), filepath.Join(dir, "none")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: got %v", err)
	}
	execute(t, dir, `UPDATE meta SET v = CAST('2' AS BLOB) WHERE k = 'format'`)
	if _, err := sqlite.OpenReader(t.Context(), path); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("newer format: got %v", err)
	}
}

// TestFlippedBytes changes bytes of a closed log's file, one at a time. Whatever SQLite makes of it, the events that are
// read are the ones that were written, or the change is found.
func TestFlippedBytes(t *testing.T) {
	dir := t.TempDir()
	l := openLog(t, dir)
	for range 20 {
		appendOne(t, l)
	}
	want := l.Head()
	id := l.ID()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, sqlite.FileName))
	if err != nil {
		t.Fatal(err)
	}
	// Every byte takes a minute, so each run takes others: repeated runs come by all of them.
	step := 61
	if os.Getenv("PINNACE_E2E") == "1" {
		step = 13
	}
	start := rand.IntN(step)
	t.Logf("every %d bytes from %d", step, start)
	tmp := t.TempDir()
	path := filepath.Join(tmp, sqlite.FileName)
	found := 0
	for at := start; at < len(data); at += step {
		data[at] ^= 0x41
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		data[at] ^= 0x41
		r, err := sqlite.OpenReader(t.Context(), path)
		if err != nil {
			found++
			continue
		}
		head, err := eventlog.Verify(t.Context(), r.Events(t.Context()), eventlog.Genesis(r.ID()))
		switch {
		case err != nil || r.ID() != id || head.Seq < want.Seq:
			found++ // by the chain, or by whoever has seen the head
		case head != want:
			t.Errorf("byte %d: another history was verified: %v, want %v", at, head, want)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if found == 0 {
		t.Error("no change was ever found")
	}
	t.Logf("%d bytes, %d changes found, the others touch nothing that is read", len(data), found)
}

// TestSpecHasSchema: the page from which other checkers are written shows the tables as they are.
func TestSpecHasSchema(t *testing.T) {
	spec, err := os.ReadFile("../../../docs/specs/eventlog.md")
	if err != nil {
		t.Fatal(err)
	}
	schema, err := os.ReadFile("schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(spec), string(schema)) {
		t.Error("docs/specs/eventlog.md does not show schema.sql as it is")
	}
}
