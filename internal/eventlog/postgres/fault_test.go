package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/eventlogtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
)

// patience bounds every wait.
const patience = 60 * time.Second

// thorough tells whether there is time for tests with clusters of their own.
func thorough() bool { return os.Getenv("PINNACE_E2E") == "1" || os.Getenv("PINNACE_TORTURE") != "" }

func follow(t *testing.T, e eventlog.Engine, dir string) *eventlog.Log {
	t.Helper()
	opts := eventlogtest.Options(dir)
	opts.Follow = true
	l, err := eventlog.Open(t.Context(), e, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func lead(t *testing.T, l *eventlog.Log) {
	t.Helper()
	select {
	case <-l.Leads():
	case <-l.Failed():
		t.Fatal(l.Err())
	case <-time.After(patience):
		t.Fatal("does not lead")
	}
}

func request(key string) eventlog.Append {
	return eventlog.Append{Stream: "s", Expect: eventlog.AnyVersion, Type: "t", IdempotencyKey: key, Payload: make([]byte, 500)}
}

// TestRestartInCommit stops PostgreSQL under load in each way that it can end, and starts it again: a commit
// whose outcome is unknown is looked up, and nothing is lost, doubled or guessed.
func TestRestartInCommit(t *testing.T) {
	ways := []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGQUIT}
	if !thorough() {
		ways = ways[:1]
	}
	for _, how := range ways {
		t.Run(how.String(), func(t *testing.T) {
			cluster := pgtest.Start(t)
			url := cluster.NewDatabase(t, "log")
			dir := t.TempDir()
			// The lease outlives the restart, so the same log goes on.
			engine := func() eventlog.Engine { return postgres.New(postgres.Options{URL: url, TTL: 30 * time.Second}) }
			l := follow(t, engine(), dir)
			lead(t, l)
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			var done atomic.Int64
			for w := range 8 {
				wg.Go(func() {
					c, err := eventlogtest.NewClient(dir, fmt.Sprint("client-", w))
					if err != nil {
						t.Error(err)
						return
					}
					for i := 0; ctx.Err() == nil; i++ {
						_, err := c.Append(t.Context(), l, request(fmt.Sprintf("%d/%d", w, i)))
						if errors.Is(err, eventlog.ErrFailed) {
							return
						}
						if err != nil && !errors.Is(err, eventlog.ErrNotCommitted) {
							t.Error(err)
						}
						done.Add(1)
					}
				})
			}
			await := func(n int64) {
				t.Helper()
				for end, from := time.Now().Add(patience), done.Load(); done.Load() < from+n && l.Err() == nil; time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("no append was answered")
					}
				}
			}
			await(100)
			cluster.Stop(how)
			cluster.Start(t)
			await(100)
			stop()
			wg.Wait()
			if l.Err() != nil {
				t.Errorf("the log has failed, although its lease held: %v", l.Err())
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
			again := follow(t, engine(), dir)
			lead(t, again)
			eventlogtest.CheckHistories(t, again, dir)
		})
	}
}

// TestLossyFailover fails over to a replica that lacks the last commits: the server that made them stops, one that
// followed refuses, and so does one that starts with a derived copy.
func TestLossyFailover(t *testing.T) {
	if !thorough() {
		t.Skip("makes two clusters; run with make test")
	}
	primary := pgtest.Start(t)
	primary.NewDatabase(t, "log")
	replica := primary.Replica(t)
	url := fmt.Sprintf("postgres:///log?user=pinnace&host=%s,%s&target_session_attrs=read-write", primary.Dir(), replica.Dir())
	leaderDir := t.TempDir()
	leader := follow(t, postgres.New(postgres.Options{URL: url, TTL: time.Minute}), leaderDir)
	lead(t, leader)
	follower := follow(t, postgres.New(postgres.Options{URL: url, TTL: time.Minute}), t.TempDir())
	put := func(n int) {
		for range n {
			if _, err := leader.Append(t.Context(), slices.Repeat([]eventlog.Append{request("")}, 5)...); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(1)
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if n, err := replica.TrySQL("log", "SELECT count(*) FROM pinnace_event"); err == nil && n == "5" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the replica does not follow")
		}
	}
	replica.Stop(syscall.SIGINT)
	put(1640)
	derived := filepath.Join(leaderDir, "derived", "derived")
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(derived); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no derived copy is written")
		}
	}
	for end := time.Now().Add(patience); follower.Head() != leader.Head(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the follower does not follow")
		}
	}
	primary.Stop(syscall.SIGKILL)
	replica.Start(t)
	replica.Promote(t)

	_, err := leader.Append(t.Context(), request("after"))
	if !errors.Is(err, eventlog.ErrFailed) {
		t.Errorf("the leader: got %v, want ErrFailed", err)
	}
	var regression *eventlog.RegressionError
	select {
	case <-follower.Failed():
		if !errors.As(follower.Err(), &regression) || regression.Seen.Seq != 8205 || regression.Have.Seq != 5 {
			t.Errorf("the follower: got %v, want a RegressionError", follower.Err())
		}
	case <-time.After(patience):
		t.Error("the follower goes on")
	}
	replica.SQL(t, "log", "UPDATE pinnace_lease SET until = 'epoch'")
	if err := follower.Close(); err != nil {
		t.Error(err)
	}
	opts := eventlogtest.Options(leaderDir)
	if err := leader.Close(); err != nil {
		t.Error(err)
	}
	if _, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), opts); !errors.As(err, &regression) {
		t.Errorf("a server that starts again: got %v, want a RegressionError", err)
	}
}

