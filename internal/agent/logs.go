package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	// segmentBytes is how large a log file gets. An instance has two: what is older is dropped, so that it
	// never holds more than 50 MiB.
	segmentBytes = 25 << 20
	// keepLogs is how long the logs of an instance stay after its last line.
	keepLogs = 7 * 24 * time.Hour
)

// segmentSuffix ends the names of log files; before it comes their number.
const segmentSuffix = ".ndjson"

// logStore keeps the output of the instances of a host: a directory for each, with numbered files that hold a
// line of JSON for each line of output. Files are only ever appended to, and the newest two are kept.
//
// A line that was stored survives the end of the agent's process. When the host itself crashes, the lines of its
// last seconds may be missing, and the last one may be cut; a line that is not whole is skipped.
type logStore struct {
	dir     string
	now     func() time.Time
	segment int64

	mu   sync.Mutex
	open map[string]*instanceLog // guarded by mu: of the instances that can write
}

func openLogStore(dir string, now func() time.Time) (*logStore, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for logs: %w", err)
	}
	return &logStore{dir: dir, now: now, segment: segmentBytes, open: map[string]*instanceLog{}}, nil
}

// run removes logs whose time is over, until ctx is done.
func (s *logStore) run(ctx context.Context) {
	for {
		s.expire()
		if !sleep(ctx, time.Hour) {
			return
		}
	}
}

// expire removes the logs of instances that have been silent for keepLogs and can write no more.
func (s *logStore) expire() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return // The next hour tries again; nothing depends on it.
	}
	for _, e := range entries {
		s.expireOne(e.Name())
	}
}

func (s *logStore) expireOne(instance string) {
	// With mu held nobody begins to write what is removed.
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := filepath.Join(s.dir, instance)
	if s.open[instance] != nil || s.now().Sub(lastWrite(dir)) < keepLogs {
		return
	}
	_ = os.RemoveAll(dir) // as above
}

// lastWrite is when something in dir was last written. What cannot be looked at counts as written just now.
func lastWrite(dir string) time.Time {
	var last time.Time
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, path := range append(paths, dir) {
		info, statErr := os.Stat(path)
		if err = errors.Join(err, statErr); err != nil {
			return time.Now()
		}
		if info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}

// begin lets an instance write, until end. Nothing is made on disk before its first line.
func (s *logStore) begin(instance string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[instance] == nil {
		s.open[instance] = &instanceLog{dir: filepath.Join(s.dir, instance), segment: s.segment, grown: make(chan struct{})}
	}
}

// end lets go of the files of an instance that has ended for good. Those who follow it come to the end.
func (s *logStore) end(instance string) {
	s.mu.Lock()
	l := s.open[instance]
	delete(s.open, instance)
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
}

func (s *logStore) of(instance string) *instanceLog {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[instance]
}

// append keeps lines of an instance that has begun. When it returns nil they survive the end of this process; after an
// error the first kept of them do, and the others can be appended again.
func (s *logStore) append(instance string, attempt uint32, lines ...guest.Line) (kept int, err error) {
	l := s.of(instance)
	if l == nil {
		return 0, fs.ErrClosed
	}
	return l.append(attempt, lines)
}

// tail are the last lines that an attempt of an instance that has begun has written, for people.
func (s *logStore) tail(instance string, attempt uint32) []string {
	l := s.of(instance)
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, r := range l.recent {
		if r.Attempt == attempt && r.Dropped == 0 {
			lines = append(lines, tailLine(string(r.Data)))
		}
	}
	return lines
}

// lastSeq is the number of the last line of an attempt that is stored, of an instance that has begun; 0 for none.
func (s *logStore) lastSeq(instance string, attempt uint32) (uint64, error) {
	l := s.of(instance)
	if l == nil {
		return 0, fs.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.recent) == 0 {
		if err := l.remember(); err != nil {
			return 0, err
		}
	}
	if n := len(l.recent); n > 0 && l.recent[n-1].Attempt == attempt {
		return l.recent[n-1].Seq, nil
	}
	return 0, nil
}
