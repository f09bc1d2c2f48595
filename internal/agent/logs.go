package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pinnacehq/pinnace/internal/durable"
	"github.com/pinnacehq/pinnace/internal/guest"
)

const (
	// segmentBytes is when a log file is put aside. An instance has two: what is older is dropped, so that
	// it never holds more than 50 MiB.
	segmentBytes = 25 << 20
	// keepLogs is how long the logs of an instance stay after its last line.
	keepLogs = 7 * 24 * time.Hour
	// recentLines is how much of an instance's output is kept in memory for the cause of its end.
	recentLines = 64
	// maxRecord bounds one stored line: guest.MaxLine in base64, and what goes around it.
	maxRecord = 32 << 10
)

// Names of an instance's log files, in its directory.
const (
	currentLog = "current.ndjson"
	olderLog   = "older.ndjson"
)

// logRecord is one stored line. Lines are kept as JSON, one a line, so that a file that was cut by a crash
// loses its last line at most.
type logRecord struct {
	Attempt uint32 `json:"attempt"`
	guest.Line
}

// logStore keeps the output of the instances of a host.
type logStore struct {
	dir string
	now func() time.Time

	mu   sync.Mutex
	open map[string]*instanceLog // guarded by mu
}

func openLogStore(dir string, now func() time.Time) (*logStore, error) {
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory for logs: %w", err)
	}
	return &logStore{dir: dir, now: now, open: map[string]*instanceLog{}}, nil
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

// expire removes the logs of instances that have been silent and closed for keepLogs.
func (s *logStore) expire() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return // The next hour tries again; nothing depends on it.
	}
	for _, e := range entries {
		s.mu.Lock()
		_, inUse := s.open[e.Name()]
		s.mu.Unlock()
		info, err := os.Stat(filepath.Join(s.dir, e.Name(), currentLog))
		if inUse || err != nil || s.now().Sub(info.ModTime()) < keepLogs {
			continue
		}
		_ = os.RemoveAll(filepath.Join(s.dir, e.Name())) // likewise
	}
}

// of is the log of an instance, opened when it is not.
func (s *logStore) of(instance string) (*instanceLog, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.open[instance]; l != nil {
		return l, nil
	}
	dir := filepath.Join(s.dir, instance)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, currentLog), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := &instanceLog{dir: dir, f: f, size: info.Size(), grown: make(chan struct{})}
	s.open[instance] = l
	return l, nil
}

// append keeps one line. When it returns nil the line survives the end of this process.
func (s *logStore) append(instance string, attempt uint32, line guest.Line) error {
	l, err := s.of(instance)
	if err != nil {
		return err
	}
	return l.append(logRecord{Attempt: attempt, Line: line})
}

// tail are the last n lines that an attempt has written, for people.
func (s *logStore) tail(instance string, attempt uint32, n int) []string {
	l, err := s.of(instance)
	if err != nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var lines []string
	for _, r := range l.recent {
		if r.Attempt == attempt && r.Dropped == 0 {
			lines = append(lines, string(bytes.ToValidUTF8(r.Data, []byte("\uFFFD"))))
		}
	}
	return lines[max(0, len(lines)-n):]
}

// closeInstance lets go of the files of an instance that is gone.
func (s *logStore) closeInstance(instance string) {
	s.mu.Lock()
	l := s.open[instance]
	delete(s.open, instance)
	s.mu.Unlock()
	if l != nil {
		l.close()
	}
}

// exists tells whether there are logs of an instance.
func (s *logStore) exists(instance string) bool {
	_, err := os.Stat(filepath.Join(s.dir, instance, currentLog))
	return err == nil
}

// instanceLog is the log of one instance.
type instanceLog struct {
	dir string

	mu     sync.Mutex // guards what follows
	f      *os.File
	size   int64
	recent []logRecord
	grown  chan struct{} // closed and replaced when there is more to read, or nothing more will come
	closed bool
	turned int // how often the file was put aside
}

