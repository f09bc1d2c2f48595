// Package postgres keeps when tokens were used last in the PostgreSQL database that the event log of several servers is in,
// so that each tells what all of them have seen.
package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
)

// schema is made by whoever comes first.
const schema = `CREATE TABLE IF NOT EXISTS pinnace_token_uses (
	token text PRIMARY KEY,
	used_at timestamptz NOT NULL
)`

// schemaLock is the advisory lock under which the table is made: two that make it at once would collide.
const schemaLock = 0x70696e75

// A Store is a lastuse.Store in a database.
type Store struct{ pool *pgxpool.Pool }

var _ lastuse.Store = (*Store)(nil)

// Open connects to the database at a postgres:// URL, and makes the table when there is none.
func Open(ctx context.Context, url string) (*Store, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err) // pgx leaves the password out
	}
	cfg.MaxConns = 1
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	if cfg.ConnConfig.RuntimeParams["application_name"] == "" {
		cfg.ConnConfig.RuntimeParams["application_name"] = "pinnace"
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", int64(schemaLock)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, schema)
		return err
	})
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("PostgreSQL: %w", err)
	}
	return &Store{pool}, nil
}

// Load implements lastuse.Store.
func (s *Store) Load(ctx context.Context) (map[string]time.Time, error) {
	rows, err := s.pool.Query(ctx, "SELECT token, used_at FROM pinnace_token_uses")
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: read when tokens were used: %w", err)
	}
	used := map[string]time.Time{}
	var token string
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&token, &at}, func() error {
		used[token] = at
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL: read when tokens were used: %w", err)
	}
	return used, nil
}

// Save implements lastuse.Store.
func (s *Store) Save(ctx context.Context, used map[string]time.Time) error {
	// In one order, or two servers could wait for each other's rows.
	tokens := slices.Sorted(maps.Keys(used))
	times := make([]time.Time, len(tokens))
	for i, token := range tokens {
		times[i] = used[token]
	}
	_, err := s.pool.Exec(ctx, `INSERT INTO pinnace_token_uses (token, used_at) SELECT * FROM unnest($1::text[], $2::timestamptz[])
		ON CONFLICT (token) DO UPDATE SET used_at = greatest(pinnace_token_uses.used_at, excluded.used_at)`, tokens, times)
	if err != nil {
		return fmt.Errorf("PostgreSQL: save when tokens were used: %w", err)
	}
	return nil
}

// Close implements lastuse.Store.
func (s *Store) Close() error {
	s.pool.Close()
	return nil
}
