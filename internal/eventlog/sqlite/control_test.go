package sqlite_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/memory"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres"
	"github.com/pinnacehq/pinnace/internal/eventlog/postgres/pgtest"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// TestBenchControl measures the log against what the disk itself does in the same seconds, and fails where a gate
// is not met: make bench-control. PINNACE_BENCH_EVENTS is how large the large log is.
func TestBenchControl(t *testing.T) {
	if os.Getenv("PINNACE_BENCH_CONTROL") == "" {
		t.Skip("takes minutes of a quiet machine; run with make bench-control")
	}
	events := 1_000_000
	if s := os.Getenv("PINNACE_BENCH_EVENTS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		events = n
	}
	b := &controlBench{T: t, gated: true}
	n := 0
	sqliteIn := t.TempDir()
	b.newEngine = func() eventlog.Engine {
		n++
		return sqlite.New(sqlite.Options{Dir: filepath.Join(sqliteIn, fmt.Sprint(n))})
	}
	t.Run("appends", func(t *testing.T) { b.T = t; b.appends() })
	t.Run("lone append", func(t *testing.T) { b.T = t; b.lone() })
	t.Run("watchers", func(t *testing.T) { b.T = t; b.watchers() })
	t.Run("large log", func(t *testing.T) { b.T = t; b.large(events) })
	b.print("event log on SQLite")

	t.Run("PostgreSQL", func(t *testing.T) {
		cluster := pgtest.Start(t)
		pg := &controlBench{T: t, newEngine: func() eventlog.Engine {
			n++
			return postgres.New(postgres.Options{URL: cluster.NewDatabase(t, fmt.Sprint("bench", n))})
		}}
		pg.database = func() string { return cluster.NewDatabase(t, "large") }
		pg.stored = func() float64 {
			size, err := strconv.ParseFloat(cluster.SQL(t, "large", "SELECT pg_total_relation_size('pinnace_event')"), 64)
			if err != nil {
				t.Fatal(err)
			}
			return size
		}
		pg.appends()
		pg.lone()
		pg.large(events / 5)
		pg.note("CPU is the server's own, without PostgreSQL's. The gates are for SQLite; these figures are from the same run")
		pg.print("event log on PostgreSQL")
	})
}

type controlBench struct {
	*testing.T
	newEngine func() eventlog.Engine // with an empty log
	again     func() eventlog.Engine // with the large log
	gated     bool                   // it is SQLite
	rows      []string
	// Of PostgreSQL: a new database, and how many bytes the events in it take.
	database func() string
	stored   func() float64
}

func (b *controlBench) print(title string) {
	if len(b.rows) == 0 {
		return
	}
	fmt.Printf("\n%-46s %13s %10s %10s\n", title, "measured", "gate", "goal")
	for _, row := range b.rows {
		fmt.Println(row)
	}
}

// result notes a figure. more says that it should be at least the gate, else at most.
func (b *controlBench) result(what string, got, gate, goal float64, unit string, more bool) {
	if !b.gated {
		b.rows = append(b.rows, fmt.Sprintf("%-46s %8.3g %-4s", what, got, unit))
		return
	}
	sign, met := "≤", got <= gate
	if more {
		sign, met = "≥", got >= gate
	}
	mark := ""
	if !met {
		mark = "  MISSED"
		b.Errorf("%s: %.3g %s, the gate is %s %g", what, got, unit, sign, gate)
	}
	b.rows = append(b.rows, fmt.Sprintf("%-46s %8.3g %-4s %s %-8g %s %-8g%s", what, got, unit, sign, gate, sign, goal, mark))
}

func (b *controlBench) note(format string, args ...any) {
	b.rows = append(b.rows, fmt.Sprintf("  "+format, args...))
}

func median[T float64 | time.Duration](v []T) T {
	v = slices.Clone(v)
	slices.Sort(v)
	return v[len(v)/2]
}

