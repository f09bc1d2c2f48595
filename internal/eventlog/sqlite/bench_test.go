package sqlite_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pinnacehq/pinnace/internal/eventlog"
	"github.com/pinnacehq/pinnace/internal/eventlog/sqlite"
)

// BenchmarkAppend appends events of 1 KiB, each a request of its own, and compares with what the disk does in
// the same run: fsyncs/s is the rate of 4 KiB writes each followed by a sync.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			dir := b.TempDir()
			rate := syncRate(b, dir)
			l, err := eventlog.Open(b.Context(), sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{})
			if err != nil {
				b.Fatal(err)
			}
			payload := make([]byte, 1024)
			var n, done atomic.Int64
			b.SetParallelism((writers + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				w := n.Add(1)
				if w > int64(writers) {
					return // more than asked for, because parallelism is per CPU
				}
				stream := fmt.Sprint("app/", w)
				for v := uint64(0); pb.Next(); v++ {
					if _, err := l.Append(b.Context(), eventlog.Append{Stream: stream, Expect: v, Type: "t", Payload: payload}); err != nil {
						b.Error(err)
						return
					}
					done.Add(1)
				}
			})
			b.StopTimer()
			perSecond := float64(done.Load()) / b.Elapsed().Seconds()
			b.ReportMetric(perSecond, "appends/s")
			b.ReportMetric(perSecond/rate, "appends/fsync")
			if err := l.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkReplay reads a log of 50,000 events of 1 KiB: as it is opened, with and without the hashes.
func BenchmarkReplay(b *testing.B) {
	const events = 50_000
	dir := b.TempDir()
	l, err := eventlog.Open(b.Context(), sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	appends := make([]eventlog.Append, 1000)
	for i := range appends {
		appends[i] = eventlog.Append{Stream: fmt.Sprint("app/", i), Expect: eventlog.AnyVersion, Type: "t", Payload: make([]byte, 1024)}
	}
	for range events / len(appends) {
		if _, err := l.Append(b.Context(), appends...); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	for _, skip := range []bool{false, true} {
		b.Run(fmt.Sprintf("verify=%v", !skip), func(b *testing.B) {
			for b.Loop() {
				l, err := eventlog.Open(b.Context(), sqlite.New(sqlite.Options{Dir: dir}), eventlog.Options{SkipVerify: skip})
				if err != nil {
					b.Fatal(err)
				}
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(events)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// syncRate is how many writes of 4 KiB the disk makes durable in a second, one after the other.
func syncRate(b *testing.B, dir string) float64 {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 4096)
	start := time.Now()
	n := 0
	for time.Since(start) < 200*time.Millisecond {
		if _, err := f.WriteAt(block, 0); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		n++
	}
	return float64(n) / time.Since(start).Seconds()
}
