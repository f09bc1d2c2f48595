package postgres_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
)

// shared is one cluster for the tests that need no more than a database of their own.
var shared struct {
	once      sync.Once
	cluster   *pgtest.Cluster
	skip      string
	failure   string
	clean     []func()
	databases atomic.Int64
}

// mainTB lets the cluster outlive the test that came first.
type mainTB struct{}

func (mainTB) Helper()          {}
func (mainTB) Cleanup(f func()) { shared.clean = append(shared.clean, f) }
func (mainTB) Fatalf(f string, args ...any) {
	shared.failure = fmt.Sprintf(f, args...)
	panic(mainTB{})
}

func (mainTB) Skipf(f string, args ...any) { shared.skip = fmt.Sprintf(f, args...); panic(mainTB{}) }

func TestMain(m *testing.M) {
	eventlogtest.RunVictim(func() eventlog.Engine { return victimEngine(os.Getenv(victimStore)) })
	status := m.Run()
	eventlogtest.CleanUp()
	for _, clean := range slices.Backward(shared.clean) {
		clean()
	}
	os.Exit(status)
}

// database gives a new database in the shared cluster.
func database(t testing.TB) (url, name string) {
	t.Helper()
	shared.once.Do(func() {
		defer func() {
			if r := recover(); r != nil && r != (mainTB{}) {
				panic(r)
			}
		}()
		shared.cluster = pgtest.Start(mainTB{})
	})
	if shared.skip != "" {
		t.Skip(shared.skip)
	}
	if shared.failure != "" {
		t.Fatal(shared.failure)
	}
	name = fmt.Sprint("log", shared.databases.Add(1))
	return shared.cluster.NewDatabase(t, name), name
}

func TestEngine(t *testing.T) {
	eventlogtest.Run(t, func(t *testing.T) eventlogtest.Store {
		url, name := database(t)
		return eventlogtest.Store{
			Engine: func() eventlog.Engine { return postgres.New(postgres.Options{URL: url}) },
			// Somebody who took over and went away again.
			Steal: func(t *testing.T) {
				shared.cluster.SQL(t, name, `UPDATE pinnace_lease SET epoch = epoch + 1, holder = 'thief', until = 'epoch'`)
			},
		}
	})
}

// TestRefuses: a database that can't keep the promise, or that another version wrote, is refused with the reason.
func TestRefuses(t *testing.T) {
	url, name := database(t)
	l, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := l.Append(t.Context(), eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", Payload: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ statement, undo, want string }{
		{`UPDATE pinnace_meta SET v = '2' WHERE k = 'format'`, `UPDATE pinnace_meta SET v = '1' WHERE k = 'format'`, "a newer pinnace"},
		{`UPDATE pinnace_meta SET k = 'x' WHERE k = 'genesis'`, `UPDATE pinnace_meta SET k = 'genesis' WHERE k = 'x'`, "genesis"},
		{`UPDATE pinnace_event SET tv = 65536 WHERE seq = 2`, `UPDATE pinnace_event SET tv = 0 WHERE seq = 2`, "out of range"},
		{`UPDATE pinnace_event SET data = '{ }' WHERE seq = 2`, `UPDATE pinnace_event SET data = '{}' WHERE seq = 2`, "event 2: hash is"},
		{`UPDATE pinnace_event SET seq = 7 WHERE seq = 2`, `UPDATE pinnace_event SET seq = 2 WHERE seq = 7`, "event 2: missing"},
		{`UPDATE pinnace_event SET hash = '' WHERE seq = 3`, ``, "0 bytes"},
	} {
		shared.cluster.SQL(t, name, tc.statement)
		_, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), eventlog.Options{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", tc.statement, err, tc.want)
		}
		if tc.undo != "" {
			shared.cluster.SQL(t, name, tc.undo)
		}
	}
	if _, err := postgres.New(postgres.Options{URL: "postgres://u:geheim@127.0.0.1:1/x?connect_timeout=1"}).Open(t.Context()); err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("no server there: got %v, want an error without the password", err)
	}
}

// TestHeld: who does not follow is told who leads, and a lease that was given back is free at once.
func TestHeld(t *testing.T) {
	url, _ := database(t)
	first, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url, Holder: "the first server"}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), eventlog.Options{})
	if !errors.Is(err, eventlog.ErrHeld) || !strings.Contains(err.Error(), "the first server") {
		t.Errorf("got %v, want ErrHeld and the holder", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	second, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}