// probe syncs overwritten blocks of 4 KiB for d, and gives how long each took.
func (b *controlBench) probe(f *os.File, d time.Duration) (each []time.Duration) {
	block := make([]byte, 4096)
	for begin := time.Now(); len(each) == 0 || time.Since(begin) < d; {
		one := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		each = append(each, time.Since(one))
	}
	return each
}

func (b *controlBench) probeFile(dir string) *os.File {
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (b *controlBench) open(e eventlog.Engine, opts eventlog.Options) *eventlog.Log {
	b.Helper()
	l, err := eventlog.Open(b.Context(), e, opts)
	if err != nil {
		b.Fatal(err)
	}
	return l
}

// together calls fn from n goroutines for d and gives the calls a second.
func together(n int, d time.Duration, fn func(worker, i int)) float64 {
	var calls atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for w := range n {
		wg.Go(func() {
			for i := 0; time.Since(begin) < d; i++ {
				fn(w, i)
				calls.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(calls.Load()) / time.Since(begin).Seconds()
}

const benchRounds = 15

// appends compares 64 writers with the disk and with a transaction for each append, in turns.
func (b *controlBench) appends() {
	f := b.probeFile(b.TempDir())
	l := b.open(b.newEngine(), eventlog.Options{})
	defer l.Close()
	single := b.newEngine()
	info, err := single.Open(b.Context())
	if err == nil {
		_, err = single.Lead(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	defer single.Close()
	payload := make([]byte, 1024)
	var mu sync.Mutex
	head := info.Head
	one := func(w, _ int) {
		mu.Lock()
		defer mu.Unlock()
		e := eventlog.Event{Seq: head.Seq + 1, Stream: fmt.Sprint("app/", w), Version: head.Seq + 1, Type: "t", Time: int64(head.Seq + 1), Payload: payload}
		e.Hash = eventlog.ChainHash(head.Hash, &e)
		if err := single.Commit(context.Background(), []eventlog.Event{e}); err != nil {
			b.Error(err)
		}
		head = eventlog.Head{Seq: e.Seq, Hash: e.Hash}
	}
	group := func(w, _ int) {
		if _, err := l.Append(context.Background(), eventlog.Append{Stream: fmt.Sprint("app/", w), Expect: eventlog.AnyVersion, Type: "t", Payload: payload}); err != nil {
			b.Error(err)
		}
	}
	together(64, time.Second, group) // the write-ahead log has its size then
	together(64, time.Second, one)
	var toDisk, toSingle, micros, rates, disks []float64
	for range benchRounds {
		disk := 1 / median(b.probe(f, 150*time.Millisecond)).Seconds()
		before := cpu()
		rate := together(64, 300*time.Millisecond, group)
		used := cpu() - before
		alone := together(64, 150*time.Millisecond, one)
		after := 1 / median(b.probe(f, 150*time.Millisecond)).Seconds()
		disk = (disk + after) / 2
		toDisk, toSingle = append(toDisk, rate/disk), append(toSingle, rate/alone)
		micros = append(micros, float64(used.Microseconds())/(rate*0.3))
		rates, disks = append(rates, rate), append(disks, disk)
	}
	b.note("medians of %d rounds: %.0f appends/s of 1 KiB, %.0f fdatasyncs/s of 4 KiB", benchRounds, median(rates), median(disks))
	b.result("64 writers / the disk's fdatasync rate", median(toDisk), 8, 10, "x", true)
	b.result("64 writers / one transaction per append", median(toSingle), 10, 20, "x", true)
	b.result("CPU per append, callers included", median(micros), 20, 10, "us", false)
}

func (b *controlBench) lone() {
	f := b.probeFile(b.TempDir())
	l := b.open(b.newEngine(), eventlog.Options{})
	defer l.Close()
	a := eventlog.Append{Stream: "app/a", Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, 1024)}
	var disk, each []time.Duration
	for begin := time.Now(); time.Since(begin) < 6*time.Second; {
		// One after the other, so that both meet the same moments of the disk.
		disk = append(disk, b.probe(f, 0)...)
		one := time.Now()
		if _, err := l.Append(b.Context(), a); err != nil {
			b.Fatal(err)
		}
		each = append(each, time.Since(one))
	}
	b.note("%d lone appends, p50 %s; one fdatasync of 4 KiB %s", len(each), median(each).Round(time.Microsecond), median(disk).Round(time.Microsecond))
	b.result("a lone append / one fdatasync, p50", float64(median(each))/float64(median(disk)), 1.6, 1.3, "x", false)
}

// watchers takes the time from the commit to the last of 1,000 watchers, with a store that costs nothing.
func (b *controlBench) watchers() {
	const watchers, events = 1000, 300
	l, err := eventlog.Open(b.Context(), memory.New(), eventlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(b.Context())
	var left atomic.Int64
	all := make(chan struct{}, 1)
	var wg sync.WaitGroup
	for range watchers {
		wg.Go(func() {
			for range l.Watch(ctx, 0) {
				if left.Add(-1) == 0 {
					all <- struct{}{}
				}
			}
		})
	}
	a := eventlog.Append{Stream: "app/a", Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, 1024)}
	var each []time.Duration
	for range events {
		left.Store(watchers)
		begin := time.Now()
		if _, err := l.Append(ctx, a); err != nil {
			b.Fatal(err)
		}
		<-all
		each = append(each, time.Since(begin))
		time.Sleep(2 * time.Millisecond) // paced, so that all of them wait again
	}
	cancel()
	wg.Wait()
	b.result("commit to the last of 1,000 watchers, p50", float64(median(each).Microseconds())/1000, 1, 0.5, "ms", false)
}

// large measures a log of many events.
func (b *controlBench) large(events int) {
	derived := b.TempDir()
	b.fill(derived, events)
	var replayed []float64
	for range 3 {
		e := b.again()
		before, begin := cpu(), time.Now()
		l := b.open(e, eventlog.Options{}) // reads and verifies all of it
		used := cpu() - before
		replayed = append(replayed, float64(events)/used.Seconds()/1e6)
		b.note("%d events of 1 KiB were read and verified in %.2f s, with %.2f s of CPU", events, time.Since(begin).Seconds(), used.Seconds())
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.result("replay with the chain verified, events/s/core", median(replayed), 0.25, 1, "M", true)
	var ready []float64
	for range 5 {
		e, begin := b.again(), time.Now()
		l := b.open(e, eventlog.Options{Dir: derived})
		if _, err := l.Append(b.Context(), eventlog.Append{Stream: "app/new", Expect: eventlog.AnyVersion, Type: "t"}); err != nil {
			b.Fatal(err)
		}
		ready = append(ready, time.Since(begin).Seconds())
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.result(fmt.Sprintf("ready and the first append done, %d events", events), median(ready), 1.5, 0.1, "s", false)
}

// fill makes the log that the engines of again have.
func (b *controlBench) fill(derived string, events int) {
	const size = 1024
	var sizeOf func() float64
	if b.gated {
		dir := filepath.Join(b.TempDir(), "log")
		b.again = func() eventlog.Engine { return sqlite.New(sqlite.Options{Dir: dir}) }
		sizeOf = func() float64 {
			info, err := os.Stat(filepath.Join(dir, sqlite.FileName))
			if err != nil {
				b.Fatal(err)
			}
			return float64(info.Size())
		}
	} else {
		url := b.database()
		b.again = func() eventlog.Engine { return postgres.New(postgres.Options{URL: url}) }
		sizeOf = func() float64 { return b.stored() }
	}
	l := b.open(b.again(), eventlog.Options{Dir: derived})
	appends := make([]eventlog.Append, 1000)
	for n := 0; n < events; n += len(appends) {
		for i := range appends {
			appends[i] = eventlog.Append{Stream: fmt.Sprint("app/", (n+i)%10_000), Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, size)}
		}
		appends[0].IdempotencyKey = fmt.Sprint("request/", n)
		if _, err := l.Append(b.Context(), appends...); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.result("disk / payload", sizeOf()/float64(events*size), 1.2, 1.15, "x", false)
}
