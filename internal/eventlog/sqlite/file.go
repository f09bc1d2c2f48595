package sqlite

import (
	"context"
	"database/sql"
	_ "embed" // the schema
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

const (
	// applicationID marks the file as ours ("Pinn"), so that another program's database is not taken for
	// a new one.
	applicationID = 0x50696e6e
	// pageSize holds seven events of 1 KiB, where the default of 4096 wastes a quarter.
	pageSize = 8192
	// synchronousFull is what SQLite calls "every commit is synced".
	synchronousFull = 2
)

// A querier is a connection or a pool of them.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

//go:embed schema.sql
var schema string

// openDB opens the file at path. Connections are made when they are first needed.
func openDB(path string, readOnly bool) (*sql.DB, error) {
	if err := register(); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// Only pragmas that hold for each connection and do not write belong here; those that make the file what
	// it is are set one by one in prepareFile, because their order matters and some are ignored here.
	q := url.Values{"_pragma": {"busy_timeout(5000)", "synchronous(FULL)", "cache_size(-16384)", "wal_autocheckpoint(0)", "journal_size_limit(67108864)", "trusted_schema(0)"}}
	if readOnly {
		q["_pragma"] = []string{"busy_timeout(5000)", "query_only(1)", "cache_size(-4096)", "trusted_schema(0)"}
		q.Set("mode", "ro")
	}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}).String())
}

// prepareFile makes an empty file a log as opts say, and refuses a file that is not a log that this
// program can write. A crash in between leaves an empty file.
func prepareFile(ctx context.Context, c *sql.Conn, opts Options) error {
	var tables int64
	if err := c.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&tables); err != nil {
		return err
	}
	if tables == 0 {
		if err := create(ctx, c, opts); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	if err := checkFormat(ctx, c); err != nil {
		return err
	}
	var mode string
	if err := c.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("journal mode is %q, not WAL: is this a network file system?", mode)
	}
	// Reading back is the point: a pragma that SQLite does not like is ignored without an error.
	for _, want := range []struct {
		pragma string
		value  int64
		why    string
	}{
		{"synchronous", synchronousFull, "commits would not be durable"},
		{"page_size", pageSize, "the file was not made by this program"},
		{"wal_autocheckpoint", 0, "commits would wait for checkpoints"},
	} {
		got, err := pragma(ctx, c, want.pragma)
		if err != nil {
			return err
		}
		if got != want.value {
			return fmt.Errorf("%s is %d, not %d: %s", want.pragma, got, want.value, want.why)
		}
	}
	return prepareCheckpoints(ctx, c)
}

func create(ctx context.Context, c *sql.Conn, opts Options) (err error) {
	// The page size holds only when it is set before anything is written, the journal mode included.
	if _, err := c.ExecContext(ctx, `PRAGMA page_size = `+strconv.Itoa(pageSize)); err != nil {
		return err
	}
	id := opts.ID
	if id == (eventlog.LogID{}) {
		id = eventlog.NewID()
	}
	genesis := eventlog.Genesis(id)
	if _, err := c.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, rollback(ctx, c))
		}
	}()
	if _, err := c.ExecContext(ctx, schema); err != nil {
		return err
	}
	createdTables.Hit()
	if _, err := c.ExecContext(ctx, `UPDATE lease SET epoch = max(epoch, ?)`, opts.FirstEpoch); err != nil {
		return err
	}
	for k, v := range map[string][]byte{"format": []byte(strconv.Itoa(eventlog.StoredFormat)), "log_id": id[:], "genesis": genesis[:]} {
		if _, err := c.ExecContext(ctx, `INSERT INTO meta (k, v) VALUES (?, ?)`, k, v); err != nil {
			return err
		}
	}
	if _, err := c.ExecContext(ctx, `PRAGMA application_id = `+strconv.Itoa(applicationID)); err != nil {
		return err
	}
	if _, err = c.ExecContext(ctx, `COMMIT`); err == nil {
		createdAll.Hit()
	}
	return err
}

func checkFormat(ctx context.Context, c querier) error {
	app, err := pragma(ctx, c, "application_id")
	if err != nil {
		return err
	}
	if app != applicationID {
		return errors.New("this is a database of another program")
	}
	_, err = readID(ctx, c)
	return err
}

func pragma(ctx context.Context, c querier, name string) (int64, error) {
	var v int64
	if err := c.QueryRowContext(ctx, `PRAGMA `+name).Scan(&v); err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return v, nil
}

func readMeta(ctx context.Context, c querier, key string) ([]byte, error) {
	var v []byte
	if err := c.QueryRowContext(ctx, `SELECT v FROM meta WHERE k = ?`, key).Scan(&v); err != nil {
		return nil, fmt.Errorf("read meta %q: %w", key, err)
	}
	return v, nil
}

// readID reads the log's ID, and checks that this program knows its format.
func readID(ctx context.Context, c querier) (eventlog.LogID, error) {
	var meta [3][]byte
	for i, key := range []string{"format", "log_id", "genesis"} {
		v, err := readMeta(ctx, c, key)
		if err != nil {
			return eventlog.LogID{}, err
		}
		meta[i] = v
	}
	return eventlog.StoredID(meta[0], meta[1], meta[2])
}

func readHead(ctx context.Context, c querier, id eventlog.LogID) (eventlog.Head, error) {
	var seq int64
	var hash []byte
	err := c.QueryRowContext(ctx, `SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1`).Scan(&seq, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return eventlog.Head{Hash: eventlog.Genesis(id)}, nil
	}
	if err != nil {
		return eventlog.Head{}, fmt.Errorf("read the head: %w", err)
	}
	return eventlog.StoredHead(seq, hash)
}
