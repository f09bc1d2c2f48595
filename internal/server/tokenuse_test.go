package server

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "github.com/pinnacehq/pinnace/internal/api/pinnace/v1"
	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
	"github.com/pinnacehq/pinnace/internal/fleet"
	"github.com/pinnacehq/pinnace/internal/identity/lastuse"
	lastusepostgres "github.com/pinnacehq/pinnace/internal/identity/lastuse/postgres"
)

// countedUses counts what is written to a store, which may be away.
type countedUses struct {
	lastuse.Store
	mu    sync.Mutex
	away  bool // guarded by mu
	saves int  // guarded by mu
}

func (c *countedUses) Save(ctx context.Context, used map[string]time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.away {
		return errors.New("the store is away")
	}
	c.saves++
	return c.Store.Save(ctx, used)
}

func (c *countedUses) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.saves
}

// lastUse is when a token was used last, by what a client is told.
func lastUse(t *testing.T, p *plane, name string) time.Time {
	t.Helper()
	res, err := p.client.ListTokens(t.Context(), connect.NewRequest(&pb.ListTokensRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range res.Msg.GetTokens() {
		if token.GetName() == name {
			return token.GetLastUsedAt().AsTime()
		}
	}
	t.Fatalf("there is no token %s", name)
	return time.Time{}
}

// TestTokenUsesAreKept: when a token was used last is known after a restart, on either engine, and takes no event and one
// write however often tokens are used.
func TestTokenUsesAreKept(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) {
		dir := t.TempDir()
		keepsTokenUses(t, func() eventlog.Engine { return sqlite.New(sqlite.Options{Dir: filepath.Join(dir, "log")}) },
			func() lastuse.Store { return lastuse.InFile(filepath.Join(dir, "uses", "tokens.json")) })
	})
	t.Run("postgres", func(t *testing.T) {
		url := pgtest.Start(t).NewDatabase(t, "uses")
		keepsTokenUses(t, func() eventlog.Engine { return postgres.New(postgres.Options{URL: url}) }, func() lastuse.Store { return openUses(t, url) })
	})
}

func openUses(t *testing.T, url string) lastuse.Store {
	s, err := lastusepostgres.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keepsTokenUses(t *testing.T, engine func() eventlog.Engine, uses func() lastuse.Store) {
	var store *countedUses
	p := &plane{t: t, engine: engine, hostTimeout: 5 * time.Second, change: func(o *Options) {
		store = &countedUses{Store: uses()}
		o.TokenUses = store
	}}
	p.listen()
	token := p.someone("ci", fleet.Viewer)
	if at := lastUse(t, p, "ci"); at.After(time.Unix(0, 0)) {
		t.Errorf("a new token was used at %s", at)
	}
	use := func() time.Time {
		t.Helper()
		if _, err := p.clientAs(token).ListEnvironments(t.Context(), connect.NewRequest(&pb.ListEnvironmentsRequest{})); err != nil {
			t.Fatal(err)
		}
		return lastUse(t, p, "ci")
	}
	head, saves := p.ledger.log.Head().Seq, store.count()
	for range 100 {
		use()
	}
	if err := p.saveUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := store.count() - saves; n != 1 || p.ledger.log.Head().Seq != head {
		t.Errorf("after 100 uses there are %d writes and %d events", n, p.ledger.log.Head().Seq-head)
	}

	// What was not saved is there while the server is, and is saved when it ends.
	store.mu.Lock()
	store.away = true
	store.mu.Unlock()
	at := use()
	if err := p.saveUses(t.Context()); err == nil {
		t.Error("saved to a store that is away")
	}
	if again := lastUse(t, p, "ci"); !again.Equal(at) {
		t.Errorf("it was used at %s, and then at %s", at, again)
	}
	store.mu.Lock()
	store.away = false
	store.mu.Unlock()
	p.kill()
	p.boot()
	p.eventually("the last use is known after a restart", func() bool { return lastUse(t, p, "ci").Sub(at).Abs() < time.Millisecond })
	if later := use(); !later.After(at) {
		t.Errorf("used again, it says %s", later)
	}
}
