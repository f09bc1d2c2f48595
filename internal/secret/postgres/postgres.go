// Package postgres keeps sealed bytes in the PostgreSQL database that the event log of several servers is in, so that
// each of them has them.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pinnacehq/pinnace/internal/secret"
)

// schema is made by whoever comes first.
const schema = `CREATE TABLE IF NOT EXISTS pinnace_sealed (
	digest text PRIMARY KEY,
	sealed bytea NOT NULL,
	at timestamptz NOT NULL DEFAULT now()
)`

// schemaLock is the advisory lock under which the table is made: two that make it at once would collide.
const schemaLock = 0x70696e73

// A Store is a secret.Store in a database.
type Store struct{ pool *pgxpool.Pool }

var _ secret.Store = (*Store)(nil)

// Open connects to the database at a postgres:// URL, and makes the table when there is none.
func Open(ctx context.Context, url string) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err) // pgx leaves the password out
	}
	cfg.MaxConns = 4
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "pinnace"
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	if err := prepare(ctx, pool); err != nil {
		pool.Close()
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	return &Store{pool}, nil
}

func prepare(ctx context.Context, pool *pgxpool.Pool) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	})
}

// Put implements secret.Store.
func (s *Store) Put(ctx context.Context, sealed []byte) (string, error) {
	digest := secret.Digest(sealed)
	_, err := s.pool.Exec(ctx, `INSERT INTO pinnace_sealed (digest, sealed) VALUES ($1, $2)
		ON CONFLICT (digest) DO UPDATE SET sealed = excluded.sealed, at = now()`, digest, sealed)
	return digest, wrap("store sealed bytes", err)
}

// Get implements secret.Store.
func (s *Store) Get(ctx context.Context, digest string) ([]byte, error) {
	if !secret.ValidDigest(digest) {
		return nil, fmt.Errorf("%q is no digest of sealed bytes", digest)
	}
	var sealed []byte
	err := s.pool.QueryRow(ctx, "SELECT sealed FROM pinnace_sealed WHERE digest = $1", digest).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("%s: %w", digest, secret.ErrNotFound)
	}
	if err != nil {
		return nil, wrap("read sealed bytes", err)
	}
	return sealed, secret.Verify(digest, sealed)
}

// Remove implements secret.Store.
func (s *Store) Remove(ctx context.Context, digest string) error {
	if !secret.ValidDigest(digest) {
		return fmt.Errorf("%q is no digest of sealed bytes", digest)
	}
	_, err := s.pool.Exec(ctx, "DELETE FROM pinnace_sealed WHERE digest = $1", digest)
	return wrap("remove sealed bytes", err)
}

// List implements secret.Store.
func (s *Store) List(ctx context.Context) ([]secret.Entry, error) {
	rows, err := s.pool.Query(ctx, "SELECT digest, at FROM pinnace_sealed")
	if err != nil {
		return nil, wrap("list sealed bytes", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[secret.Entry])
	return all, wrap("list sealed bytes", err)
}

// Close implements secret.Store.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("PostgreSQL: %s: %w", what, err)
}
