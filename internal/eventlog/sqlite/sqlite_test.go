package sqlite_test

import (
	"database/sql"
	"path/filepath"
	"testing"

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
