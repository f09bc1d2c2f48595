package main

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// TestMigrateState moves a log from SQLite to PostgreSQL and back: it stays the same log, byte for byte, and none is
// put where there is one.
func TestMigrateState(t *testing.T) {
	cluster := pgtest.Start(t)
	url := cluster.NewDatabase(t, "log")
	dir := t.TempDir()
	here, there, back := logPlace{dir: filepath.Join(dir, "here", "log")}, logPlace{url: url}, logPlace{dir: filepath.Join(dir, "back", "log")}
	l, err := eventlog.Open(t.Context(), sqlite.New(sqlite.Options{Dir: here.dir}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 500 {
		a := eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: []byte{byte(i), 0, 0xff}}
		if i%3 == 0 {
			a.IdempotencyKey = fmt.Sprint("key-", i)
		}
		if _, err := l.Append(t.Context(), slices.Repeat([]eventlog.Append{a}, 1+i%2)...); err != nil {
			t.Fatal(err)
		}
	}
	want := l.Head()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	kept := []byte("sealed")
	store, err := here.secrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := store.Put(t.Context(), kept)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range [][2]logPlace{{here, there}, {there, back}} {
		if got, err := migrate(t.Context(), step[0], step[1]); err != nil || got != want {
			t.Fatalf("from %s to %s: got %v, %v, want %v", step[0], step[1], got, err, want)
		}
		if _, err := migrate(t.Context(), step[0], step[1]); err == nil {
			t.Errorf("to %s once more: no error", step[1])
		}
	}
	var exports [2]bytes.Buffer
	for i, place := range []logPlace{here, back} {
		log, err := place.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check := eventlog.Checkpoint{Seq: want.Seq, Hash: want.Hash}
		check.Sign(log.id, ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
		if err := eventlog.Export(&exports[i], log.id, check, log.events(t.Context())); err != nil {
			t.Error(err)
		}
		if err := log.close(); err != nil {
			t.Error(err)
		}
	}
	if !bytes.Equal(exports[0].Bytes(), exports[1].Bytes()) {
		t.Error("the log that came back is another one")
	}
	if store, err = back.readSecrets(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := store.Get(t.Context(), digest); err != nil || !bytes.Equal(got, kept) {
		t.Errorf("what was sealed came back as %q, %v", got, err)
	}
	if epoch := cluster.SQL(t, "log", "SELECT epoch > 1000000 FROM pinnace_lease"); epoch != "t" {
		t.Error("the lease did not begin above what it had")
	}
}
