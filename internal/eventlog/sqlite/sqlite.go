// Package sqlite stores an event log in one SQLite file.
//
// The engine owns a directory, under flock, with the file log.sqlite in it. Commits are synced before they
// return (WAL, synchronous=FULL); the write-ahead log is copied back into the file in the background, so
// that no commit waits for it. A process that is killed at any point leaves a file that the next Open
// recovers by itself. The tables are described in docs/specs/eventlog.md.
package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// FileName is the database in the engine's directory.
const FileName = "log.sqlite"

// Options of an Engine.
type Options struct {
	// Dir belongs to the engine alone, which locks it (durable.Lock): nobody else may hold that lock, the
	// caller included. It is made when it is not there.
	Dir string
	// ID is what a new log gets; drawn when zero. It says nothing about a log that exists.
	ID eventlog.LogID
	// FirstEpoch is what a new log's lease begins with. A log that is restored begins above all epochs that
	// its owners ever had.
	FirstEpoch int64
}

// An Engine is an eventlog.Engine on a SQLite file.
type Engine struct {
	opts Options
	path string

	lock      *durable.DirLock
	writer    *sql.Conn // owned by the one who commits, under mu
	begin     *sql.Stmt
	commit    *sql.Stmt
	lease     *sql.Stmt
	insert1   *sql.Stmt
	insertN   *sql.Stmt
	insertOne *sql.Stmt
	epoch     int64
	args      []any

	writers *sql.DB // one connection
	readers *sql.DB // read-only connections
	copier  *sql.DB // one connection, for checkpoints

	mu      sync.Mutex            // held during a commit
	wal     wal                   // guarded by mu
	broken  atomic.Pointer[error] // the I/O error after which nothing may be written
	copying checkpointer
}

var _ eventlog.Engine = (*Engine)(nil)

// New makes an engine that is not open yet.
func New(opts Options) *Engine {
	return &Engine{opts: opts, path: filepath.Join(opts.Dir, FileName)}
}

// Open implements eventlog.Engine. The error wraps durable.ErrLocked when another process owns the directory.
func (e *Engine) Open(ctx context.Context) (eventlog.Info, error) {
	info, err := e.open(ctx)
	if err != nil {
		return eventlog.Info{}, errors.Join(err, e.Close())
	}
	return info, nil
}

func (e *Engine) open(ctx context.Context) (eventlog.Info, error) {
	if err := durable.MkdirAll(e.opts.Dir, 0o700); err != nil {
		return eventlog.Info{}, err
	}
	lock, err := durable.Lock(e.opts.Dir)
	if err != nil {
		return eventlog.Info{}, err
	}
	e.lock = lock
	if err := e.connect(ctx); err != nil {
		return eventlog.Info{}, fmt.Errorf("%s: %w", e.path, err)
	}
	id, err := readID(ctx, e.writer)
	if err != nil {
		return eventlog.Info{}, fmt.Errorf("%s: %w", e.path, err)
	}
	head, err := readHead(ctx, e.writer, id)
	if err != nil {
		return eventlog.Info{}, fmt.Errorf("%s: %w", e.path, err)
	}
	e.copying.start(e)
	return eventlog.Info{ID: id, Head: head}, nil
}

// connect opens the file, creating it with its tables when it is new, and checks that it is what it should be.
func (e *Engine) connect(ctx context.Context) error {
	// SQLite would create the file readable for everybody; its companions take the mode from it.
	f, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Close(), durable.SyncDir(e.opts.Dir)); err != nil {
		return err
	}
	createdFile.Hit()
	if e.writers, err = openDB(e.path, false); err != nil {
		return err
	}
	e.writers.SetMaxOpenConns(1)
	if e.writer, err = e.writers.Conn(ctx); err != nil {
		return err
	}
	if err := prepareFile(ctx, e.writer, e.opts); err != nil {
		return err
	}
	for stmt, text := range e.statements() {
		if *stmt, err = e.writer.PrepareContext(ctx, text); err != nil { //nolint:sqlclosecheck // Close closes them.
			return err
		}
	}
	if e.readers, err = openDB(e.path, true); err != nil {
		return err
	}
	if e.copier, err = openDB(e.path, false); err != nil {
		return err
	}
	e.copier.SetMaxOpenConns(1)
	e.readers.SetMaxOpenConns(8)
	e.readers.SetMaxIdleConns(4)
	return nil
}

// statements are those of the writer's connection, which are compiled once.
func (e *Engine) statements() map[**sql.Stmt]string {
	return map[**sql.Stmt]string{
		&e.begin: `BEGIN IMMEDIATE`, &e.commit: `COMMIT`, &e.lease: `SELECT epoch FROM lease WHERE one = 1`,
		&e.insert1: insertSQL(1), &e.insertN: insertSQL(insertRows), &e.insertOne: insertOneSQL,
	}
}

// Lead implements eventlog.Engine. The lock of the directory keeps other processes away; the epoch keeps
// those away who came in beside it.
func (e *Engine) Lead(ctx context.Context) (<-chan struct{}, error) {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	holder := fmt.Sprintf("%s pid %d", host, os.Getpid())
	err = e.writer.QueryRowContext(ctx, `UPDATE lease SET epoch = epoch + 1, holder = ? WHERE one = 1 RETURNING epoch`, holder).Scan(&e.epoch)
	if err != nil {
		return nil, fmt.Errorf("%s: claim the lease: %w", e.path, err)
	}
	claimed.Hit()
	return nil, nil
}

// Head implements eventlog.Engine.
func (e *Engine) Head(ctx context.Context) (eventlog.Head, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.broken.Load(); p != nil {
		return eventlog.Head{}, *p
	}
	id, err := readID(ctx, e.writer)
	if err != nil {
		return eventlog.Head{}, err
	}
	return readHead(ctx, e.writer, id)
}

// Close implements eventlog.Engine.
func (e *Engine) Close() error {
	e.copying.stop()
	var errs []error
	// Closing the last connection copies the write-ahead log back and syncs. After a failed sync that would
	// be the second try which may report success for lost bytes, so a broken file is left as it is: its
	// connections end with the process, and the directory stays locked until then.
	if p := e.broken.Load(); p != nil {
		return nil
	}
	for _, db := range []*sql.DB{e.readers, e.copier} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	closedReaders.Hit()
	for stmt := range e.statements() {
		if *stmt != nil {
			errs = append(errs, (*stmt).Close())
			*stmt = nil
		}
	}
	if e.writer != nil {
		errs = append(errs, e.writer.Close())
	}
	if e.writers != nil {
		errs = append(errs, e.writers.Close())
	}
	closedWriter.Hit()
	if e.lock != nil {
		errs = append(errs, e.lock.Unlock())
	}
	e.readers, e.copier, e.writer, e.writers, e.lock = nil, nil, nil, nil, nil
	return errors.Join(errs...)
}
