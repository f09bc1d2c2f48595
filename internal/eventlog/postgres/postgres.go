// Package postgres stores an event log in a PostgreSQL database, for control planes of several servers.
//
// One server leads: it holds the row of pinnace_lease, whose epoch goes up with each new holder, and every
// commit updates that row under its own epoch in the statement that inserts the events. A leader that was
// replaced, however late it wakes up, therefore stores nothing. Times in the lease are the database's own.
// The other servers read. LISTEN is a hint for them to look at once; they also look without it.
//
// The tables are described in docs/specs/eventlog.md.
package postgres

import (
	"context"
	_ "embed" // the schema
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pinnacehq/pinnace/internal/eventlog"
)

// channel is what followers LISTEN to.
const channel = "pinnace_event"

//go:embed schema.sql
var schema string

// Options of an Engine.
type Options struct {
	// URL is how to connect: postgres://user@host/database. PGPASSWORD and PGPASSFILE are honoured.
	URL string
	// Holder is what others are told of who leads; host and process when empty.
	Holder string
	// TTL is how long a leader is believed to be alive after its last sign; 10 s when 0.
	TTL time.Duration
	// LookUp is how long an unknown outcome is looked up while the database is away; 30 s when 0.
	LookUp time.Duration
	// ID is what a new log gets; drawn when zero.
	ID eventlog.LogID
	// FirstEpoch is what a new log's lease begins with. A log that is restored begins above all epochs that
	// its owners ever had.
	FirstEpoch int64
}

// An Engine is an eventlog.Engine on a PostgreSQL database.
type Engine struct {
	opts Options
	pool *pgxpool.Pool // for everything but commits

	id     eventlog.LogID
	writer *pgx.Conn // owned by the one who commits; nil when its last commit failed

	mu    sync.Mutex
	lease lease // guarded by mu

	lost     chan struct{}
	loseOnce sync.Once
	wake     chan struct{}
	notify   chan struct{}
	cancel   context.CancelFunc
	done     sync.WaitGroup
}

var (
	_ eventlog.Engine = (*Engine)(nil)
	_ eventlog.Waker  = (*Engine)(nil)
)

// New makes an engine that is not open yet.
func New(opts Options) *Engine {
	if opts.TTL <= 0 {
		opts.TTL = 10 * time.Second
	}
	if opts.LookUp <= 0 {
		opts.LookUp = 30 * time.Second
	}
	if opts.Holder == "" {
		host, err := os.Hostname()
		if err != nil {
			host = "unknown"
		}
		opts.Holder = fmt.Sprintf("%s pid %d", host, os.Getpid())
	}
	return &Engine{opts: opts, lost: make(chan struct{}), wake: make(chan struct{}, 1), notify: make(chan struct{}, 1)}
}

// Open implements eventlog.Engine.
func (e *Engine) Open(ctx context.Context) (eventlog.Info, error) {
	info, err := e.open(ctx)
	if err != nil {
		return eventlog.Info{}, errors.Join(fmt.Errorf("PostgreSQL: %w", err), e.Close())
	}
	return info, nil
}

func (e *Engine) open(ctx context.Context) (eventlog.Info, error) {
	cfg, err := pgxpool.ParseConfig(e.opts.URL)
	if err != nil {
		return eventlog.Info{}, err // pgx leaves the password out
	}
	cfg.MaxConns = 8
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "pinnace"
	}
	if e.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return eventlog.Info{}, err
	}
	if err := e.prepare(ctx); err != nil {
		return eventlog.Info{}, err
	}
	if e.id, err = e.readID(ctx); err != nil {
		return eventlog.Info{}, err
	}
	head, err := e.readHead(ctx)
	if err != nil {
		return eventlog.Info{}, err
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	e.done.Go(func() { e.listen(background) })
	return eventlog.Info{ID: e.id, Head: head}, nil
}

// prepare makes the tables when they are not there, and refuses a database that does not keep its word.
func (e *Engine) prepare(ctx context.Context) error {
	for _, must := range [][3]string{
		{"fsync", "on", "what was committed would be lost with the power"},
		{"full_page_writes", "on", "a crash could leave half a page"},
		{"data_sync_retry", "off", "after a failed sync the next one would succeed without what was lost"},
	} {
		var value string
		if err := e.pool.QueryRow(ctx, `SELECT current_setting($1)`, must[0]).Scan(&value); err != nil {
			return err
		}
		if value != must[1] {
			return fmt.Errorf("its setting %s is %q: %s. Set it to %s", must[0], value, must[2], must[1])
		}
	}
	return pgx.BeginFunc(ctx, e.pool, func(tx pgx.Tx) error {
		// Two servers may be new at the same time.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtext('pinnace_event'))`); err != nil {
			return err
		}
		var there bool
		if err := tx.QueryRow(ctx, `SELECT to_regclass('pinnace_meta') IS NOT NULL`).Scan(&there); err != nil || there {
			return err
		}
		id := e.opts.ID
		if id == (eventlog.LogID{}) {
			id = eventlog.NewID()
		}
		genesis := eventlog.Genesis(id)
		if _, err := tx.Exec(ctx, schema); err != nil {
			return fmt.Errorf("create the tables: %w", err)
		}
		if _, err := tx.Exec(ctx, `UPDATE pinnace_lease SET epoch = $1`, e.opts.FirstEpoch); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO pinnace_meta (k, v) VALUES ('format', $1), ('log_id', $2), ('genesis', $3)`,
			[]byte(strconv.Itoa(eventlog.StoredFormat)), id[:], genesis[:])
		return err
	})
}

func (e *Engine) readID(ctx context.Context) (id eventlog.LogID, err error) {
	var format, logID, genesis []byte
	err = e.pool.QueryRow(ctx, `SELECT
		(SELECT v FROM pinnace_meta WHERE k = 'format'), (SELECT v FROM pinnace_meta WHERE k = 'log_id'), (SELECT v FROM pinnace_meta WHERE k = 'genesis')`).Scan(&format, &logID, &genesis)
	if err != nil {
		return id, fmt.Errorf("read meta: %w", err)
	}
	return eventlog.StoredID(format, logID, genesis)
}

// Close implements eventlog.Engine. The lease is given back, so that the next server need not wait for it.
func (e *Engine) Close() error {
	if e.cancel != nil {
		e.cancel()
	}
	e.done.Wait()
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if e.pool != nil {
		if l := e.hold(lease{}); l.epoch != 0 && !l.unknown {
			// A lease that can't be given back runs out.
			_, _ = e.pool.Exec(ctx, `UPDATE pinnace_lease SET until = 'epoch' WHERE epoch = $1`, l.epoch)
		}
		e.pool.Close()
		e.pool = nil
	}
	if e.writer != nil {
		errs = append(errs, e.writer.Close(ctx))
		e.writer = nil
	}
	return errors.Join(errs...)
}

// fenced says that err means that nothing can be stored by this engine, now or later.
func fenced(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	// unique_violation: the seq is taken, so somebody else has written.
	return ok && pg.Code == "23505"
}