func (l *instanceLog) append(r logRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fs.ErrClosed
	}
	if l.size >= segmentBytes {
		if err := l.turn(); err != nil {
			return fmt.Errorf("put a full log file aside: %w", err)
		}
	}
	n, err := l.f.Write(append(b, '\n'))
	l.size += int64(n)
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	l.recent = append(l.recent, r)
	if len(l.recent) > recentLines {
		l.recent = l.recent[len(l.recent)-recentLines:]
	}
	l.wake()
	return nil
}

// turn begins a new file. It is called with mu held.
func (l *instanceLog) turn() error {
	if err := l.f.Close(); err != nil {
		return err
	}
	path := filepath.Join(l.dir, currentLog)
	if err := os.Rename(path, filepath.Join(l.dir, olderLog)); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	l.f, l.size = f, 0
	l.turned++
	return nil
}

func (l *instanceLog) wake() {
	close(l.grown)
	l.grown = make(chan struct{})
}

func (l *instanceLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		_ = l.f.Close() // everything was written already
		l.wake()
	}
}

// look is what a reader needs to know to wait for more.
func (l *instanceLog) look() (grown <-chan struct{}, turned int, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.grown, l.turned, l.closed
}

// read gives the stored lines of an instance to emit in order, only the last tail ones unless that is 0,
// and with follow those that come until ctx is done or the instance is gone.
func (s *logStore) read(ctx context.Context, instance string, tail int, follow bool, emit func(logRecord) error) error {
	l, err := s.of(instance)
	if err != nil {
		return err
	}
	_, turned, _ := l.look()
	current, err := os.Open(filepath.Join(l.dir, currentLog))
	if err != nil {
		return err
	}
	defer func() { _ = current.Close() }()
	past := newPast(tail, emit)
	if older, err := os.Open(filepath.Join(l.dir, olderLog)); err == nil {
		err = readRecords(bufio.NewReader(older), past.add)
		if err := errors.Join(err, older.Close()); err != nil {
			return err
		}
	}
	r := bufio.NewReader(current)
	if err := readRecords(r, past.add); err != nil {
		return err
	}
	if err := past.flush(); err != nil || !follow {
		return err
	}
	for {
		// The order matters: look, then read, then wait for what look saw to change.
		grown, nowTurned, closed := l.look()
		if err := readRecords(r, emit); err != nil {
			return err
		}
		if nowTurned != turned {
			next, err := os.Open(filepath.Join(l.dir, currentLog))
			if err != nil {
				return err
			}
			_ = current.Close() // it was only read
			current, r, turned = next, bufio.NewReader(next), nowTurned
			continue
		}
		if closed {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return nil
		}
	}
}

// readRecords gives every whole line that there is to emit.
func readRecords(r *bufio.Reader, emit func(logRecord) error) error {
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var rec logRecord
		if len(line) > maxRecord || json.Unmarshal(line, &rec) != nil {
			continue // the end of a line that a crash had cut, with the next one behind it
		}
		if err := emit(rec); err != nil {
			return err
		}
	}
}

// past keeps the last n records until they are all there, or passes everything on when n is 0.
type past struct {
	n    int
	ring []logRecord
	emit func(logRecord) error
}

func newPast(n int, emit func(logRecord) error) *past { return &past{n: n, emit: emit} }

func (p *past) add(r logRecord) error {
	if p.n == 0 {
		return p.emit(r)
	}
	p.ring = append(p.ring, r)
	if len(p.ring) > 2*p.n {
		p.ring = append(p.ring[:0], p.ring[len(p.ring)-p.n:]...)
	}
	return nil
}

func (p *past) flush() error {
	for _, r := range p.ring[max(0, len(p.ring)-p.n):] {
		if err := p.emit(r); err != nil {
			return err
		}
	}
	p.ring = nil
	return nil
}
