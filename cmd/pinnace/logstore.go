package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// A logPlace says where an event log is stored: a directory, or a PostgreSQL database.
type logPlace struct{ dir, url string }

// parsePlace reads a place as people write it: sqlite:DIR or postgres://….
func parsePlace(text string) (logPlace, error) {
	if dir, ok := strings.CutPrefix(text, "sqlite:"); ok && dir != "" {
		return logPlace{dir: dir}, nil
	}
	if isPostgres(text) {
		return logPlace{url: text}, nil
	}
	return logPlace{}, fail(exitInvalid, "it looks like sqlite:/var/lib/pinnace/server/log, or like postgres://user@host/database", "%q is no place of an event log", text)
}

func isPostgres(url string) bool {
	return strings.HasPrefix(url, "postgres://") || strings.HasPrefix(url, "postgresql://")
}

// String names the place without what may be a password.
func (p logPlace) String() string {
	if p.url != "" {
		return "the PostgreSQL database"
	}
	return p.dir
}

// engine makes the engine of the place.
func (p logPlace) engine() eventlog.Engine { return p.create(eventlog.LogID{}, 0) }

// create makes an engine that gives a new log that ID and first epoch.
func (p logPlace) create(id eventlog.LogID, epoch int64) eventlog.Engine {
	if p.url != "" {
		return postgres.New(postgres.Options{URL: p.url, ID: id, FirstEpoch: epoch})
	}
	return sqlite.New(sqlite.Options{Dir: p.dir, ID: id, FirstEpoch: epoch})
}

// newEpoch is above all epochs that a log's owners ever had, because those count openings.
func newEpoch() int64 { return time.Now().Unix() }

// A storedLog is a log that is read where it is stored, beside its server or without one.
type storedLog struct {
	id     eventlog.LogID
	events func(context.Context) iter.Seq2[eventlog.Event, error]
	last   eventlog.Checkpoint
	close  func() error
}

// open reads the log of the place without owning it.
func (p logPlace) open(ctx context.Context) (*storedLog, error) {
	if p.url == "" {
		r, err := sqlite.OpenReader(ctx, filepath.Join(p.dir, sqlite.FileName))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fail(exitNotFound, "--data-dir says where the server keeps its data", "%w", err)
		}
		if err != nil {
			return nil, err
		}
		last, err := r.LastCheckpoint(ctx)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		return &storedLog{id: r.ID(), events: r.Events, last: last, close: r.Close}, nil
	}
	e := p.engine()
	info, err := e.Open(ctx)
	if err != nil {
		return nil, fail(exitUnreachable, "", "%w", err)
	}
	last, err := e.LastCheckpoint(ctx)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return &storedLog{
		id: info.ID, last: last, close: e.Close,
		events: func(ctx context.Context) iter.Seq2[eventlog.Event, error] { return eventlog.Stored(ctx, e) },
	}, nil
}

// sign verifies all of a stored log and signs its head. Without a key it gives the last checkpoint that the
// server signed.
func (s *storedLog) sign(ctx context.Context, key ed25519.PrivateKey) (eventlog.Checkpoint, error) {
	head, err := eventlog.Verify(ctx, s.events(ctx), eventlog.Genesis(s.id))
	if err != nil {
		return eventlog.Checkpoint{}, err
	}
	if key == nil {
		if s.last.Seq == 0 {
			return eventlog.Checkpoint{}, fail(exitNotFound, "run this as a user that can read DATA_DIR/server/keys and the master key", "the log has no signed checkpoint yet, and there is no key to sign one with")
		}
		return s.last, nil
	}
	c := eventlog.Checkpoint{Seq: head.Seq, Hash: head.Hash, Time: time.Now().UnixNano()}
	c.Sign(s.id, key)
	return c, nil
}