// TestTwoLeaders: a leader whose commit was on its way when another one took over stores nothing, however late.
func TestTwoLeaders(t *testing.T) {
	url, name := database(t)
	f := &eventlogtest.Faulty{Engine: postgres.New(postgres.Options{URL: url, TTL: time.Minute})}
	entered, release := make(chan struct{}), make(chan struct{})
	first, err := eventlog.Open(t.Context(), f, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	f.OnCommit = func(_ []eventlog.Event, commit func() error) error {
		close(entered)
		<-release
		return commit()
	}
	result := make(chan error)
	go func() {
		_, err := first.Append(context.WithoutCancel(t.Context()), request("late"))
		result <- err
	}()
	<-entered
	shared.cluster.SQL(t, name, `UPDATE pinnace_lease SET until = 'epoch'`) // it counts as dead
	second, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	close(release)
	if err := <-result; !errors.Is(err, eventlog.ErrFenced) {
		t.Errorf("the late commit: got %v, want ErrFenced", err)
	}
	if r, err := second.Append(t.Context(), request("second")); err != nil || r.First != 1 {
		t.Errorf("the new leader: got %+v, %v, want event 1", r, err)
	}
}

// TestLostBehindAProxy: a leader whose connection stays, and leads to a database that has the same lease and lacks the last
// events, leaves no gap there.
func TestLostBehindAProxy(t *testing.T) {
	url, name := database(t)
	l, err := eventlog.Open(t.Context(), postgres.New(postgres.Options{URL: url}), eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		if _, err := l.Append(t.Context(), request("")); err != nil {
			t.Fatal(err)
		}
	}
	shared.cluster.SQL(t, name, `DELETE FROM pinnace_event WHERE seq > 1`)
	if _, err := l.Append(t.Context(), request("next")); !errors.Is(err, eventlog.ErrFenced) {
		t.Errorf("got %v, want ErrFenced", err)
	}
	if n := shared.cluster.SQL(t, name, `SELECT count(*) FROM pinnace_event`); n != "1" {
		t.Errorf("%s events are stored, want 1", n)
	}
}

// TestFight lets three servers take the lease from each other all the time, under load. What any of them
// acknowledged is there once.
func TestFight(t *testing.T) {
	url, name := database(t)
	dir := t.TempDir()
	rounds := 15
	if testing.Short() {
		rounds = 4
	}
	if os.Getenv("PINNACE_TORTURE") != "" {
		rounds = 200
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var leads [3]atomic.Int64
	for s := range leads {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				if err := fighter(ctx, t, url, dir, fmt.Sprintf("%d-%d", s, n), &leads[s]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	total := func() int64 { return leads[0].Load() + leads[1].Load() + leads[2].Load() }
	seen := int64(0)
	for range rounds {
		for end := time.Now().Add(patience); total() == seen; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("nobody leads")
			}
		}
		// Read before the lease is taken: the next one may lead before the statement's client has returned.
		seen = total()
		// A busy leader renews its lease with each commit, so it has to be taken from it, in the middle of one.
		shared.cluster.SQL(t, name, `UPDATE pinnace_lease SET epoch = epoch + 1, holder = 'nobody', until = 'epoch'`)
	}
	stop()
	wg.Wait()
	t.Logf("led %d, %d and %d times", leads[0].Load(), leads[1].Load(), leads[2].Load())
	l := follow(t, victimEngine(url), t.TempDir())
	lead(t, l)
	eventlogtest.CheckHistories(t, l, dir)
}

// fighter is one life of a server: it follows, leads, appends until it is replaced, and ends.
func fighter(ctx context.Context, t *testing.T, url, dir, name string, leads *atomic.Int64) error {
	opts := eventlogtest.Options(filepath.Join(dir, name))
	opts.Follow = true
	l, err := eventlog.Open(context.WithoutCancel(ctx), postgres.New(postgres.Options{URL: url, TTL: 2 * time.Second}), opts)
	if err != nil {
		return err
	}
	defer l.Close()
	select {
	case <-l.Leads():
		leads.Add(1)
	case <-l.Failed():
		return l.Err()
	case <-ctx.Done():
		return nil
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			c, err := eventlogtest.NewClient(dir, fmt.Sprintf("%s-%d", name, w))
			if err != nil {
				t.Error(err)
				return
			}
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := c.Append(context.WithoutCancel(ctx), l, request(fmt.Sprintf("%s/%d/%d", name, w, i))); err != nil {
					if !errors.Is(err, eventlog.ErrFenced) {
						t.Errorf("%s: %v", name, err)
					}
					return
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// TestFollower: who follows sees what is committed, in order, takes no appends, and goes on where the leader ended.
func TestFollower(t *testing.T) {
	url, _ := database(t)
	leader := follow(t, victimEngine(url), t.TempDir())
	lead(t, leader)
	follower := follow(t, victimEngine(url), t.TempDir())
	if _, err := follower.Append(t.Context(), request("x")); !errors.Is(err, eventlog.ErrFollowing) {
		t.Errorf("append to a follower: got %v, want ErrFollowing", err)
	}
	if _, err := follower.Checkpoint(t.Context()); !errors.Is(err, eventlog.ErrFollowing) {
		t.Errorf("checkpoint by a follower: got %v, want ErrFollowing", err)
	}
	const n = 300
	go func() {
		for i := range n {
			if _, err := leader.Append(context.WithoutCancel(t.Context()), request(fmt.Sprint(i))); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last uint64
	for events, err := range follower.Watch(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.Seq != last+1 {
				t.Fatalf("event %d after %d", e.Seq, last)
			}
			last = e.Seq
		}
		if last == n {
			break
		}
	}
	if err := leader.Close(); err != nil {
		t.Fatal(err)
	}
	lead(t, follower)
	if r, err := follower.Append(t.Context(), request("7")); err != nil || !r.Repeated || r.First != 8 {
		t.Errorf("a request that the old leader had: got %+v, %v", r, err)
	}
	if r, err := follower.Append(t.Context(), request("new")); err != nil || r.First != n+1 {
		t.Errorf("got %+v, %v, want event %d", r, err, n+1)
	}
}

// TestDiskFull: a database without room refuses appends, loses none, and the log goes on when there is room.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("PINNACE_E2E") != "1" {
		t.Skip("needs root, to mount a small file system; run with make test")
	}
	mount, err := os.MkdirTemp("", "pinnace-pg-full-") //nolint:usetesting // The database's user has to get in.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(mount) })
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=160m,mode=0755"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	cluster := pgtest.StartIn(t, mount)
	l := follow(t, postgres.New(postgres.Options{URL: cluster.NewDatabase(t, "log")}), t.TempDir())
	lead(t, l)
	if _, err := l.Append(t.Context(), request("first")); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(mount, "ballast")
	var fs unix.Statfs_t
	if err := unix.Statfs(mount, &fs); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ballast, make([]byte, int64(fs.Bavail)*fs.Bsize-(1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	big := request("")
	big.Payload = make([]byte, 200_000)
	var refused error
	acknowledged := l.Head().Seq
	for range 200 {
		r, err := l.Append(t.Context(), big)
		if refused = err; err != nil {
			break
		}
		acknowledged = r.Last
	}
	if refused == nil {
		t.Fatal("the disk did not become full")
	}
	t.Logf("full after event %d: %v", acknowledged, refused)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if errors.Is(refused, eventlog.ErrNotCommitted) {
		if r, err := l.Append(t.Context(), request("again")); err != nil || r.First != acknowledged+1 {
			t.Errorf("with room again: got %+v, %v, want event %d", r, err, acknowledged+1)
		}
		acknowledged++
	} else if !errors.Is(refused, eventlog.ErrFailed) {
		t.Errorf("got %v, want ErrNotCommitted, or ErrFailed when PostgreSQL itself went down", refused)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	again := follow(t, postgres.New(postgres.Options{URL: cluster.URL("log")}), t.TempDir())
	if got := again.Head().Seq; got < acknowledged {
		t.Errorf("after it all: event %d, acknowledged was %d", got, acknowledged)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
