package server

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/failpoint"
)

// killsPerLog is how many kills a log lives through before it is judged.
const killsPerLog = 100

// killPatience bounds the waits of the campaigns; the machine may be busy with other things.
const killPatience = 2 * time.Minute

// campaignSize is how many kills there are to be: PINNACE_SERVER_KILLS, or a few where whole systems are tested.
func campaignSize(t *testing.T, few int) int {
	t.Helper()
	if kills, err := strconv.Atoi(os.Getenv("PINNACE_SERVER_KILLS")); err == nil {
		return kills
	}
	if os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("kills servers for a while; run with make test or make torture")
	}
	return few
}

// onEngines runs a campaign on both engines. newDatabase gives the URL of a new database, "" for SQLite.
func onEngines(t *testing.T, campaign func(t *testing.T, newDatabase func() string, skip ...string)) {
	t.Cleanup(eventlogtest.CleanUp)
	t.Run("SQLite", func(t *testing.T) {
		campaign(t, func() string { return "" }, "postgres.")
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		cluster, n := pgtest.Start(t), 0
		campaign(t, func() string {
			n++
			return cluster.NewDatabase(t, fmt.Sprint("doomed", n))
		}, "sqlite.")
	})
}

// TestKillServer kills a server with all that belongs to it at any moment, while clients deploy and change settings and
// hosts report. Then test/logcheck holds the log against what the clients were told, and every app must be all of one
// release.
func TestKillServer(t *testing.T) {
	if os.Getenv(doomedDir) != "" {
		serveDoomed(t)
		return
	}
	kills := campaignSize(t, 8)
	onEngines(t, func(t *testing.T, newDatabase func() string, _ ...string) {
		begin, total := time.Now(), 0
		for total < kills && !t.Failed() {
			d := newDoomed(t, newDatabase())
			d.live(func() {
				for n := 0; n < killsPerLog && total < kills; n++ {
					d.start("")
					if n%8 == 7 { // while it starts
						time.Sleep(rand.N(150 * time.Millisecond))
					} else {
						d.awaitLead()
						time.Sleep(rand.N(250 * time.Millisecond)) // any moment is one to be killed at
					}
					d.kill()
					total++
				}
			})
		}
		t.Logf("%d kills in %.0f s", total, time.Since(begin).Seconds())
	})
}

// never are the points that this campaign has no way to: logs are filled by commands (TestKillRestore), and an outcome
// is looked up when PostgreSQL goes away (TestRestartInCommit).
var never = []string{"eventlog.fill.", "postgres.head."}

// onlyNew are the points of a log that is made, and atEnd those that a server comes to when it ends in order, or after
// long. It comes to those of atStart once in its life.
var (
	onlyNew = []string{"sqlite.create.", "server.token.created."}
	atStart = []string{"eventlog.open.", "sqlite.lead.", "postgres.lead.", "server.run."}
	atEnd   = []string{"eventlog.close.", "sqlite.close.", "eventlog.derived.", "eventlog.checkpoint.", "sqlite.checkpoint.", "postgres.checkpoint."}
)

func begins(name string, with []string) bool {
	return slices.ContainsFunc(with, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}

// serverPoints are the failpoints at which a server with an engine is killed.
func serverPoints(skip ...string) []string {
	return slices.DeleteFunc(failpoint.Names(), func(name string) bool { return begins(name, slices.Concat(skip, never)) })
}

// TestKillServerAtPoints kills a server at every failpoint that it has, once at least, and fails where it never comes by.
// It is judged as TestKillServer is. With PINNACE_SERVER_KILLS below their number, or without it, it takes some.
func TestKillServerAtPoints(t *testing.T) {
	kills := campaignSize(t, 6)
	onEngines(t, func(t *testing.T, newDatabase func() string, skip ...string) {
		names := serverPoints(skip...)
		if len(names) < 40 {
			t.Errorf("%d failpoints, want 40 at least", len(names))
		}
		all := len(names)
		rand.Shuffle(all, func(i, j int) { names[i], names[j] = names[j], names[i] })
		names = names[:min(all, kills)]
		begin := time.Now()
		hits := 0
		for _, name := range slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !begins(name, onlyNew) }) {
			d := newDoomed(t, newDatabase())
			if d.start(name); !d.dies(killPatience) {
				t.Fatalf("a server with a new log never came to %s", name)
			}
			hits++
			d.start("")
			d.awaitLead()
			d.stop()
		}
		d := newDoomed(t, newDatabase())
		d.live(func() {
			for _, name := range names {
				if begins(name, onlyNew) {
					continue
				}
				d.dieAt(name)
				hits++
			}
		})
		t.Logf("killed at %d of %d failpoints in %.0f s: %s", hits, all, time.Since(begin).Seconds(), strings.Join(names, " "))
	})
}

// dieAt has a server live until it comes to a point.
func (d *doomed) dieAt(name string) {
	d.Helper()
	if !begins(name, atEnd) {
		hit := 1
		if !begins(name, atStart) {
			hit += rand.IntN(3)
		}
		d.start(fmt.Sprintf("%s=%d", name, hit))
		if !d.dies(killPatience) {
			d.Fatalf("the server never came to %s", name)
		}
		return
	}
	// The derived copy is written when enough has come since the last one.
	for end := time.Now().Add(killPatience); time.Now().Before(end); {
		d.start(name)
		d.awaitChanges(400)
		if d.dead() {
			return
		}
		if d.endInOrder(); d.dies(killPatience) {
			return
		}
	}
	d.Fatalf("no server came to %s", name)
}

// TestFailpoints: the page that names the failpoints names those that there are.
func TestFailpoints(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "design", "crashes.md"))
	if err != nil {
		t.Fatal(err)
	}
	var missing error
	for _, name := range failpoint.Names() {
		if !strings.Contains(string(page), "`"+name+"`") {
			missing = errors.Join(missing, errors.New(name))
		}
	}
	if missing != nil {
		t.Errorf("docs/design/crashes.md does not name\n%v", missing)
	}
	for _, skip := range []string{"sqlite.", "postgres."} {
		if n := len(serverPoints(skip)); n < 40 {
			t.Errorf("without %s: %d failpoints, want 40 at least", skip, n)
		}
	}
}
