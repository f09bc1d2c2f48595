package postgres_test

import (
	"strings"
	"testing"

	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse/lastusetest"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse/postgres"
)

func TestStore(t *testing.T) {
	url := pgtest.Start(t).NewDatabase(t, "uses")
	lastusetest.Run(t, func() lastuse.Store {
		s, err := postgres.Open(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	if _, err := postgres.Open(t.Context(), strings.Replace(url, "/uses", "/none", 1)); err == nil {
		t.Error("opened a database that is not there")
	}
}
