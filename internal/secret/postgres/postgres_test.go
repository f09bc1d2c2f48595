package postgres_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/secret"
	"github.com/pinnacehq/pinnace/internal/secret/postgres"
	"github.com/pinnacehq/pinnace/internal/secret/storetest"
)

func TestStore(t *testing.T) {
	url := pgtest.Start(t).NewDatabase(t, "sealed")
	open := func() secret.Store {
		s, err := postgres.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// Servers of one database start at the same time.
	var starts sync.WaitGroup
	for range 8 {
		starts.Go(func() {
			s, err := postgres.Open(t.Context(), url)
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	storetest.Run(t, open, func(digest string) {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), "UPDATE pinnace_sealed SET sealed = 'other' WHERE digest = $1", digest); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if _, err := postgres.Open(t.Context(), strings.Replace(url, "/sealed", "/none", 1)); err == nil {
		t.Error("opened a database that is not there")
	}
	if _, err := postgres.Open(t.Context(), "postgres://u:canary@h/d?sslmode=nonsense"); err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("got %v", err)
	}
}
