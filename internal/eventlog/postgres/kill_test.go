package postgres_test

import (
	"os"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
)

// victimStore is the URL of the log whose writer is to be killed.
const victimStore = "PINNACE_VICTIM_STORE"

// victimEngine has a lease that runs out soon, because a killed process can't give it back.
func victimEngine(url string) eventlog.Engine {
	return postgres.New(postgres.Options{URL: url, TTL: 150 * time.Millisecond})
}

func newVictim(t *testing.T) eventlogtest.Victim {
	url, _ := database(t)
	return eventlogtest.Victim{
		Engine: func() eventlog.Engine { return victimEngine(url) },
		Env:    []string{victimStore + "=" + url},
	}
}

// TestKillAtPoints and TestKillAtRandom are judged by test/logcheck, which shares no code with the log. The point
// after an outcome was looked up is reached only when PostgreSQL goes away, which TestRestartInCommit makes it do.
func TestKillAtPoints(t *testing.T) {
	eventlogtest.KillAtPoints(t, newVictim, "eventlog.fill.", "postgres.head.")
}

func TestKillAtRandom(t *testing.T) {
	rounds := 6
	if os.Getenv("PINNACE_E2E") == "1" { // make torture N=100 makes 2,000 of it
		rounds = 20
	} else if testing.Short() {
		rounds = 2
	}
	eventlogtest.KillAtRandom(t, newVictim, rounds)
}
