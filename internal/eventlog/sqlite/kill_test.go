package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// writerDir, when set, makes the test binary a writer that appends to the log there until it is killed.
const writerDir = "PINNACE_EVENTLOG_TEST_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		if err := runWriter(context.Background(), dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	eventlogtest.RunVictim(func() eventlog.Engine { return sqlite.New(sqlite.Options{Dir: os.Getenv(victimStore)}) })
	status := m.Run()
	eventlogtest.CleanUp()
	os.Exit(status)
}

// victimStore is the directory of the log whose writer is to be killed.
const victimStore = "PINNACE_VICTIM_STORE"

func newVictim(t *testing.T) eventlogtest.Victim {
	dir := filepath.Join(t.TempDir(), "log")
	return eventlogtest.Victim{
		Engine: func() eventlog.Engine { return sqlite.New(sqlite.Options{Dir: dir}) },
		Env:    []string{victimStore + "=" + dir},
	}
}

// TestKillAtPoints and TestKillAtRandom are judged by test/logcheck, which shares no code with the log.
func TestKillAtPoints(t *testing.T) {
	eventlogtest.KillAtPoints(t, newVictim, "eventlog.fill.", "postgres.") // the benchmarks link both engines
}

func TestKillAtRandom(t *testing.T) {
	rounds := 6
	if os.Getenv("PINNACE_E2E") == "1" { // make torture N=100 makes 2,000 of it
		rounds = 20
	} else if testing.Short() {
		rounds = 4
	}
	eventlogtest.KillAtRandom(t, newVictim, rounds)
}

// runWriter appends from several goroutines and writes a line for each receipt, after it has it.
func runWriter(ctx context.Context, dir string) error {
	if os.Getenv(fileLimit) != "" {
		if err := limitFiles(); err != nil {
			return err
		}
	}
	l, err := eventlog.Open(ctx, sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{})
	if err != nil {
		return err
	}
	var out sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(w)))
			for i := 0; ; i++ {
				appends := make([]eventlog.Append, 1+rng.IntN(3))
				for j := range appends {
					appends[j] = eventlog.Append{Stream: fmt.Sprint("s/", rng.IntN(20)), Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, rng.IntN(3000))}
				}
				key := fmt.Sprintf("%d/%d/%d", os.Getpid(), w, i)
				appends[0].IdempotencyKey = key
				r, err := l.Append(ctx, appends...)
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				out.Lock()
				fmt.Printf("%d %d %s %s\n", r.First, r.Last, r.Hash, key)
				out.Unlock()
			}
		})
	}
	wg.Wait()
	return nil
}

type ack struct {
	first, last uint64
	hash, key   string
}

// TestKill kills a writing process again and again; whatever it acknowledged must be there, once, and nothing
// may be half there.
func TestKill(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	rounds := 6
	if os.Getenv("PINNACE_E2E") == "1" { // make torture N=100 makes 2,000 of it
		rounds = 20
	} else if testing.Short() {
		rounds = 3
	}
	var acks []ack
	for round := range rounds {
		acked := killWriter(t, dir, rng)
		acks = append(acks, acked...)
		l := openLog(t, dir) // verifies the chain
		checkAcks(t, l, acks)
		if n := len(acked); n > 0 {
			a := acked[rng.IntN(n)]
			r, err := l.Append(t.Context(), eventlog.Append{Stream: "again", Expect: eventlog.AnyVersion, Type: "t", IdempotencyKey: a.key})
			if err != nil || !r.Repeated || r.First != a.first || r.Last != a.last || r.Hash.String() != a.hash {
				t.Errorf("round %d: append %s again: got %+v, %v, want %+v", round, a.key, r, err, a)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	if len(acks) == 0 {
		t.Error("no writer ever acknowledged anything")
	}
	t.Logf("%d kills, %d requests acknowledged", rounds, len(acks))
}

// killWriter starts a writer, kills it after a random number of acknowledgements and a little later, or while
// it opens the log, and says what it acknowledged.
func killWriter(t *testing.T, dir string, rng *rand.Rand) []ack {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() {
		// The commits go on while this waits: the point is to hit one anywhere.
		time.AfterFunc(time.Duration(rng.IntN(15_000))*time.Microsecond, func() {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		})
	}
	limit := rng.IntN(400)
	if limit < 60 {
		limit = 0
		kill()
	}
	var acks []ack
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		a, ok := parseAck(lines.Text())
		if !ok {
			continue
		}
		acks = append(acks, a)
		if limit > 0 && len(acks) == limit {
			kill()
		}
	}
	// The error is that it was killed; its own are on its stderr.
	_ = cmd.Wait()
	if stderr.Len() > 0 {
		t.Errorf("writer: %s", &stderr)
	}
	return acks
}

// parseAck reads a line of runWriter. The last one may be cut off by the kill.
func parseAck(line string) (a ack, ok bool) {
	n, err := fmt.Sscan(line, &a.first, &a.last, &a.hash, &a.key)
	return a, n == 4 && err == nil && len(a.hash) == 64
}

func checkAcks(t *testing.T, l *eventlog.Log, acks []ack) {
	t.Helper()
	var events []eventlog.Event
	for e, err := range l.Read(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq != uint64(len(events)+1) {
			t.Fatalf("event %d after %d", e.Seq, len(events))
		}
		events = append(events, e)
	}
	for _, a := range acks {
		if a.last > uint64(len(events)) {
			t.Errorf("events %d to %d were acknowledged, but the log ends at %d", a.first, a.last, len(events))
			continue
		}
		if got := events[a.last-1].Hash.String(); got != a.hash {
			t.Errorf("event %d: got hash %s, acknowledged was %s", a.last, got, a.hash)
		}
		for seq := a.first; seq <= a.last; seq++ {
			if got := events[seq-1].IdempotencyKey; got != a.key {
				t.Errorf("event %d: got key %q, want %q", seq, got, a.key)
			}
		}
	}
}
